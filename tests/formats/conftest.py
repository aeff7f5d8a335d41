"""What the tests of GGUF share."""

from pathlib import Path

import pytest


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
