"""Near-duplicate documents: MinHash signatures, banded look-up, and the true Jaccard similarity of what it finds.

A document is the set of its shingles (runs of five words). Signatures (Broder 1997) make candidates cheap to find
(Indyk and Motwani 1998); each candidate pair is then compared shingle by shingle, so nothing is thrown away by chance.
Of two near-duplicates the one that comes first in the corpus stays. A document is removed only if it is similar to one
that *stays*: chains a ≈ b ≈ c do not remove c for its likeness to b, which is gone.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from groundup.corpus.words import Chunk, Hashes, distinct

Signatures = npt.NDArray[np.uint32]

PERMUTATIONS = 112
# A pair exactly at the threshold becomes a candidate with at least this probability; more similar ones nearly surely.
RECALL_AT_THRESHOLD = 0.97

# Fixed random odd multipliers and offsets: h → a·h + b modulo 2^32 permutes the 32-bit hashes (Dietzfelbinger 1997).
_random = np.random.Generator(np.random.PCG64(0x6D696E68617368))
_MULTIPLIERS = _random.integers(0, 1 << 32, PERMUTATIONS, dtype=np.uint32) | np.uint32(1)
_OFFSETS = _random.integers(0, 1 << 32, PERMUTATIONS, dtype=np.uint32)
_EMPTY = np.uint32(0xFFFFFFFF)


def signatures(chunk: Chunk) -> Signatures:
    """(documents, PERMUTATIONS) minima; two documents agree in one with the probability of their Jaccard similarity.

    A document of fewer than SHINGLE_WORDS words has no shingle and a signature of all ones, which matches nothing.
    """
    grams = chunk.shingles
    result = np.full((len(chunk.starts), PERMUTATIONS), _EMPTY, np.uint32)
    if len(grams.hashes) == 0:
        return result
    holding = np.flatnonzero(np.diff(grams.first))
    starts = grams.first[holding]
    hashes = grams.hashes.astype(np.uint32)
    permuted = np.empty_like(hashes)
    for index, (multiplier, offset) in enumerate(zip(_MULTIPLIERS, _OFFSETS, strict=True)):
        np.multiply(hashes, multiplier, out=permuted)
        permuted += offset
        result[holding, index] = np.minimum.reduceat(permuted, starts)
    return result


def shingles(chunk: Chunk) -> list[Hashes]:
    """The set of shingles of each document, sorted."""
    grams = chunk.shingles
    return [distinct(grams.hashes[start:end]) for start, end in pairwise(grams.first)]


def jaccard(a: Hashes, b: Hashes) -> float:
    """Shared members ÷ all members of two sorted sets."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / max(len(a) + len(b) - shared, 1)


def rows_per_band(threshold: float) -> int:
    """The most rows per band (fewest false candidates) that find a pair at the threshold with RECALL_AT_THRESHOLD.

    A pair of similarity s meets in one of b bands of r rows with probability 1 − (1 − s^r)^b.
    """
    fitting = [
        rows
        for rows in range(1, PERMUTATIONS + 1)
        if 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows) >= RECALL_AT_THRESHOLD
    ]
    return max(fitting)


@dataclass(frozen=True)
class Duplicate:
    """A document that is too similar to one that stays."""

    keeper: int
    similarity: float


def near_duplicates(
    documents: Signatures, read_shingles: Callable[[Sequence[int]], Mapping[int, Hashes]], threshold: float
) -> dict[int, Duplicate]:
    """The documents to remove, by index, each with the earlier one that stays and is at least `threshold` similar.

    documents: one signature per document, in corpus order.
    read_shingles: gives the shingle sets of some documents; called once, with those that met another in a band.
    """
    buckets = _shared_buckets(documents, rows_per_band(threshold))
    sets = read_shingles(sorted(buckets))
    removed: dict[int, Duplicate] = {}
    staying: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for document in sorted(buckets):
        earlier = sorted({other for bucket in buckets[document] for other in staying[bucket]})
        for other in earlier:
            similarity = jaccard(sets[document], sets[other])
            if similarity >= threshold:
                removed[document] = Duplicate(other, similarity)
                break
        else:
            for bucket in buckets[document]:
                staying[bucket].append(document)
    return removed


def _shared_buckets(documents: Signatures, rows: int) -> dict[int, list[tuple[int, int]]]:
    """For each document that meets another: the buckets (band, key) in which it does."""
    buckets: dict[int, list[tuple[int, int]]] = {}
    holding = np.flatnonzero((documents != _EMPTY).any(axis=1))
    for band in range(PERMUTATIONS // rows):
        keys = _band_keys(documents[holding, band * rows : (band + 1) * rows])
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        for position in np.flatnonzero(counts[inverse] > 1):
            buckets.setdefault(int(holding[position]), []).append((band, int(keys[position])))
    return buckets


def _band_keys(rows: Signatures) -> Hashes:
    """One 64-bit key for the rows of a band; a chance match only costs a comparison."""
    keys = np.zeros(len(rows), np.uint64)
    for column in rows.T:
        keys = (keys ^ column) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys
