"""The documents of a corpus folder, read from Parquet in batches of bounded size."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from groundup.errors import UserError

# Documents per batch: enough to keep all cores encoding, few enough that a batch of long ones stays far from a gigabyte.
_BATCH = 256


def count_documents(path: Path) -> int:
    """The number of documents in a Parquet file, from its footer alone. Raises UserError as `read_documents` does."""
    return int(_open(path).metadata.num_rows)


def read_documents(path: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Batches of (ids, texts) in the order of the file.

    Raises UserError where the file is missing, is no whole Parquet file, or lacks the columns `id` and `text`.
    """
    file = _open(path)
    missing = {"id", "text"} - set(file.schema_arrow.names)
    if missing:
        raise UserError(f"{path}: no column `{min(missing)}`; a documents file has the columns `id` and `text`")
    try:
        for batch in file.iter_batches(batch_size=_BATCH, columns=["id", "text"]):
            yield batch.column("id").to_pylist(), batch.column("text").to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from error


def _open(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise UserError(f"{path}: no such file; the stage `corpus` writes it")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: not a whole Parquet file ({str(error).splitlines()[0]}); make it anew with `corpus`")
