"""The words and lines of many documents as numpy arrays, found and hashed all at once.

Filters, deduplication and decontamination all ask which words follow each other where. Here that is answered once
per chunk of about a megabyte, on its UTF-8 bytes, without a Python loop over words.

A word is a run of letters, digits and underscores, ASCII letters taken as lower case; every character outside ASCII is
a letter but for punctuation. Punctuation, case and layout thus never tell two texts apart.

Legend: `starts`, `ends` are byte positions in the chunk; `first[d]:first[d + 1]` are the units of document d.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]

# Repetition within a text and likeness between two are both told from runs of so many words.
SHINGLE_WORDS = 5

# A random odd number: invertible modulo 2^64, so a hash can be shifted back to position zero.
_BASE = 0x9E3779B97F4A7C15 | 1
_BASE_INVERSE = pow(_BASE, -1, 1 << 64)
_GRAM_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)


@dataclass(frozen=True)
class Units:
    """Words or lines: where they stand, what they hash to, and which of them belong to which document."""

    starts: Integers
    ends: Integers
    hashes: Hashes
    first: Integers

    @property
    def counts(self) -> Integers:
        """Units of each document."""
        return np.diff(self.first)

    @cached_property
    def documents(self) -> Integers:
        """The document of each unit."""
        return np.repeat(np.arange(len(self.first) - 1), self.counts)


class Chunk:
    """The text of several documents, UTF-8, in one array of bytes; document d is `data[starts[d]:ends[d]]`."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        # The newline between two documents keeps words and lines from running into each other.
        self.data: Bytes = np.frombuffer(b"\n".join([*texts, b""]), dtype=np.uint8)
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        self.starts: Integers = np.concatenate([[0], np.cumsum(lengths + 1)])[:-1].astype(np.int64)
        self.ends: Integers = self.starts + lengths

    @cached_property
    def letters(self) -> Bytes:
        """The bytes of words in lower case, zero between words."""
        # Half the time of `_LETTER_OF_BYTE[self.data]`.
        letters = _LETTER_OF_BYTE.take(self.data)
        for lead, continuations, length in _PUNCTUATION_SEQUENCES:
            leads = np.flatnonzero(self.data[: -length + 1] == lead)
            leads = leads[continuations[self.data[leads + 1]]]
            for offset in range(length):
                letters[leads + offset] = 0
        return letters

    @cached_property
    def words(self) -> Units:
        """Runs of letters, digits and underscores; their hash ignores the case of ASCII letters."""
        inside = np.concatenate([[False], self.letters != 0, [False]])
        edges = np.flatnonzero(inside[1:] != inside[:-1])
        return self._units(edges[::2], edges[1::2])

    @cached_property
    def shingles(self) -> "Grams":
        """Every `SHINGLE_WORDS` words that follow each other in a document."""
        return word_grams(self.words, SHINGLE_WORDS)

    @cached_property
    def lines(self) -> Units:
        """Lines that hold a word. Their hash ignores case and punctuation."""
        ends = np.flatnonzero(self.data == ord("\n"))
        starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
        lines = self._units(starts, ends)
        held = lines.hashes != 0
        first = np.concatenate([[0], np.cumsum(held)])[lines.first]
        return Units(lines.starts[held], lines.ends[held], lines.hashes[held], first.astype(np.int64))

    @cached_property
    def _prefix_hashes(self) -> Hashes:
        """Running sums of byte × base^position: the hash of any span is a difference of two (Karp and Rabin 1987)."""
        terms = self.letters.astype(np.uint64)
        terms *= _powers(_BASE, len(self.data))
        prefix = np.zeros(len(self.data) + 1, np.uint64)
        np.cumsum(terms, out=prefix[1:])
        return prefix

    def _units(self, starts: Integers, ends: Integers) -> Units:
        prefix = self._prefix_hashes
        shifted_back = (prefix[ends] - prefix[starts]) * _powers(_BASE_INVERSE, len(self.data))[starts]
        first = np.searchsorted(starts, np.concatenate([self.starts, [len(self.data)]]))
        return Units(starts, ends, _mix(shifted_back), first.astype(np.int64))


@dataclass(frozen=True)
class Grams:
    """Runs of `size` words inside one document: their hash, first word and document, and which belong to which."""

    size: int
    hashes: Hashes
    positions: Integers
    documents: Integers
    first: Integers


def word_grams(words: Units, size: int) -> Grams:
    """Every run of `size` words that lies inside one document, in order."""
    count = max(len(words.hashes) - size + 1, 0)
    combined = words.hashes[:count].copy()
    for offset in range(1, size):
        combined *= _GRAM_MULTIPLIER
        combined += words.hashes[offset : offset + count]
    inside = words.documents[:count] == words.documents[size - 1 : size - 1 + count]
    positions = np.flatnonzero(inside)
    return _grams(words, size, combined[positions], positions)


def word_grams_at(words: Units, size: int, positions: Integers) -> Grams:
    """The runs of `size` words that start at the words `positions` and lie inside one document."""
    positions = positions[positions + size <= len(words.hashes)]
    positions = positions[words.documents[positions] == words.documents[positions + size - 1]]
    combined = words.hashes[positions]
    for offset in range(1, size):
        combined = combined * _GRAM_MULTIPLIER + words.hashes[positions + offset]
    return _grams(words, size, combined, positions)


def _grams(words: Units, size: int, combined: Hashes, positions: Integers) -> Grams:
    documents = words.documents[positions]
    first = np.searchsorted(documents, np.arange(len(words.first))).astype(np.int64)
    return Grams(size, _mix(combined), positions, documents, first)


def distinct(hashes: Hashes) -> Hashes:
    """The distinct hashes, ascending; ten times faster than `np.unique`, which counts in a hash table first."""
    ordered = np.sort(hashes)
    begins = np.ones(len(ordered), np.bool_)
    begins[1:] = ordered[1:] != ordered[:-1]
    return ordered[begins]


def _mix(values: Hashes) -> Hashes:
    """The finaliser of MurmurHash3: spreads every bit over all 64; a bijection that keeps zero."""
    values = values ^ (values >> np.uint64(33))
    values *= np.uint64(0xFF51AFD7ED558CCD)
    values ^= values >> np.uint64(33)
    values *= np.uint64(0xC4CEB9FE1A85EC53)
    values ^= values >> np.uint64(33)
    return values


_POWERS: dict[int, Hashes] = {}


def _powers(base: int, count: int) -> Hashes:
    """base^0 … base^(count-1) modulo 2^64; kept for the next chunk."""
    known = _POWERS.get(base)
    if known is None or len(known) < count:
        size = 1 << max(20, (count - 1).bit_length())
        factors = np.full(size, base, np.uint64)
        factors[0] = 1
        known = _POWERS[base] = np.cumprod(factors, dtype=np.uint64)
    return known[:count]


def _letter_table() -> Bytes:
    table = np.zeros(256, np.uint8)
    for byte in range(256):
        character = chr(byte)
        if byte >= 0x80 or character.isalnum() or character == "_":
            table[byte] = ord(character.lower()) if byte < 0x80 else byte
    return table


def _continuation(*ranges: tuple[int, int]) -> npt.NDArray[np.bool_]:
    table = np.zeros(256, np.bool_)
    for low, high in ranges:
        table[low : high + 1] = True
    return table


_LETTER_OF_BYTE = _letter_table()
# UTF-8 lead byte, the second bytes that make it punctuation, length of the sequence:
# U+0080-00BF (Latin-1 signs, no-break space), U+2000-206F (dashes, quotes, ellipsis), U+3000-303F (CJK punctuation).
_PUNCTUATION_SEQUENCES = (
    (0xC2, _continuation((0x80, 0xBF)), 2),
    (0xE2, _continuation((0x80, 0x81)), 3),
    (0xE3, _continuation((0x80, 0x80)), 3),
)
