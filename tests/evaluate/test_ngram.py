"""The n-gram model against probabilities that sum to one and a textbook implementation in dictionaries."""

import itertools
import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from groundup.evaluate import ngram
from groundup.evaluate.ngram import train_ngram


def _random_texts(seed: int, alphabet: bytes = b"abcd", count: int = 40) -> list[bytes]:
    """Texts with structure: each byte likely follows the alphabet's order."""
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        text = [draw.choice(alphabet)]
        for _ in range(draw.randint(0, 30)):
            following = alphabet[(alphabet.index(text[-1]) + 1) % len(alphabet)]
            text.append(following if draw.random() < 0.6 else draw.choice(alphabet))
        texts.append(bytes(text))
    return texts


@pytest.mark.parametrize("order", [1, 2, 3, 6, 7])
def test_probabilities_sum_to_one_after_every_history(order: int) -> None:
    model = train_ngram(_random_texts(0), order)
    histories = [b"", b"z", b"zzzzzzz", b"abcdabcd", b"dcbadcba"]
    histories += [bytes(h) for n in (1, 2, 3) for h in itertools.product(b"abcd", repeat=n)]
    for history in histories:
        total = sum(2.0 ** -model.bits(history + bytes([byte]))[-1] for byte in range(256))
        assert total == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_equals_the_textbook_recursion(order: int) -> None:
    train, heldout = _random_texts(1), _random_texts(2, b"abcde", 10)
    model, reference = train_ngram(train, order), _Textbook(train, order)
    for text in heldout:
        expected = [-math.log2(reference.probability(text[:end], text[end])) for end in range(len(text))]
        assert model.bits(text) == pytest.approx(np.array(expected), rel=1e-12)


def test_counting_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = _random_texts(3)
    whole = train_ngram(texts, 4).bits(texts[5])
    monkeypatch.setattr(ngram, "_CHUNK_BYTES", 50)
    assert (train_ngram(texts, 4).bits(texts[5]) == whole).all()


def test_texts_do_not_run_into_each_other() -> None:
    """`b` never follows `a` inside a text, whatever the order in which the texts stand."""
    texts = [b"xa", b"bx", b"xa", b"bx"]
    seen = train_ngram(texts, 2).bits(b"ab")[1]
    assert seen == train_ngram([b"xa", b"xa", b"bx", b"bx"], 2).bits(b"ab")[1]
    assert seen > train_ngram([b"xabx"] * 2, 2).bits(b"ab")[1]


@pytest.mark.parametrize("repeats", [1, 2, 3, 4, 5, 10])
def test_nothing_is_impossible_even_after_repeated_training_texts(repeats: int) -> None:
    model = train_ngram(_random_texts(4) * repeats, 4)
    assert np.isfinite(model.bits(bytes(range(256)) + b"abcdabcd")).all()


def test_without_training_text_every_byte_is_alike() -> None:
    assert (train_ngram([], 3).bits(b"abc") == 8).all()
    assert (train_ngram([b""], 3).bits(b"abc") == 8).all()


def test_an_order_beyond_the_key_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 7"):
        train_ngram([b"abc"], 8)


class _Textbook:
    """Chen and Goodman's equations, word for word, over tuples of symbols in dictionaries."""

    def __init__(self, texts: list[bytes], order: int) -> None:
        self.order = order
        grams: dict[int, Counter[tuple[int, ...]]] = {n: Counter() for n in range(1, order + 1)}
        for text in texts:
            symbols = [256] * (order - 1) + list(text)
            for end in range(order - 1, len(symbols)):
                grams[order][tuple(symbols[end - order + 1 : end + 1])] += 1
        for n in range(order - 1, 0, -1):
            for gram in grams[n + 1]:
                grams[n][gram[1:]] += 1  # each distinct left neighbour once
        self.grams = grams
        self.following: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for n in range(1, order + 1):
            for gram, count in grams[n].items():
                self.following[gram[:-1]].append(count)
        self.discounts = {n: self._estimate(Counter(grams[n].values())) for n in grams}

    @staticmethod
    def _estimate(n: Counter[int]) -> list[float]:
        if not (n[1] and n[2] and n[3]):
            return [0, 0.5, 0.5, 0.5]
        y = n[1] / (n[1] + 2 * n[2])
        raw = [1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
        return [0.0] + [min(max(value, 0.1), limit) for value, limit in zip(raw, (1, 2, 3), strict=True)]

    def probability(self, history: bytes, symbol: int) -> float:
        context = ((256,) * self.order + tuple(history))[-(self.order - 1) :] if self.order > 1 else ()
        return self._recurse(context, symbol)

    def _recurse(self, context: tuple[int, ...], symbol: int) -> float:
        n = len(context) + 1
        lower = self._recurse(context[1:], symbol) if context else 1 / 256
        counts = self.following.get(context)
        if not counts:
            return lower
        discount = self.discounts[n]
        count = self.grams[n][(*context, symbol)]
        left = sum(discount[min(one, 3)] for one in counts) / sum(counts)
        return (count - discount[min(count, 3)]) / sum(counts) + left * lower
