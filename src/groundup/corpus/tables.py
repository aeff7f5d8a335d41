"""The Parquet files of a corpus: their columns, and a writer that takes one row at a time."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_TEXT = pa.large_string()

# reason: '' where kept. meta and scores: JSON objects. group: what the split goes by.
DOCUMENT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", _TEXT),
        ("source", pa.string()),
        ("path", pa.string()),
        ("license", pa.string()),
        ("meta", pa.string()),
        ("kept", pa.bool_()),
        ("reason", pa.string()),
        ("scores", pa.string()),
        ("group", pa.string()),
    ]
)
# kind: function, class or text. name, signature: '' for text. split: train or heldout. document: id of its document.
PASSAGE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("kind", pa.string()),
        ("name", pa.string()),
        ("signature", pa.string()),
        ("text", _TEXT),
        ("group", pa.string()),
        ("split", pa.string()),
        ("document", pa.string()),
    ]
)

# Rows are written in groups of about this much text: small enough to read one at a time, large enough to compress.
_ROW_GROUP_CHARS = 16 << 20


class TableWriter:
    """One Parquet file (zstd), written row by row."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        # Statistics of whole texts would store the first and last text of each group a second time.
        self._file = pq.ParquetWriter(path, schema, compression="zstd", write_statistics=False)
        self._rows: list[Mapping[str, Any]] = []
        self._chars = 0

    def write(self, row: Mapping[str, Any]) -> None:
        """One more row, which must have `text` and the columns of the schema; it may reach the file later."""
        self._rows.append(row)
        self._chars += len(row["text"])
        if self._chars >= _ROW_GROUP_CHARS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._file.close()

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _flush(self) -> None:
        if self._rows:
            columns = {name: [row[name] for row in self._rows] for name in self._schema.names}
            self._file.write_table(pa.Table.from_pydict(columns, schema=self._schema))
            self._rows, self._chars = [], 0
