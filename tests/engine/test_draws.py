"""Numbers by hash: uniform, independent of each other, and the same on every machine."""

import hashlib
import itertools

import numpy as np

from groundup.engine.draws import uniform

PLACES = 20_000


def test_a_number_is_53_bits_of_a_keyed_hash():
    """Written out, so that no later change goes unnoticed: texts of a seed would be other ones."""
    key = (-5).to_bytes(8, "little", signed=True) + (7).to_bytes(8, "little") + (2).to_bytes(8, "little")
    digest = hashlib.blake2b(key, digest_size=8, person=b"token").digest()
    assert uniform(-5, 7, stream=2) == (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def test_numbers_are_uniform():
    """Kolmogorov-Smirnov: of a uniform sample, sqrt(n) times the largest gap passes 1.95 once in a thousand times."""
    numbers = np.sort([uniform(0, place) for place in range(PLACES)])
    gap = np.abs(numbers - np.arange(PLACES) / PLACES).max()
    assert numbers[0] >= 0
    assert numbers[-1] < 1
    assert gap * PLACES**0.5 < 1.95


def test_numbers_for_different_things_have_nothing_to_do_with_each_other():
    """Correlations of n pairs are normal with deviation 1 / sqrt(n): ten of them within 4 deviations."""
    rows = [
        [uniform(0, place) for place in range(PLACES)],
        [uniform(1, place) for place in range(PLACES)],
        [uniform(0, place, stream=1) for place in range(PLACES)],
        [uniform(0, place + 1) for place in range(PLACES)],
    ]
    for one, other in itertools.combinations(rows, 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 4 / PLACES**0.5
