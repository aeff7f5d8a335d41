"""A sample of shards: whole parts of real documents, never more than asked for, the same whatever the order."""

from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from groundup.tokens.sample import PART_TOKENS, TextSample, sample_text, text_of
from groundup.tokens.shards import Shards, write_shards
from groundup.tokens.tokenizer import Tokenizer

ACCENTS = "".join(f"é{number} " for number in range(2000))


def store(texts: list[str], out: Path, tokenizer_folder: Path) -> Shards:
    """The texts as shards of several files; their ids follow from their content, as the corpus stage has it."""
    ids = [xxhash.xxh3_128_hexdigest(text.encode()) for text in texts]
    out.mkdir()
    pq.write_table(
        pa.table({"id": pa.array(ids, pa.string()), "text": pa.array(texts, pa.string())}), out / "a.parquet"
    )
    write_shards(out / "a.parquet", out / "shards", tokenizer_folder, shard_tokens=20_000)
    return Shards.open(out / "shards")


@pytest.fixture(scope="module")
def shards(documents: list[str], tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return store([*documents, ACCENTS], tmp_path_factory.mktemp("stored") / "all", tokenizer_folder)


def drawn_texts(shards: Shards, words: Tokenizer, megabytes: float) -> list[bytes]:
    return text_of(sample_text(shards, words, megabytes), words)


def test_what_is_no_more_than_asked_for_is_taken_as_it_is(shards: Shards, tokenizer: Tokenizer, documents: list[str]):
    assert sample_text(shards, tokenizer, 0) is shards
    assert sample_text(shards, tokenizer, shards.total_bytes / 1e6) is shards
    assert text_of(shards, tokenizer) == [text.encode() for text in [*documents, ACCENTS]]


def test_a_sample_is_parts_of_documents_in_their_order_with_their_exact_bytes(shards: Shards, tokenizer: Tokenizer):
    sample = sample_text(shards, tokenizer, 0.05)
    assert isinstance(sample, TextSample)
    drawn = text_of(sample, tokenizer)
    assert sample.total_bytes == sum(map(len, drawn))
    assert 50_000 - PART_TOKENS * 8 < sample.total_bytes <= 50_000
    # Every part of every document, by brute force.
    stream, offsets = shards.tokens(0, shards.total_tokens).tolist(), shards.offsets.tolist()
    parts = [
        stream[first : min(first + PART_TOKENS, stop)]
        for start, stop in pairwise(offsets)
        for first in range(start, stop, PART_TOKENS)
    ]
    found = [
        sample.tokens(start, stop).tolist()
        for start, stop in zip(sample.offsets[:-1].tolist(), sample.offsets[1:].tolist(), strict=True)
    ]
    places = [parts.index(part) for part in found]
    assert places == sorted(set(places))
    assert sample.total_tokens == sum(map(len, found)) == sample.offsets[-1]


def test_a_long_document_does_not_crowd_out_the_others(documents: list[str], tokenizer_folder: Path, tmp_path: Path):
    words = Tokenizer.load(tokenizer_folder)
    book = "\n\n".join(documents).upper()
    drawn = drawn_texts(store([book, *documents], tmp_path / "books", tokenizer_folder), words, 0.06)
    from_book = [text for text in drawn if text.upper() == text]
    # The book is half of all text, and longer than the sample.
    assert len(book) > 60_000
    assert len(from_book) > 2
    assert 10_000 < sum(map(len, from_book)) < 50_000


def test_a_sample_depends_on_the_documents_alone(documents: list[str], tokenizer_folder: Path, tmp_path: Path):
    words = Tokenizer.load(tokenizer_folder)
    forth = store(documents, tmp_path / "forth", tokenizer_folder)
    back = store(documents[::-1], tmp_path / "back", tokenizer_folder)
    assert sorted(drawn_texts(forth, words, 0.03)) == sorted(drawn_texts(back, words, 0.03))
    assert set(drawn_texts(forth, words, 0.03)) < set(drawn_texts(forth, words, 0.06))


def test_the_smallest_sample_is_one_part(shards: Shards, tokenizer: Tokenizer):
    assert len(drawn_texts(shards, tokenizer, 1e-6)) == 1
