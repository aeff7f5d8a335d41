"""The stage `documents`: documents that were cleaned and split elsewhere, taken as they are.

What comes out is a corpus folder like any other, so that all later stages work on it. Nothing is stripped, filtered,
deduplicated or moved between train and held-out: figures on a split of one's own stay comparable with other people's.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from groundup.corpus.config import CorpusConfig, DocumentsConfig
from groundup.corpus.passages import find_passages
from groundup.corpus.pipeline import open_tables, write_row
from groundup.corpus.prepare import document_id
from groundup.corpus.sources import Document, read_documents, source_bytes, source_fingerprint
from groundup.corpus.summary import Summary
from groundup.record.metrics import Progress
from groundup.storage import write_json


def fingerprint(config: DocumentsConfig) -> str:
    """A hash of the names and bytes of all source files."""
    return "-".join(source_fingerprint(source) for source in _sources(config).values())


def run(config: DocumentsConfig, out: Path) -> None:
    """Write the corpus folder `out`: the files that the stage `corpus` writes, with the same columns and keys.

    Raises UserError for a source that cannot be read.
    """
    sources = _sources(config)
    summary = Summary(source_bytes=sum(source_bytes(source) for source in sources.values()))
    with open_tables(out) as writers, Progress("documents", summary.source_bytes, "B") as progress:
        for split, source in sources.items():
            for row, read_bytes in _rows(read_documents(source), split):
                summary.raw_documents += 1
                summary.raw_bytes += len(row["text"].encode())
                write_row(row, writers, summary)
                progress.advance(read_bytes)
    write_json(out / "summary.json", summary.table())


def _sources(config: DocumentsConfig) -> dict[str, CorpusConfig]:
    """Where the text of each split is read from."""
    paths = {"train": config.train, "heldout": config.heldout}
    return {split: CorpusConfig(paths=entry, text_columns=config.text_columns) for split, entry in paths.items()}


def _rows(documents: Iterable[Document], split: str) -> Iterable[tuple[dict[str, Any], int]]:
    for document in documents:
        # JSON can spell half a surrogate pair, which no UTF-8 text can hold.
        text = document.text.encode("utf-8", errors="replace")
        row = {
            "id": document_id(text),
            "text": text.decode(),
            "source": document.source,
            "path": document.path,
            "license": document.license,
            "meta": json.dumps(document.meta, ensure_ascii=False, sort_keys=True),
            "group": document.group,
            "split": split,
            "reason": document.problem,
            "scores": "{}",
            "findings": {},
            "passages": [vars(passage) for passage in _passages(text.decode(), document)],
        }
        yield row, document.read_bytes


def _passages(text: str, document: Document) -> Iterable[Any]:
    try:
        # Rows of a JSON file say themselves which file they were.
        return find_passages(text, document.kind, str(document.meta.get("path", document.path)))
    except SyntaxError:
        return []
