"""A byte n-gram language model with interpolated modified Kneser-Ney smoothing, in sorted numpy arrays.

An n-gram is packed into one uint64, nine bits a symbol (256 stands before the first byte of a text), oldest symbol
highest: the order of the integers is the order of the n-grams, so those that share a context lie side by side, the
context of a key is the key shifted right, and its shorter ending is the key masked. Training is one sort; a lookup is
one binary search.

    p_k(w | h) = (c(hw) - D(c(hw))) / c(h.)  +  gamma(h) p_(k-1)(w | h'),   h' = h without its oldest symbol
    gamma(h)   = (D1 N1(h.) + D2 N2(h.) + D3 N3+(h.)) / c(h.)               p_0 = 1 / 256

c counts occurrences at the highest order and distinct left neighbours below it; N1, N2, N3+ count the continuations of
h that were counted once, twice, more often.
Source: Chen and Goodman 1999, "An empirical study of smoothing techniques for language modeling", section 3.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from groundup.evaluate.config import MAX_NGRAM_ORDER

Keys = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

SYMBOL_BITS = 9  # times MAX_NGRAM_ORDER fits in 64
_START = 256
_CHUNK_BYTES = 8_000_000  # counted at a time, so that memory follows the distinct n-grams and not the text


@dataclass(frozen=True)
class _Order:
    """One order's n-grams, sorted, with their discounted probability, and their contexts with the mass left over."""

    keys: Keys
    discounted: Floats  # (c(hw) - D) / c(h.)
    contexts: Keys
    gamma: Floats


@dataclass(frozen=True)
class Ngram:
    """A trained model; `orders[k]` predicts from k symbols."""

    orders: tuple[_Order, ...]

    def bits(self, text: bytes) -> Floats:
        """-log2 of the probability of each byte given those before it in the text, as float64 (len(text),)."""
        return -np.log2(self.probabilities(_keys(text, len(self.orders))))

    def probabilities(self, keys: Keys) -> Floats:
        """p(newest symbol | the others) for n-grams of the highest order."""
        result = np.full(len(keys), 1 / 256)
        for length, order in enumerate(self.orders, start=1):
            shorter = keys & _mask(length)
            gamma = _look_up(order.contexts, order.gamma, shorter >> np.uint64(SYMBOL_BITS), default=1.0)
            result = _look_up(order.keys, order.discounted, shorter, default=0.0) + gamma * result
        return result


def train_ngram(texts: Sequence[bytes], order: int) -> Ngram:
    """Count n-grams up to `order` symbols in the texts, each text on its own, and smooth them.

    12 MB at order 7 take a second or two, and memory about 100 bytes for each distinct n-gram.
    Raises ValueError for an order that does not fit a key (1 to 7).
    """
    if not 1 <= order <= MAX_NGRAM_ORDER:
        raise ValueError(f"an n-gram model has order 1 to {MAX_NGRAM_ORDER}, not {order}")
    keys, counts = np.empty(0, np.uint64), np.empty(0, np.int64)
    for chunk in _chunks(texts):
        chunk_keys, chunk_counts = np.unique(np.concatenate([_keys(text, order) for text in chunk]), return_counts=True)
        keys, counts = _add(np.concatenate([keys, chunk_keys]), np.concatenate([counts, chunk_counts]))
    orders = [_smooth(keys, counts)]
    for length in range(order - 1, 0, -1):
        keys, counts = np.unique(keys & _mask(length), return_counts=True)
        orders.append(_smooth(keys, counts))
    return Ngram(tuple(reversed(orders)))


def _keys(text: bytes, order: int) -> Keys:
    """The n-gram that ends at each byte of the text, start symbols standing before it."""
    symbols = np.full(len(text) + order - 1, _START, dtype=np.uint64)
    symbols[order - 1 :] = np.frombuffer(text, dtype=np.uint8)
    keys = np.zeros(len(text), dtype=np.uint64)
    for offset in range(order):
        keys = (keys << np.uint64(SYMBOL_BITS)) | symbols[offset : offset + len(text)]
    return keys


def _mask(length: int) -> np.uint64:
    """Selects the newest `length` symbols of a key."""
    return np.uint64((1 << (SYMBOL_BITS * length)) - 1)


def _chunks(texts: Iterable[bytes]) -> Iterable[list[bytes]]:
    """Whole texts, together about _CHUNK_BYTES."""
    chunk: list[bytes] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _add(keys: Keys, counts: Counts) -> tuple[Keys, Counts]:
    """Sorted distinct keys, the counts of equal ones added."""
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    starts = _run_starts(keys)
    return keys[starts], np.add.reduceat(counts, starts) if len(starts) else counts


def _run_starts(values: Keys) -> npt.NDArray[np.intp]:
    """Where each run of equal values begins in a sorted array."""
    return np.flatnonzero(np.concatenate([np.ones(min(len(values), 1), bool), values[1:] != values[:-1]]))


def _smooth(keys: Keys, counts: Counts) -> _Order:
    discounts = _discounts(counts)[np.minimum(counts, 3)]
    contexts = keys >> np.uint64(SYMBOL_BITS)
    starts = _run_starts(contexts)
    if len(starts) == 0:
        return _Order(keys, np.empty(0), contexts, np.empty(0))
    lengths = np.diff(np.append(starts, len(keys)))
    totals = np.add.reduceat(counts, starts).astype(np.float64)
    gamma = np.add.reduceat(discounts, starts) / totals
    discounted = (counts - discounts) / np.repeat(totals, lengths)
    return _Order(keys, discounted, contexts[starts], gamma)


def _discounts(counts: Counts) -> Floats:
    """What is taken from counts of 1, 2 and 3 or more, at these indices (Chen and Goodman, equation 17).

    Where the text is too small for the estimate, one half of a count is taken from all.
    """
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == count)) for count in (1, 2, 3, 4))
    if min(n1, n2, n3) == 0:
        return np.array([0.0, 0.5, 0.5, 0.5])
    y = n1 / (n1 + 2 * n2)
    estimates = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    # On odd samples an estimate leaves its range. No count gives more than itself, and each gives something: a context
    # that kept its whole mass would call the unseen impossible.
    return estimates.clip([0, 0.1, 0.1, 0.1], [0, 1, 2, 3])


def _look_up(keys: Keys, values: Floats, wanted: Keys, default: float) -> Floats:
    if len(keys) == 0:
        return np.full(len(wanted), default)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found: Floats = np.where(keys[places] == wanted, values[places], default)
    return found
