"""Find in training text what it shares with held-out passages, word for word, and cut just that.

A quote is a run of `quote_words` words that also stands in a held-out passage, or a whole passage of at least
SHORTEST_QUOTE words. Shorter agreement ("Return the number of items.") is idiom: to cut it would remove innocent text
and protect no question. Case, punctuation and line breaks do not hide a quote.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from groundup.corpus.words import Chunk, Hashes, Units, word_grams

SHORTEST_QUOTE = 8

# A first look-up in a table of bits that fits the cache spares nearly all searches in the sorted hashes.
_SIEVE_BITS = 23


@dataclass(frozen=True)
class Quote:
    """A quote in document `document` of a chunk: its bytes in the document's UTF-8 text, and its length in words."""

    document: int
    start: int
    end: int
    words: int


class QuoteIndex:
    """The word runs of the held-out passages.

    passages: their texts. quote_words: at least SHORTEST_QUOTE.
    """

    def __init__(self, passages: Sequence[str], quote_words: int) -> None:
        self._quote_words = quote_words
        words = Chunk([passage.encode() for passage in passages]).words
        # Every quote starts with one of these; those that begin whole passages and long runs are told apart later.
        self._probes = np.unique(word_grams(words, SHORTEST_QUOTE).hashes)
        self._sieve = np.zeros(1 << _SIEVE_BITS, np.bool_)
        self._sieve[self._probes >> np.uint64(64 - _SIEVE_BITS)] = True
        self._runs = np.unique(word_grams(words, quote_words).hashes)
        # {length: hashes of the whole passages of that length}, for passages too short to hold a run.
        self._whole = {
            length: _whole_passages(words, length)
            for length in range(SHORTEST_QUOTE, quote_words)
            if (words.counts == length).any()
        }

    def find(self, chunk: Chunk) -> list[Quote]:
        """The quotes in the documents of a chunk, in order; overlapping ones are one."""
        probes = word_grams(chunk.words, SHORTEST_QUOTE)
        sieved = np.flatnonzero(self._sieve[probes.hashes >> np.uint64(64 - _SIEVE_BITS)])
        hits = probes.positions[sieved[_is_in(probes.hashes[sieved], self._probes)]]
        if len(hits) == 0:
            return []
        quoted = np.zeros(len(chunk.words.hashes), np.bool_)
        for length, known in [(self._quote_words, self._runs), *self._whole.items()]:
            runs = word_grams(chunk.words, length, at=hits)
            found = runs.positions[_is_in(runs.hashes, known)]
            for offset in range(length):
                quoted[found + offset] = True
        return _spans(quoted, chunk)


def cut(text: bytes, quotes: Sequence[Quote]) -> bytes:
    """The text of one document without its quotes, byte for byte; punctuation around them stays."""
    pieces = []
    position = 0
    for quote in quotes:
        pieces.append(text[position : quote.start])
        position = quote.end
    return b"".join([*pieces, text[position:]])


def cut_paragraphs(text: bytes, quotes: Sequence[Quote]) -> bytes:
    """The text of one document without the paragraphs that hold its quotes.

    A paragraph ends at a blank line, or at a line end where the text has no blank line.
    """
    separator = b"\n\n" if b"\n\n" in text.strip() else b"\n"
    kept = []
    start = 0
    for paragraph in text.split(separator):
        end = start + len(paragraph)
        if not any(quote.start < end and quote.end > start for quote in quotes):
            kept.append(paragraph)
        start = end + len(separator)
    return separator.join(kept)


def _whole_passages(words: Units, length: int) -> Hashes:
    grams = word_grams(words, length)
    return np.unique(grams.hashes[words.counts[grams.documents] == length])


def _is_in(hashes: Hashes, known: Hashes) -> npt.NDArray[np.bool_]:
    """Which hashes are among the sorted `known` ones."""
    if len(known) == 0:
        return np.zeros(len(hashes), np.bool_)
    return known[np.minimum(np.searchsorted(known, hashes), len(known) - 1)] == hashes


def _spans(quoted: npt.NDArray[np.bool_], chunk: Chunk) -> list[Quote]:
    """Runs of quoted words, none across a document's end."""
    words = chunk.words
    documents = words.documents
    marked = np.flatnonzero(quoted)
    if len(marked) == 0:
        return []
    breaks = (np.diff(marked) > 1) | (np.diff(documents[marked]) > 0)
    firsts = marked[np.concatenate([[True], breaks])]
    lasts = marked[np.concatenate([breaks, [True]])]
    return [
        Quote(
            int(documents[first]),
            int(words.starts[first] - chunk.starts[documents[first]]),
            int(words.ends[last] - chunk.starts[documents[first]]),
            int(last - first + 1),
        )
        for first, last in zip(firsts, lasts, strict=True)
    ]
