"""A real corpus in small, and what the stages make of it: read-only, made once for all tests. Signals are put back."""

import importlib
import inspect
import json
import signal
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

TRAIN_MODULES = ("argparse", "calendar", "shutil", "statistics", "tarfile")
HELDOUT_MODULES = ("heapq", "textwrap")
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "text", "source", "path", "license", "meta")]
    + [("kept", pa.bool_()), ("reason", pa.string()), ("scores", pa.string()), ("group", pa.string())]
)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Bits are equal only with equal thread counts, and tiny matrices gain nothing from a second core."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Put back the handlers that `groundup.cli.main` sets, whichever test calls it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Modules of the standard library as the stage `corpus` writes them, some 370 kB to train on and 45 kB held out."""
    folder = tmp_path_factory.mktemp("corpus")
    for split, modules in (("train", TRAIN_MODULES), ("heldout", HELDOUT_MODULES)):
        rows = [_document(name) for name in modules]
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / f"{split}.parquet", compression="zstd")
    return folder


def _document(name: str) -> dict[str, object]:
    text = inspect.getsource(importlib.import_module(name))
    return {
        "id": xxhash.xxh3_128_hexdigest(text.encode()),
        "text": text,
        "source": "stdlib",
        "path": f"{name}.py",
        "license": "PSF-2.0",
        "meta": json.dumps({"module": name}),
        "kept": True,
        "reason": "",
        "scores": "{}",
        "group": name,
    }


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory, corpus_folder: Path) -> Path:
    """A tokenizer of 512 tokens, trained on the corpus."""
    from groundup.tokens import tokenizer
    from groundup.tokens.config import TokenizerConfig

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.run(TokenizerConfig(vocab_size=512), folder, corpus=corpus_folder)
    return folder


@pytest.fixture(scope="session")
def tokens_folder(tmp_path_factory: pytest.TempPathFactory, corpus_folder: Path, tokenizer_folder: Path) -> Path:
    """The corpus as token shards, several of them."""
    from groundup.tokens import shards
    from groundup.tokens.config import TokensConfig

    folder = tmp_path_factory.mktemp("tokens")
    shards.run(TokensConfig(shard_tokens=60_000), folder, corpus=corpus_folder, tokenizer=tokenizer_folder)
    return folder


@pytest.fixture(scope="session")
def pretrained(
    tmp_path_factory: pytest.TempPathFactory, tokens_folder: Path, tokenizer_folder: Path
) -> Callable[[str], Path]:
    """Call it with a preset: the folder that pre-training a very small model of it has written."""
    from tiny import PRETRAINING

    from groundup.train import pretrain
    from groundup.train.config import PretrainConfig

    @cache
    def folder(preset: str) -> Path:
        out = tmp_path_factory.mktemp(f"pretrain-{preset}")
        settings: Mapping[str, object] = {**PRETRAINING, "preset": preset}
        pretrain.run(PretrainConfig(**settings), out, tokens=tokens_folder, tokenizer=tokenizer_folder)  # type: ignore[arg-type]
        return out

    return folder
