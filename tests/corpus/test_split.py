"""The held-out split: whole groups, close to the share asked for, the same on every machine."""

import random

import pytest

from groundup.corpus.split import choose_heldout
from groundup.errors import UserError


def documents(count: int, seed: int = 0) -> tuple[list[str], list[int]]:
    source = random.Random(seed)
    return [f"module{source.randrange(count // 3)}" for _ in range(count)], [
        source.randrange(100, 20_000) for _ in range(count)
    ]


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.2, 0.5])
def test_the_share_is_met_and_groups_stay_whole(fraction: float):
    groups, sizes = documents(3000)
    heldout = choose_heldout(groups, sizes, fraction)
    share = sum(size for size, out in zip(sizes, heldout, strict=True) if out) / sum(sizes)
    assert 0.9 * fraction < share <= fraction
    sides = {group: {bool(out) for name, out in zip(groups, heldout, strict=True) if name == group} for group in groups}
    assert all(len(side) == 1 for side in sides.values())


def test_the_choice_does_not_depend_on_the_order_of_documents():
    groups, sizes = documents(500)
    chosen = {group for group, out in zip(groups, choose_heldout(groups, sizes, 0.1), strict=True) if out}
    order = random.Random(1).sample(range(500), 500)
    heldout = choose_heldout([groups[index] for index in order], [sizes[index] for index in order], 0.1)
    assert {groups[index] for index, out in zip(order, heldout, strict=True) if out} == chosen


def test_a_group_larger_than_half_the_share_stays_in_train():
    groups = [f"large{number}" for number in range(30)] + [f"small{number}" for number in range(20)]
    heldout = choose_heldout(groups, [60] * 30 + [10] * 20, 0.05)
    assert not heldout[:30].any()
    assert heldout[30:].sum() == 10


def test_parts_of_one_book_are_split_one_by_one():
    assert choose_heldout(["book"] * 40, [1000] * 40, 0.1).sum() == 4


def test_something_is_held_out_of_few_large_documents():
    assert choose_heldout(["a", "b", "c"], [1000, 900, 1100], 0.05).tolist() == [False, True, False]


def test_one_document_cannot_be_split():
    with pytest.raises(UserError, match="only one document"):
        choose_heldout(["a"], [1], 0.05)
