"""The documents of a corpus folder, read from Parquet in batches of bounded size."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from groundup.errors import UserError

# Text per batch: enough to keep all cores encoding, while its tokens still take far less than a gigabyte.
_BATCH_BYTES = 4_000_000
_ROWS_PER_READ = 64


def count_text_bytes(path: Path) -> int:
    """The number of UTF-8 bytes in the column `text`. Raises UserError as `read_documents` does."""
    return sum(pc.sum(pc.binary_length(batch.column("text"))).as_py() or 0 for batch in _batches(path))


def read_documents(path: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Batches of (ids, texts) in the order of the file, each of about 4 MB of text or one longer document.

    Raises UserError where the file is missing, is no whole Parquet file, or lacks the columns `id` and `text`.
    """
    ids: list[str] = []
    texts: list[str] = []
    size = 0
    for batch in _batches(path):
        for index, text in zip(batch.column("id").to_pylist(), batch.column("text").to_pylist(), strict=True):
            if texts and size + len(text) > _BATCH_BYTES:
                yield ids, texts
                ids, texts, size = [], [], 0
            ids.append(index)
            texts.append(text)
            size += len(text)
    if texts:
        yield ids, texts


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; the stage `corpus` writes it")
    try:
        with pq.ParquetFile(path) as file:
            missing = {"id", "text"} - set(file.schema_arrow.names)
            if missing:
                raise UserError(f"{path}: no column `{min(missing)}`; a documents file has the columns `id` and `text`")
            yield from file.iter_batches(batch_size=_ROWS_PER_READ, columns=["id", "text"])
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a whole Parquet file ({reason}); make it anew with the stage `corpus`") from error
