"""The corpus stage: raw text in, clean documents out, each kept or rejected for a reason that can be read.

    read → clean → judge ─▶ spool ─▶ deduplicate → split → cut held-out quotes ─▶ train, heldout, rejected, passages
    (several processes)    (one pass each, in corpus order, one chunk in memory)

The output depends on the text and the config alone: not on the number of processes, the file system's order or the
folder's place. Between the two passes the rows lie in a spool file, so a corpus may be larger than memory; what stays
in memory of a document is little more than its 448-byte signature.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from groundup.corpus.config import CorpusConfig
from groundup.corpus.decontaminate import Match, Quote, QuoteIndex, cut, idioms, merge, widen_to_sentences
from groundup.corpus.dedup import Signatures, near_duplicates, shingles
from groundup.corpus.parallel import ordered_map, usable_cores
from groundup.corpus.passages import find_passages
from groundup.corpus.prepare import ROW_SCHEMA, Prepared, chunks, document_id, prepare
from groundup.corpus.sources import read_documents, source_bytes
from groundup.corpus.split import choose_heldout
from groundup.corpus.summary import Summary
from groundup.corpus.tables import DOCUMENT_SCHEMA, PASSAGE_SCHEMA, TableWriter
from groundup.corpus.words import Chunk, Hashes
from groundup.errors import UserError
from groundup.record.metrics import MEASURED_FILE, Progress
from groundup.storage import write_atomically, write_json

# Workers cost about 15 % more CPU time (imports, sending rows) to save time on idle cores; on small sources the
# imports alone would eat the gain. A cautious guess: the break-even on an otherwise idle machine is not measured.
BYTES_PER_WORKER = 24 << 20


def run(config: CorpusConfig, out: Path, *, workers: int | None = None) -> None:
    """Make a corpus of `config.paths` in the folder `out`.

    Writes train.parquet, heldout.parquet, rejected.parquet and passages.parquet (columns: `tables.py`), summary.json
    (keys: `Summary.table`) and timings.jsonl (seconds and MB/s, which differ from run to run).
    workers: processes to prepare documents on; by default as many cores as pay. The output does not depend on it.
    Raises UserError for a source that cannot be read and where no document is left.
    """
    started, cpu_started = time.perf_counter(), _cpu_seconds()
    total_bytes = source_bytes(config)
    if workers is None:
        workers = min(usable_cores(), total_bytes // BYTES_PER_WORKER)
    summary = Summary(source_bytes=total_bytes)
    with _spool_file(out) as spool:
        catalogue = _prepare_all(config, spool, workers, summary)
        with pa.memory_map(str(spool)) as memory:
            rows = pa.ipc.open_file(memory)
            _reject_exact_duplicates(catalogue)
            if config.near_duplicate_threshold < 1:
                _reject_near_duplicates(catalogue, rows, config.near_duplicate_threshold)
            heldout = _hold_out(catalogue, config.heldout_fraction)
            index = _index_heldout(catalogue, heldout, rows, config.quote_words)
            quotes = _find_quotes(catalogue, heldout, rows, index)
            _write_all(catalogue, heldout, rows, quotes, config, out, summary)
    write_json(out / "summary.json", summary.table())
    _write_timings(out, summary.raw_bytes, time.perf_counter() - started, _cpu_seconds() - cpu_started)


@dataclass
class Catalogue:
    """What stays in memory of each document, in corpus order. `first[b]` is the first document of batch b."""

    ids: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    # What the comparison with other documents found, to go with the scores.
    findings: dict[int, dict[str, Any]] = field(default_factory=dict)
    signatures: list[Signatures] = field(default_factory=list)
    first: list[int] = field(default_factory=lambda: [0])

    def append(self, prepared: Prepared) -> None:
        """Take up a batch of documents, behind those before it."""
        rows = prepared.rows
        self.ids += rows["id"].to_pylist()
        self.groups += rows["group"].to_pylist()
        self.sizes += pc.binary_length(rows["text"]).to_pylist()
        self.reasons += rows["reason"].to_pylist()
        self.signatures.append(prepared.signatures)
        self.first.append(len(self.ids))

    def kept(self) -> list[int]:
        """The numbers of the documents that nothing has rejected so far."""
        return [document for document, reason in enumerate(self.reasons) if not reason]

    def reject_copy(self, document: int, reason: str, keeper: int, similarity: float) -> None:
        """Reject a document for another that stays. similarity: Jaccard, of word shingles, 1 for equal texts."""
        self.reasons[document] = reason
        self.findings[document] = {"copy_of": self.ids[keeper], "similarity": round(similarity, 4)}


@contextmanager
def _spool_file(out: Path) -> Iterator[Path]:
    """Where the rows wait while documents are compared; hidden, and gone at the end however that comes."""
    path = out / ".rows.arrow"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _prepare_all(config: CorpusConfig, spool: Path, workers: int, summary: Summary) -> Catalogue:
    """Read and judge every document; the rows go to the spool, what is needed to compare them to the catalogue."""
    catalogue = Catalogue()
    work = ((config, chunk) for chunk in chunks(read_documents(config)))
    with Progress("corpus: read", summary.source_bytes, "B") as progress, pa.ipc.new_file(spool, ROW_SCHEMA) as writer:
        for prepared in ordered_map(prepare, work, workers):
            writer.write_batch(prepared.rows)
            catalogue.append(prepared)
            summary.raw_documents += prepared.rows.num_rows
            summary.raw_bytes += prepared.raw_bytes
            summary.count_cuts(prepared.cuts)
            progress.advance(prepared.read_bytes, documents=summary.raw_documents)
    return catalogue


def _reject_exact_duplicates(catalogue: Catalogue) -> None:
    """Of documents with the same text the first stays."""
    first: dict[str, int] = {}
    for document in catalogue.kept():
        keeper = first.setdefault(catalogue.ids[document], document)
        if keeper != document:
            catalogue.reject_copy(document, "exact duplicate", keeper, 1.0)


def _reject_near_duplicates(catalogue: Catalogue, rows: pa.RecordBatchFileReader, threshold: float) -> None:
    documents = np.array(catalogue.kept(), np.int64)

    def read_shingles(indices: Sequence[int]) -> dict[int, Hashes]:
        """Of the documents compared, those with these numbers: each batch of rows is read once."""
        sets: dict[int, Hashes] = {}
        batches = np.searchsorted(catalogue.first, documents[list(indices)], side="right") - 1
        for batch in np.unique(batches):
            members = [index for index, home in zip(indices, batches, strict=True) if home == batch]
            texts = rows.get_batch(int(batch))["text"].cast(pa.large_binary())
            chunk = Chunk([texts[int(documents[index]) - catalogue.first[batch]].as_py() for index in members])
            sets.update(zip(members, shingles(chunk), strict=True))
        return sets

    signatures = np.concatenate(catalogue.signatures)[documents]
    catalogue.signatures.clear()
    for index, duplicate in near_duplicates(signatures, read_shingles, threshold).items():
        catalogue.reject_copy(
            int(documents[index]), "near duplicate", int(documents[duplicate.keeper]), duplicate.similarity
        )


def _hold_out(catalogue: Catalogue, fraction: float) -> npt.NDArray[np.bool_]:
    """Which documents are held out; rejected ones never are."""
    kept = catalogue.kept()
    if not kept:
        raise UserError(_nothing_left(catalogue))
    heldout = np.zeros(len(catalogue.ids), np.bool_)
    heldout[kept] = choose_heldout(
        [catalogue.groups[document] for document in kept], [catalogue.sizes[document] for document in kept], fraction
    )
    return heldout


def _nothing_left(catalogue: Catalogue) -> str:
    counts: dict[str, int] = {}
    for reason in catalogue.reasons:
        counts[reason] = counts.get(reason, 0) + 1
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    reasons = ", ".join(f"{count} {reason}" for reason, count in ranked)
    return (
        f"no document is left of {len(catalogue.ids)} ({reasons or 'the sources are empty'}); "
        "give other text, a lower `min_chars` or `quality_filters = false`"
    )


def _index_heldout(
    catalogue: Catalogue, heldout: npt.NDArray[np.bool_], rows: pa.RecordBatchFileReader, quote_words: int
) -> QuoteIndex:
    texts = []
    for batch, first in enumerate(catalogue.first[:-1]):
        chosen = np.flatnonzero(heldout[first : catalogue.first[batch + 1]])
        if len(chosen):
            passages = rows.get_batch(batch)["passages"].take(chosen).to_pylist()
            texts += [passage["text"] for found in passages for passage in found]
    return QuoteIndex(texts, quote_words)


def _find_quotes(
    catalogue: Catalogue, heldout: npt.NDArray[np.bool_], rows: pa.RecordBatchFileReader, index: QuoteIndex
) -> dict[int, list[Quote]]:
    """What each training document quotes from held-out passages; idiom that many share is none."""
    matches: list[tuple[int, Match]] = []
    for batch, first in enumerate(catalogue.first[:-1]):
        table = rows.get_batch(batch)
        probes = table["probes"]
        suspects = [
            document
            for document in (first + index.suspects(probes.values.to_numpy(), probes.offsets.to_numpy())).tolist()
            if not catalogue.reasons[document] and not heldout[document]
        ]
        texts = table["text"].cast(pa.large_binary()).take(np.array(suspects, np.int64) - first)
        matches += [(suspects[match.document], match) for match in index.find(Chunk(texts.to_pylist()))]
    idiom = idioms((catalogue.groups[document], match) for document, match in matches)
    by_document: dict[int, list[Match]] = {}
    for document, match in matches:
        if match.run not in idiom:
            by_document.setdefault(document, []).append(match)
    return {document: merge(found) for document, found in by_document.items()}


def _write_all(
    catalogue: Catalogue,
    heldout: npt.NDArray[np.bool_],
    rows: pa.RecordBatchFileReader,
    quotes: Mapping[int, Sequence[Quote]],
    config: CorpusConfig,
    out: Path,
    summary: Summary,
) -> None:
    """Cut the quotes out of the training documents and write every row to the table it belongs to."""
    with open_tables(out) as writers, Progress("corpus: write", sum(catalogue.sizes), "B") as progress:
        for batch, first in enumerate(catalogue.first[:-1]):
            for document, row in enumerate(rows.get_batch(batch).drop_columns("probes").to_pylist(), start=first):
                row["reason"] = catalogue.reasons[document]
                row["findings"] = catalogue.findings.get(document, {})
                row["split"] = "heldout" if heldout[document] else "train"
                if document in quotes:
                    _cut_quotes(row, quotes[document], config.min_chars, summary)
                write_row(row, writers, summary)
                progress.advance(catalogue.sizes[document])


def _cut_quotes(row: dict[str, Any], quotes: Sequence[Quote], min_chars: int, summary: Summary) -> None:
    """Take from a training row what a held-out passage says; a row that does not survive it gets a reason."""
    text = row["text"].encode()
    quoted = [text[quote.start : quote.end].decode() for quote in quotes]
    summary.count_quotes(row["path"], quoted)
    row["findings"]["quoted_chars_cut"] = sum(map(len, quoted))
    # In a program only the words of a docstring go, so that it stays a program.
    left = cut(text, quotes if row["kind"] == "python" else widen_to_sentences(text, quotes)).decode()
    if len(left) < min_chars:
        row["reason"] = "quotes held-out text"
        return
    try:
        row["passages"] = [vars(passage) for passage in find_passages(left, row["kind"], row["path"])]
    except SyntaxError:
        row["reason"] = "quotes held-out text in its code"
        return
    row["id"], row["text"] = document_id(left.encode()), left


@contextmanager
def open_tables(out: Path) -> Iterator[dict[str, TableWriter]]:
    """The four tables of a corpus, by name."""
    schemas = {
        "train": DOCUMENT_SCHEMA,
        "heldout": DOCUMENT_SCHEMA,
        "rejected": DOCUMENT_SCHEMA,
        "passages": PASSAGE_SCHEMA,
    }
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(TableWriter(out / f"{name}.parquet", schema)) for name, schema in schemas.items()
        }


def write_row(row: dict[str, Any], writers: Mapping[str, TableWriter], summary: Summary) -> None:
    """Write one document (ROW_SCHEMA, with `split` and `findings`) and its passages to the tables they belong to."""
    size = len(row["text"].encode())
    row["kept"] = not row["reason"]
    if row["findings"]:
        row["scores"] = json.dumps({**json.loads(row["scores"]), **row["findings"]})
    if not row["kept"]:
        writers["rejected"].write(row)
        summary.count_rejected(row["reason"], row["path"], row["text"], size)
        return
    writers[row["split"]].write(row)
    summary.count_kept(row["split"], row["group"], size, len(row["passages"]))
    for passage in row["passages"]:
        identity = "\0".join((row["id"], passage["name"], passage["signature"], passage["text"]))
        writers["passages"].write(
            {
                **passage,
                "id": xxhash.xxh3_128_hexdigest(identity.encode()),
                "group": row["group"],
                "split": row["split"],
                "document": row["id"],
            }
        )


def _write_timings(out: Path, raw_bytes: int, seconds: float, cpu_seconds: float) -> None:
    measured = {
        "step": 0,
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "mb_per_second": round(raw_bytes / 1e6 / seconds, 3),
        "mb_per_cpu_second": round(raw_bytes / 1e6 / cpu_seconds, 3),
    }
    write_atomically(out / MEASURED_FILE, json.dumps(measured) + "\n")


def _cpu_seconds() -> float:
    """Of this process and of the worker processes that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system
