"""A corpus of real Python source and a small tokenizer trained on it."""

import json
import wsgiref
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from groundup.tokens import tokenizer as training
from groundup.tokens.config import TokenizerConfig
from groundup.tokens.tokenizer import Tokenizer


def write_documents(path: Path, texts: Sequence[str]) -> None:
    """A documents file as the corpus stage writes it, as far as the tokens room reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = [f"{number:032x}" for number in range(len(texts))]
    pq.write_table(pa.table({"id": ids, "text": pa.array(texts, pa.string())}), path, compression="zstd")


@pytest.fixture(scope="session")
def documents() -> list[str]:
    folders = (Path(json.__file__).parent, Path(wsgiref.__file__).parent)
    return [path.read_text(encoding="utf-8") for folder in folders for path in sorted(folder.glob("*.py"))]


@pytest.fixture(scope="session")
def corpus(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_documents(folder / "train.parquet", documents[:-1])
    write_documents(folder / "heldout.parquet", documents[-1:])
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    training.run(TokenizerConfig(vocab_size=600), folder, corpus=corpus)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_folder)
