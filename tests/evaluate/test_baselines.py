"""The baselines against closed forms, the `xz` program, and texts whose entropy is known."""

import math
import random
import shutil
import subprocess

import pytest

from groundup.evaluate.baselines import Score, baseline_bits_per_byte


def _by_name(scores: list[Score]) -> dict[str, float]:
    return {score.name: score.bits_per_byte for score in scores}


def test_unigram_is_the_cross_entropy_of_smoothed_frequencies() -> None:
    """Train `aab`: p(a) = 3/259, p(b) = 2/259, any other byte 1/259; an é is two bytes."""
    scores = _by_name(baseline_bits_per_byte([b"aa", b"b"], [b"aab", "é".encode()]))
    bits = 2 * math.log2(259 / 3) + math.log2(259 / 2) + 2 * math.log2(259)
    assert scores["unigram"] == pytest.approx(bits / 5)


@pytest.mark.skipif(shutil.which("xz") is None, reason="the xz program is not installed")
def test_xz_is_what_the_program_writes() -> None:
    texts = ["def f(x):\n    return x\n" * 20, "the second text, " * 30]
    joined = "".join(texts).encode()
    scores = _by_name(baseline_bits_per_byte([], [text.encode() for text in texts]))
    written = subprocess.run(["xz", "-9e", "-T1", "--stdout"], input=joined, capture_output=True, check=True).stdout
    assert scores["xz -9e"] == 8 * len(written) / len(joined)


def test_what_was_in_train_costs_xz_almost_nothing_after_it() -> None:
    """Random letters cannot be compressed below log2(26) = 4.7 bits alone."""
    draw = random.Random(0)
    text = bytes(draw.choice(b"abcdefghijklmnopqrstuvwxyz") for _ in range(20_000))
    scores = _by_name(baseline_bits_per_byte([text], [text]))
    assert scores["xz -9e"] > 4.7
    assert scores["xz -9e after train"] < 0.1


def test_models_reach_the_entropy_of_their_source() -> None:
    """Four equally likely letters, 2 bits for a unigram; after each only two of them, 1 bit for an n-gram."""
    draw = random.Random(1)

    def chain(length: int) -> bytes:
        letters = [0]
        for _ in range(length):
            letters.append((letters[-1] + draw.choice((0, 1))) % 4)
        return bytes(b"abcd"[letter] for letter in letters)

    scores = _by_name(baseline_bits_per_byte([chain(200_000)], [chain(20_000)], ngram_order=3))
    assert scores["unigram"] == pytest.approx(2.0, abs=0.02)
    assert scores["3-gram"] == pytest.approx(1.0, abs=0.01)


def test_bits_per_byte_without_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="held-out byte"):
        baseline_bits_per_byte([b"text"], [b""])
