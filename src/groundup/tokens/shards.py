"""Token shards: the corpus as numbers on disk, and reading them back through the page cache.

A folder holds shards, each a `00000.bin` (tokens, little-endian uint16 or uint32) and a `00000.idx` (where in it each
document starts and where the last one ends, little-endian int64), beside them `documents.txt` (document ids, one per
line) and `shards.json`, which says how to read them and names the tokenizer by hash. A document is the tokens of its
text and one `<|end_of_text|>`; `<|begin_of_text|>` is not stored.
"""

import bisect
import functools
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from groundup.errors import UserError
from groundup.record.metrics import Progress
from groundup.storage import hash_file, write_json
from groundup.tokens.config import TokensConfig
from groundup.tokens.documents import count_text_bytes, read_documents
from groundup.tokens.text import TOKENIZER_FILE
from groundup.tokens.tokenizer import Tokenizer, fingerprint_without_appended

Int64s = npt.NDArray[np.int64]

MANIFEST_FILE = "shards.json"
DOCUMENTS_FILE = "documents.txt"
SPLITS = ("train", "heldout")


def run(config: TokensConfig, out: Path, *, corpus: Path, tokenizer: Path) -> None:
    """The stage `tokens`: write `train/` and `heldout/` from the Parquet files of the same names in `corpus`.

    `summary.json` holds `vocab_size`, `dtype`, `tokenizer` (SHA-256 of its file) and, under `splits`, for `train` and
    `heldout` each: `documents`, `tokens`, `bytes` (of UTF-8 text), `bytes_per_token` and `shards`.
    """
    splits = {}
    for split in SPLITS:
        manifest = write_shards(corpus / f"{split}.parquet", out / split, tokenizer, config.shard_tokens)
        splits[split] = {
            "documents": sum(shard["documents"] for shard in manifest["shards"]),
            "tokens": manifest["tokens"],
            "bytes": manifest["bytes"],
            "bytes_per_token": manifest["bytes"] / max(manifest["tokens"], 1),
            "shards": len(manifest["shards"]),
        }
    shared = {key: manifest[key] for key in ("vocab_size", "dtype", "tokenizer")}
    write_json(out / "summary.json", {**shared, "splits": splits})


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The narrowest of uint16 and uint32 that holds every id below `vocab_size`, little-endian."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


@dataclass(frozen=True)
class ShardEntry:
    """One shard in `shards.json`; `bytes` counts the UTF-8 text behind its tokens."""

    name: str
    tokens: int
    documents: int
    bytes: int


@dataclass(frozen=True)
class _Encoded:
    """A document on its way into a shard: its tokens, `<|end_of_text|>` included, as they stand on disk."""

    id: str
    tokens: npt.NDArray[Any]
    text_bytes: int


def write_shards(source: Path, out: Path, tokenizer: Path, shard_tokens: int) -> dict[str, Any]:
    """Encode the documents of the Parquet file `source` into the folder `out`; returns what `shards.json` holds.

    Holds one batch of documents in memory. Whatever an interrupted run has left in `out` is removed first.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    encoder = Tokenizer.load(tokenizer)
    dtype = token_dtype(encoder.vocab_size)
    entries: list[ShardEntry] = []
    with (
        Progress(f"tokens ({out.name})", total=count_text_bytes(source), unit="B") as progress,
        open(out / DOCUMENTS_FILE, "w", encoding="utf-8") as ids,
    ):
        documents = _encode(source, encoder, dtype, progress)
        document = next(documents, None)
        while document is not None:
            entry, document = _write_shard(out, f"{len(entries):05d}", document, documents, shard_tokens, ids)
            entries.append(entry)
    manifest = {
        "dtype": dtype.name,
        "vocab_size": encoder.vocab_size,
        "tokenizer": hash_file(tokenizer / TOKENIZER_FILE),
        "shards": [asdict(entry) for entry in entries],
        "documents": DOCUMENTS_FILE,
        "tokens": sum(entry.tokens for entry in entries),
        "bytes": sum(entry.bytes for entry in entries),
    }
    write_json(out / MANIFEST_FILE, manifest)
    return manifest


def _encode(source: Path, tokenizer: Tokenizer, dtype: np.dtype[Any], progress: Progress) -> Iterator[_Encoded]:
    for ids, texts in read_documents(source):
        for index, text, tokens in zip(ids, texts, tokenizer.encode_batch(texts), strict=True):
            tokens.append(tokenizer.eos_id)
            text_bytes = len(text.encode())
            yield _Encoded(index, np.array(tokens, dtype=dtype), text_bytes)
            progress.advance(text_bytes)


def _write_shard(
    out: Path, name: str, first: _Encoded, rest: Iterator[_Encoded], shard_tokens: int, ids: IO[str]
) -> tuple[ShardEntry, _Encoded | None]:
    """Write documents, never splitting one, until the shard is full; returns also the one that did not fit."""
    offsets = [0]
    text_bytes = 0
    document: _Encoded | None = first
    with open(out / f"{name}.bin", "wb") as file:
        while document is not None and (document is first or offsets[-1] + len(document.tokens) <= shard_tokens):
            file.write(document.tokens.tobytes())
            ids.write(f"{document.id}\n")
            offsets.append(offsets[-1] + len(document.tokens))
            text_bytes += document.text_bytes
            document = next(rest, None)
    (out / f"{name}.idx").write_bytes(np.array(offsets, dtype="<i8").tobytes())
    return ShardEntry(name, offsets[-1], len(offsets) - 1, text_bytes), document


class Shards:
    """The shards of a folder as one long stream of tokens.

    vocab_size: size of the vocabulary they were encoded with.
    total_tokens, total_bytes: of the whole stream; bytes are those of the UTF-8 text behind it.
    offsets: (documents + 1,) int64, where in the stream each document starts; the last value is `total_tokens`.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], arrays: list[npt.NDArray[Any]], offsets: Int64s) -> None:
        self.folder = folder
        self.vocab_size: int = manifest["vocab_size"]
        self.total_tokens: int = manifest["tokens"]
        self.total_bytes: int = manifest["bytes"]
        self.offsets = offsets
        self._fingerprint: str = manifest["tokenizer"]
        self._documents_file: str = manifest["documents"]
        self._arrays = arrays
        self._starts = [0, *np.cumsum([len(array) for array in arrays]).tolist()]

    @classmethod
    def open(cls, folder: Path) -> "Shards":
        """Map the shards of `folder` into memory; no token is read yet.

        Raises UserError where the folder holds no shards, or a file is not as long as `shards.json` says.
        """
        manifest = _read_manifest(folder)
        dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        arrays: list[npt.NDArray[Any]] = []
        offsets = [np.zeros(1, dtype=np.int64)]
        for entry in (ShardEntry(**shard) for shard in manifest["shards"]):
            path = folder / f"{entry.name}.bin"
            _check_size(path, entry.tokens * dtype.itemsize)
            arrays.append(np.memmap(path, dtype=dtype, mode="r"))
            offsets.append(_read_offsets(folder / f"{entry.name}.idx", entry)[1:] + offsets[-1][-1])
        return cls(folder, manifest, arrays, np.concatenate(offsets))

    def tokens(self, start: int, stop: int) -> Int64s:
        """Tokens start … stop - 1 of the stream, (stop - start,) int64. Raises ValueError outside the stream."""
        if not 0 <= start <= stop <= self.total_tokens:
            raise ValueError(f"tokens {start} to {stop} are outside the stream of {self.total_tokens}")
        result = np.empty(stop - start, dtype=np.int64)
        filled = 0
        shard = bisect.bisect_right(self._starts, start) - 1
        while filled < len(result):
            begin = start + filled - self._starts[shard]
            piece = self._arrays[shard][begin : begin + len(result) - filled]
            result[filled : filled + len(piece)] = piece
            filled += len(piece)
            shard += 1
        return result

    @functools.cached_property
    def document_ids(self) -> list[str]:
        """The id of each document, in the order of the stream. Raises UserError where their number does not fit."""
        path = self.folder / self._documents_file
        if not path.is_file():
            raise UserError(f"{path}: no such file, but `{MANIFEST_FILE}` names it; make the shards anew")
        ids = path.read_text(encoding="utf-8").split("\n")[:-1]
        if len(ids) != len(self.offsets) - 1:
            raise UserError(
                f"{path}: {len(ids)} document ids for {len(self.offsets) - 1} documents; make the shards anew"
            )
        return ids

    def document_at(self, position: int) -> int:
        """The number of the document that holds token `position` of the stream."""
        if not 0 <= position < self.total_tokens:
            raise ValueError(f"token {position} is outside the stream of {self.total_tokens}")
        return int(np.searchsorted(self.offsets, position, side="right")) - 1

    def check_tokenizer(self, folder: Path) -> None:
        """Raises UserError unless `folder` holds the tokenizer that these shards were encoded with.

        Control tokens that pre-training appended to it make no difference: text never holds them.
        """
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise UserError(f"{path}: no such file; the shards in {self.folder} need the tokenizer that made them")
        if hash_file(path) != self._fingerprint and fingerprint_without_appended(folder) != self._fingerprint:
            raise UserError(
                f"{path}: not the tokenizer of the shards in {self.folder}; "
                f"they were made with the one of SHA-256 {self._fingerprint[:12]}…"
            )


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise UserError(f"{path}: no such file; a folder of token shards, as the stage `tokens` writes, holds it")
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); make the shards anew") from None
    missing = {"dtype", "vocab_size", "tokenizer", "shards", "documents", "tokens", "bytes"} - manifest.keys()
    if missing:
        raise UserError(f"{path}: no key `{min(missing)}`; make the shards anew")
    return manifest


def _read_offsets(path: Path, entry: ShardEntry) -> Int64s:
    _check_size(path, (entry.documents + 1) * 8)
    offsets = np.fromfile(path, dtype="<i8").astype(np.int64)
    if offsets[0] != 0 or offsets[-1] != entry.tokens or (np.diff(offsets) < 1).any():
        raise UserError(f"{path}: document offsets do not fit the {entry.tokens} tokens of shard {entry.name}")
    return offsets


def _check_size(path: Path, expected: int) -> None:
    if not path.is_file():
        raise UserError(f"{path}: no such file, but `{MANIFEST_FILE}` names it; make the shards anew")
    size = path.stat().st_size
    if size != expected:
        raise UserError(
            f"{path}: {size} bytes where `{MANIFEST_FILE}` says {expected}; copy the file again or make the shards anew"
        )
