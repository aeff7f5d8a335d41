"""Words, lines and runs of words against their plain definition in pure Python."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.corpus.words import Chunk, Units, distinct, word_grams, word_grams_at

# Letters, digits, punctuation of one, two and three bytes, letters of two, three and four bytes.
TEXTS = st.lists(st.text("ab Z0_9.,'\n\tß中😀«»—…“”\u00a0\u3000、", max_size=60), min_size=1, max_size=6)
# Latin-1 signs, general punctuation and CJK punctuation part words; so does all ASCII but letters, digits and `_`.
SEPARATORS = re.compile("[\x00-/:-@\\[-^`{-\x7f\u0080-\u00bf\u2000-\u206f\u3000-\u303f]+")


def plain_words(text: str) -> list[str]:
    return [re.sub("[A-Z]", lambda match: match[0].lower(), word) for word in SEPARATORS.split(text) if word]


def units_of(units: Units, document: int) -> list[int]:
    return units.hashes[units.first[document] : units.first[document + 1]].tolist()


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_words_are_those_of_the_plain_definition(texts: list[str]):
    chunk = Chunk([text.encode() for text in texts])
    meaning: dict[str, int] = {}
    for document, text in enumerate(texts):
        words = plain_words(text)
        hashes = units_of(chunk.words, document)
        assert len(hashes) == len(words)
        for word, value in zip(words, hashes, strict=True):
            assert meaning.setdefault(word, value) == value
    assert len(set(meaning.values())) == len(meaning)


@given(TEXTS, st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_two_runs_have_one_hash_exactly_if_their_words_are_equal(texts: list[str], size: int):
    chunk = Chunk([text.encode() for text in texts])
    grams = word_grams(chunk.words, size)
    expected = [
        (document, tuple(words[start : start + size]))
        for document, words in enumerate(map(plain_words, texts))
        for start in range(len(words) - size + 1)
    ]
    assert grams.documents.tolist() == [document for document, _ in expected]
    counts = [sum(document == owner for owner, _ in expected) for document in range(len(texts))]
    assert np.diff(grams.first).tolist() == counts
    assert grams.first[0] == 0
    assert len(set(grams.hashes.tolist())) == len({run for _, run in expected})
    assert len(set(zip(grams.hashes.tolist(), (run for _, run in expected), strict=True))) == len(
        {run for _, run in expected}
    )


@given(st.lists(st.integers(0, 5) | st.integers(0, 2**64 - 1)))
def test_distinct_hashes_are_those_of_a_set_in_order(values: list[int]):
    assert distinct(np.array(values, np.uint64)).tolist() == sorted(set(values))


def test_runs_at_given_words_are_those_found_everywhere():
    chunk = Chunk([b"one two three four", b"five six", b"seven eight nine"])
    everywhere = word_grams(chunk.words, 3)
    at = word_grams_at(chunk.words, 3, np.arange(len(chunk.words.hashes)))
    assert at.positions.tolist() == everywhere.positions.tolist() == [0, 1, 6]
    assert at.hashes.tolist() == everywhere.hashes.tolist()


def test_a_word_has_the_same_hash_wherever_it_stands():
    texts = [b"x" * length + b" needle" for length in range(0, 3000, 7)]
    chunk = Chunk(texts)
    hashes = {units_of(chunk.words, document)[-1] for document in range(len(texts))}
    assert hashes == {units_of(Chunk([b"Needle!"]).words, 0)[0]}


def test_bytes_of_words_are_where_they_stand_in_the_text():
    texts = ["Über “den” Wolken".encode(), b"above"]
    chunk = Chunk(texts)
    found = [
        bytes(chunk.data[start:end]).decode() for start, end in zip(chunk.words.starts, chunk.words.ends, strict=True)
    ]
    assert found == ["Über", "den", "Wolken", "above"]


@pytest.mark.parametrize("texts", [[b""], [b"", b""], [b"", b"a", b""], [b"\n\n"], [b"."]])
def test_empty_documents_have_no_words_and_keep_their_place(texts: list[bytes]):
    chunk = Chunk(texts)
    assert chunk.words.counts.tolist() == [text.count(b"a") for text in texts]
    assert chunk.lines.counts.tolist() == [text.count(b"a") for text in texts]
    assert len(word_grams(chunk.words, 5).hashes) == 0


def test_lines_ignore_case_and_punctuation_and_leave_out_rulers():
    chunk = Chunk([b"Same line.\n-----\n\nsame LINE!\nanother\n"])
    first, second, third = units_of(chunk.lines, 0)
    assert first == second != third
