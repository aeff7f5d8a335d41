"""The part of the corpus stage that looks at one document at a time: clean it, judge it, take its fingerprints.

A chunk of documents goes in, a table of rows comes out; any process can do it, so the pipeline spreads it over several.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import xxhash

from groundup.corpus.config import CorpusConfig
from groundup.corpus.decontaminate import SHORTEST_QUOTE
from groundup.corpus.dedup import Signatures, signatures
from groundup.corpus.extract import Extract, extract_python, extract_text
from groundup.corpus.filters import judge
from groundup.corpus.passages import Passage, find_passages
from groundup.corpus.sources import Document
from groundup.corpus.tables import DOCUMENT_SCHEMA
from groundup.corpus.words import Chunk, word_grams

# Large enough for numpy to pay, small enough for the arrays of a chunk to stay in the cache.
CHUNK_CHARS = 1 << 20

_TEXT = pa.large_string()
_PASSAGE = pa.struct([("kind", _TEXT), ("name", _TEXT), ("signature", _TEXT), ("text", _TEXT)])
# What is known of a document before it is compared with others; `passages` only of those that were not rejected.
# probes: hashes of its runs of SHORTEST_QUOTE words, so that its words need not be found again to look for quotes.
ROW_SCHEMA = pa.schema(
    [
        *(field for field in DOCUMENT_SCHEMA if field.name != "kept"),
        pa.field("kind", pa.string()),
        pa.field("passages", pa.list_(_PASSAGE)),
        pa.field("probes", pa.list_(pa.uint64())),
    ]
)


@dataclass(frozen=True)
class Prepared:
    """A chunk of rows (ROW_SCHEMA), the MinHash signature of each, and what was read and cut on the way."""

    rows: pa.RecordBatch
    signatures: Signatures
    read_bytes: int
    raw_bytes: int
    cuts: dict[str, int] = field(default_factory=dict)


def chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in lists of about CHUNK_CHARS characters."""
    gathered: list[Document] = []
    size = 0
    for document in documents:
        gathered.append(document)
        # A document costs something however short it is; a chunk must not hold millions.
        size += len(document.text) + 64
        if size >= CHUNK_CHARS:
            yield gathered
            gathered, size = [], 0
    if gathered:
        yield gathered


def prepare(work: tuple[CorpusConfig, Sequence[Document]]) -> Prepared:
    """Clean, judge and fingerprint a chunk of documents."""
    config, documents = work
    extracts = [_extract(document) for document in documents]
    encoded = [extract.text.encode() for extract in extracts]
    chunk = Chunk(encoded)
    reasons, scores = _judge(config, documents, extracts, chunk)
    passages: list[list[Passage]] = []
    for index, (document, extract) in enumerate(zip(documents, extracts, strict=True)):
        found: list[Passage] = []
        if not reasons[index]:
            try:
                found = find_passages(extract.text, document.kind, document.path)
            except SyntaxError:
                reasons[index] = "does not parse"
        passages.append(found)
    probes = word_grams(chunk.words, SHORTEST_QUOTE)
    rows = pa.RecordBatch.from_pydict(
        {
            "id": [document_id(text) for text in encoded],
            "text": pa.array(encoded, pa.large_binary()).view(_TEXT),
            "source": [document.source for document in documents],
            "path": [document.path for document in documents],
            "license": [document.license for document in documents],
            "meta": [json.dumps(document.meta, ensure_ascii=False, sort_keys=True) for document in documents],
            "group": [document.group for document in documents],
            "kind": [document.kind for document in documents],
            "reason": reasons,
            "scores": scores,
            "passages": [[vars(passage) for passage in found] for found in passages],
            "probes": pa.ListArray.from_arrays(probes.first.astype(np.int32), probes.hashes),
        },
        schema=ROW_SCHEMA,
    )
    return Prepared(
        rows,
        signatures(chunk),
        sum(document.read_bytes for document in documents),
        sum(len(document.text.encode("utf-8", "surrogatepass")) for document in documents),
        {
            name: sum(getattr(extract, name) for extract in extracts)
            for name in ("licence_lines", "licence_chars", "table_lines", "table_chars")
        },
    )


def document_id(text: bytes) -> str:
    """xxh3-128 of the normalised UTF-8 text, hex."""
    return xxhash.xxh3_128_hexdigest(text)


def _extract(document: Document) -> Extract:
    return extract_python(document.text) if document.kind == "python" else extract_text(document.text)


def _judge(
    config: CorpusConfig, documents: Sequence[Document], extracts: Sequence[Extract], chunk: Chunk
) -> tuple[list[str], list[str]]:
    """The reason against each document ('' for none) and its scores as JSON."""
    reasons = [document.problem for document in documents]
    for index, extract in enumerate(extracts):
        if not reasons[index] and len(extract.text) < config.min_chars:
            reasons[index] = "too short"
    if not config.quality_filters:
        return reasons, ["{}"] * len(documents)
    verdicts = judge(chunk, [document.kind == "python" for document in documents])
    scores = [json.dumps(verdict.scores) for verdict in verdicts]
    return [reason or verdict.reason for reason, verdict in zip(reasons, verdicts, strict=True)], scores
