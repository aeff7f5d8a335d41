"""Find in training text what it shares with held-out passages, word for word, and cut just that.

A quote is a run of `quote_words` words that also stands in a held-out passage, or a whole passage of at least
SHORTEST_QUOTE words. Shorter agreement ("Return the number of items.") is idiom. So is a run, however long, that more
than IDIOM_GROUPS independent training documents have in common: on 24,000 Wikipedia stubs, two in three quotes were
such templates ("… is a species of beetle of the family …"). Rows of numbers are data. To cut either would remove
innocent text and protect no question. Case, punctuation and line breaks do not hide a quote.
"""

import bisect
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from groundup.corpus.words import Chunk, Grams, Hashes, Integers, distinct, word_grams, word_grams_at

SHORTEST_QUOTE = 8
IDIOM_GROUPS = 3

_SENTENCE_END = re.compile(rb"[.!?][\"')\]]*\s+|\n\s*\n")
_SENTENCE_OR_LINE_END = re.compile(rb"[.!?][\"')\]]*\s+|\n")

# A first look-up in a table of bits that fits the cache spares nearly all searches in the sorted hashes.
_SIEVE_BITS = 23


@dataclass(frozen=True)
class Match:
    """A run of words in document `document` of a chunk that a held-out passage holds too.

    start, end: bytes in the document's UTF-8 text. run: hash of the words, equal for equal runs.
    """

    document: int
    start: int
    end: int
    run: int


@dataclass(frozen=True)
class Quote:
    """A stretch of a document's UTF-8 text, in bytes."""

    start: int
    end: int


class QuoteIndex:
    """The word runs of the held-out passages.

    passages: their texts. quote_words: at least SHORTEST_QUOTE.
    """

    def __init__(self, passages: Sequence[str], quote_words: int) -> None:
        self._quote_words = quote_words
        chunk = Chunk([passage.encode() for passage in passages])
        words = chunk.words
        # Every match starts with one of these; which of them begin one is looked up later.
        self._probes = distinct(word_grams(words, SHORTEST_QUOTE).hashes)
        self._sieve = np.zeros(1 << _SIEVE_BITS, np.bool_)
        self._sieve[_sieve_slots(self._probes)] = True
        runs = word_grams(words, quote_words)
        self._known = {quote_words: distinct(runs.hashes[_is_told_in_words(chunk, runs)])}
        # Passages too short to hold such a run count as a whole.
        for length in range(SHORTEST_QUOTE, quote_words):
            if (words.counts == length).any():
                self._known[length] = _whole_passages(chunk, length)

    def suspects(self, probes: Hashes, first: Integers) -> Integers:
        """Documents, ascending, that share a run of SHORTEST_QUOTE words with a passage: no other can hold a quote.

        probes: the hashes of all such runs; those of document d are `probes[first[d] : first[d + 1]]`.
        """
        return np.unique(np.searchsorted(first, self._hits(probes), side="right") - 1)

    def find(self, chunk: Chunk) -> list[Match]:
        """The runs that the documents of a chunk share with held-out passages; they may overlap."""
        words = chunk.words
        probes = word_grams(words, SHORTEST_QUOTE)
        hits = probes.positions[self._hits(probes.hashes)]
        matches = []
        for length, known in self._known.items():
            runs = word_grams_at(words, length, hits)
            shared = _is_in(runs.hashes, known)
            documents, positions = runs.documents[shared], runs.positions[shared]
            origins = chunk.starts[documents]
            starts, ends = words.starts[positions] - origins, words.ends[positions + length - 1] - origins
            columns = (documents, starts, ends, runs.hashes[shared])
            matches += [Match(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
        return matches

    def _hits(self, probes: Hashes) -> Integers:
        """Which runs of SHORTEST_QUOTE words a passage holds too."""
        sieved = np.flatnonzero(self._sieve[_sieve_slots(probes)])
        return sieved[_is_in(probes[sieved], self._probes)]


def idioms(matches: Iterable[tuple[str, Match]]) -> set[int]:
    """The runs that more than IDIOM_GROUPS groups of documents share. matches: each with the group of its document."""
    groups: defaultdict[int, set[str]] = defaultdict(set)
    for group, match in matches:
        groups[match.run].add(group)
    return {run for run, sharing in groups.items() if len(sharing) > IDIOM_GROUPS}


def merge(matches: Iterable[Match]) -> list[Quote]:
    """The quotes that the matches of one document make up, in order: matches that touch are one quote."""
    quotes: list[Quote] = []
    for match in sorted(matches, key=lambda match: (match.start, match.end)):
        if quotes and match.start <= quotes[-1].end:
            quotes[-1] = Quote(quotes[-1].start, max(quotes[-1].end, match.end))
        else:
            quotes.append(Quote(match.start, match.end))
    return quotes


def cut(text: bytes, quotes: Sequence[Quote]) -> bytes:
    """The text of one document without its quotes, byte for byte; punctuation around them stays."""
    pieces = []
    position = 0
    for quote in quotes:
        pieces.append(text[position : quote.start])
        position = quote.end
    return b"".join([*pieces, text[position:]])


def widen_to_sentences(text: bytes, quotes: Sequence[Quote]) -> list[Quote]:
    """The quotes with the rest of the sentences they stand in: prose reads better without a sentence than with a hole.

    A sentence ends with its full stop, at a blank line, or at a line end where the text has no blank line.
    """
    ends = _SENTENCE_END if b"\n\n" in text.strip() else _SENTENCE_OR_LINE_END
    boundaries = [0, *(match.end() for match in ends.finditer(text)), len(text)]
    widened: list[Quote] = []
    for quote in quotes:
        start = boundaries[bisect.bisect_right(boundaries, quote.start) - 1]
        end = boundaries[bisect.bisect_left(boundaries, quote.end)]
        if widened and start < widened[-1].end:
            start = widened.pop().start
        widened.append(Quote(start, end))
    return widened


def _sieve_slots(hashes: Hashes) -> Integers:
    # Signed, because NumPy copies an unsigned index to a signed one at three times the cost of the look-up.
    return (hashes >> np.uint64(64 - _SIEVE_BITS)).view(np.int64)


def _whole_passages(chunk: Chunk, length: int) -> Hashes:
    runs = word_grams(chunk.words, length)
    is_whole = chunk.words.counts[runs.documents] == length
    return distinct(runs.hashes[is_whole & _is_told_in_words(chunk, runs)])


def _is_told_in_words(chunk: Chunk, runs: Grams) -> npt.NDArray[np.bool_]:
    """Which runs consist of words rather than numbers, by more than half."""
    first = chunk.data[chunk.words.starts]
    numbers = np.concatenate([[0], np.cumsum((first >= ord("0")) & (first <= ord("9")))])
    is_told: npt.NDArray[np.bool_] = 2 * (numbers[runs.positions + runs.size] - numbers[runs.positions]) < runs.size
    return is_told


def _is_in(hashes: Hashes, known: Hashes) -> npt.NDArray[np.bool_]:
    """Which hashes are among the sorted `known` ones."""
    if len(known) == 0:
        return np.zeros(len(hashes), np.bool_)
    return known[np.minimum(np.searchsorted(known, hashes), len(known) - 1)] == hashes
