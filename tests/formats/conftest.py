"""What the tests of folders and those of GGUF share."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from torch import nn

Reference = Callable[[str, bool], nn.Module]


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Reference, str, bool], Path]:
    """The folder that `transformers` saves a variant's tiny model as, with default or with hot weights; made once."""

    @cache
    def folder(reference: Reference, variant: str, hot: bool) -> Path:
        made = tmp_path_factory.mktemp("published")
        reference(variant, hot).save_pretrained(made)
        return made

    return folder


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory, corpus_folder: Path) -> Path:
    """A tokenizer of 512 tokens that cuts text in a way llama.cpp knows."""
    from groundup.tokens import tokenizer
    from groundup.tokens.config import TokenizerConfig

    folder = tmp_path_factory.mktemp("words")
    tokenizer.run(TokenizerConfig(vocab_size=512, pattern="qwen2"), folder, corpus=corpus_folder)
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models of `gguf_models` are kept."""
    return tmp_path_factory.mktemp("models")
