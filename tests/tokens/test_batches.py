"""Batches as a pure function of seed and row number, against packing done document by document."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ListStream

from groundup.tokens.batches import IGNORE, PackedDocuments, Rows, keyed_integer, permute, rank_rows

BOS = 1
CONTEXT = 8
# Documents of one token, of exactly a row, and of several rows.
LENGTHS = (3, 1, 1, 8, 30, 2, 5, 16, 7, 1, 11)


def _documents(lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    """Documents whose tokens are all different, so that a token tells where it comes from."""
    starts = np.cumsum([100, *lengths])
    return [list(range(start, start + length)) for start, length in zip(starts, lengths, strict=False)]


def _source(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> PackedDocuments:
    return PackedDocuments(ListStream(_documents(lengths)), CONTEXT, BOS, seed)


def _epoch(source: PackedDocuments, epoch: int) -> Rows:
    first = epoch * source.rows_per_epoch
    return source.rows(np.arange(first, first + source.rows_per_epoch))


def _by_hand(documents: list[list[int]], targets: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Inputs, positions and segments of a row with these targets: token by token, as the module promises."""
    owner = {token: number for number, document in enumerate(documents) for token in document}
    inputs, positions, segments = [], [], []
    for place, target in enumerate(targets):
        starts = place == 0 or owner[target] != owner[targets[place - 1]]
        inputs.append(BOS if starts else targets[place - 1])
        positions.append(0 if starts else positions[-1] + 1)
        segments.append(owner[target] - owner[targets[0]])
    return inputs, positions, segments


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=25).filter(lambda lengths: sum(lengths) >= 2 * CONTEXT),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 5),
)
def test_rows_are_what_packing_by_hand_gives(lengths: list[int], seed: int, epoch: int):
    documents = _documents(lengths)
    rows = _epoch(_source(lengths, seed), epoch)
    for inputs, targets, positions, segments in zip(*(array.tolist() for array in rows.arrays()), strict=True):
        assert (inputs, positions, segments) == _by_hand(documents, targets)
    assert rows.target_count() == rows.targets.size


@settings(max_examples=60, deadline=None)
@given(tokens=st.integers(2 * CONTEXT, 300), seed=st.integers(0, 2**40), epoch=st.integers(0, 5))
def test_an_epoch_visits_every_token_of_its_rows_exactly_once(tokens: int, seed: int, epoch: int):
    source = _source([tokens], seed)
    visited = np.sort(_epoch(source, epoch).targets, axis=None)
    # One run of the stream without gap or repetition: as many rows as fit behind any shift.
    assert visited.tolist() == list(range(visited[0], visited[0] + len(visited)))
    assert 0 <= visited[0] - 100 < CONTEXT
    assert visited[-1] < 100 + tokens
    assert len(visited) == CONTEXT * (tokens // CONTEXT - 1)


def test_every_token_is_visited_sooner_or_later():
    source = _source([5 * CONTEXT + 3])
    visited = np.unique(np.concatenate([_epoch(source, epoch).targets.ravel() for epoch in range(60)]))
    # The last row's worth of tokens is only reached by late shifts; CONTEXT - 1 is the latest.
    assert visited.tolist() == list(range(100, 100 + 4 * CONTEXT + CONTEXT - 1))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_share_the_same_rows(ranks: int):
    rows_per_step = 12
    for step in (0, 1, 7):
        shares = [rank_rows(step * rows_per_step, rows_per_step, rank, ranks).tolist() for rank in range(ranks)]
        assert {len(share) for share in shares} == {rows_per_step // ranks}
        together = sorted(number for share in shares for number in share)
        assert together == list(range(step * rows_per_step, (step + 1) * rows_per_step))


def test_a_row_depends_on_seed_and_number_alone():
    numbers = np.arange(3 * _source().rows_per_epoch)
    whole = _source().rows(numbers)
    source = _source()
    for number in reversed(numbers.tolist()):
        for one, many in zip(source.rows(np.array([number])).arrays(), whole.arrays(), strict=True):
            assert one.tolist() == many[number : number + 1].tolist()


def test_epochs_and_seeds_differ_in_cut_and_order():
    lengths = [40 * CONTEXT]
    orders, shifts = set(), set()
    for seed in range(4):
        source = _source(lengths, seed)
        for epoch in range(4):
            starts = _epoch(source, epoch).targets[:, 0] - 100
            orders.add(tuple((starts // CONTEXT).tolist()))
            shifts.add(int(starts.min()))
    assert len(orders) == 16
    assert len(shifts) > 3


def test_splitting_into_micro_batches_keeps_every_row_in_order():
    rows = _epoch(_source(), 0)
    parts = list(rows.split(3))
    assert [len(part.input_ids) for part in parts] == [3, 3, 3]
    for index, whole in enumerate(rows.arrays()):
        assert np.array_equal(np.concatenate([part.arrays()[index] for part in parts]), whole)


def test_targets_without_loss_are_not_counted():
    targets = np.array([[5, IGNORE, 6], [IGNORE, IGNORE, 7]])
    assert Rows(targets, targets, targets, targets.astype(np.int32)).target_count() == 3


def test_a_stream_shorter_than_two_rows_is_refused_with_both_sizes():
    with pytest.raises(ValueError, match=r"15 tokens, fewer than two rows of `context` 8"):
        _source([15])
    assert _source([16]).rows_per_epoch == 1


@pytest.mark.parametrize("key", [0, 1, 2**62 + 12345])
def test_the_permutation_is_a_bijection_of_every_small_range(key: int):
    for size in range(1, 200):
        assert sorted(permute(index, size, key) for index in range(size)) == list(range(size))


@settings(max_examples=40, deadline=None)
@given(size=st.integers(200, 5000), key=st.integers(0, 2**63 - 1))
def test_the_permutation_is_a_bijection_of_larger_ranges(size: int, key: int):
    assert len({permute(index, size, key) for index in range(size)}) == size
    assert all(0 <= permute(index, size, key) < size for index in range(0, size, 97))


@pytest.mark.parametrize("size", [50, 100, 257])
def test_every_place_is_equally_likely(size: int):
    """Chi-square of where the first and the last index go, over many keys, at 5 standard deviations."""
    keys = 400 * size if size < 100 else 5000
    keys = 20 * size
    for index in (0, size - 1):
        places = [permute(index, size, keyed_integer(number, "order")) for number in range(keys)]
        counts = np.bincount(places, minlength=size)
        statistic = ((counts - keys / size) ** 2 / (keys / size)).sum()
        assert statistic < (size - 1) + 5 * (2 * (size - 1)) ** 0.5


def test_neighbours_are_torn_apart():
    # In a random order of n rows, one pair of neighbours stays together on average, in either direction two.
    order = [permute(index, 1000, keyed_integer(0, "order 0")) for index in range(1000)]
    assert sum(abs(a - b) == 1 for a, b in itertools.pairwise(order)) < 10


def test_keyed_integers_are_even_over_63_bits_and_differ_by_seed_and_label():
    numbers = [keyed_integer(seed, f"order {epoch}") for seed in range(40) for epoch in range(40)]
    assert len(set(numbers)) == 1600
    assert all(0 <= number < 2**63 for number in numbers)
    for bit in range(63):
        assert 600 < sum(number >> bit & 1 for number in numbers) < 1000
