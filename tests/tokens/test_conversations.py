"""Conversations side by side in rows: none lost, none split, loss where it belongs."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.tokens.batches import IGNORE
from groundup.tokens.conversations import PackedConversations, TokenisedConversation, pack

PAD = 2


def _conversation(length: int, start: int) -> TokenisedConversation:
    return TokenisedConversation(list(range(start, start + length)), [index % 3 == 0 for index in range(length)])


CONVERSATIONS = [_conversation(length, 100 * index) for index, length in enumerate((9, 4, 7, 2, 5, 13))]


@given(st.lists(st.integers(1, 20), max_size=60))
def test_packing_places_everything_once_and_fills_no_bin_too_far(lengths: list[int]):
    bins = pack(lengths, 20)
    assert sorted(itertools.chain(*bins)) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in one) <= 20 for one in bins)
    # Best fit leaves no two bins that would fit into one.
    sizes = sorted(sum(lengths[index] for index in one) for one in bins)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > 20


def test_an_epoch_holds_every_conversation_with_its_trained_tokens_as_targets():
    packed = PackedConversations(CONVERSATIONS, context=16, pad_id=PAD, seed=3)
    rows = packed.rows(np.arange(packed.rows_per_epoch))
    found = []
    for row in range(packed.rows_per_epoch):
        for segment in range(rows.segments[row].max() + 1):
            here = rows.segments[row] == segment
            assert rows.positions[row, here].tolist() == list(range(here.sum()))
            found.append((rows.input_ids[row, here].tolist(), rows.targets[row, here].tolist()))
    expected = [
        (ids[:-1], [token if on else IGNORE for token, on in zip(ids[1:], trained[1:], strict=True)])
        for ids, trained in CONVERSATIONS
    ]
    assert sorted(found) == sorted(expected)
    assert rows.target_count() == packed.trained_tokens


def test_padding_is_nobody_and_carries_no_loss():
    packed = PackedConversations(CONVERSATIONS[:1], context=16, pad_id=PAD, seed=0)
    rows = packed.rows(np.array([0]))
    padding = rows.segments[0] == -1
    assert padding.sum() == 8
    assert (rows.input_ids[0, padding] == PAD).all()
    assert (rows.targets[0, padding] == IGNORE).all()


def test_each_epoch_has_the_same_rows_in_an_order_of_its_own():
    packed = PackedConversations([_conversation(16, 100 * index) for index in range(12)], 16, PAD, seed=1)
    count = packed.rows_per_epoch
    first, second = (
        [row.tolist() for row in packed.rows(np.arange(start, start + count)).input_ids] for start in (0, count)
    )
    assert sorted(first) == sorted(second)
    assert first != second


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="13 tokens does not fit into 11"):
        PackedConversations(CONVERSATIONS, context=11, pad_id=PAD, seed=0)
    with pytest.raises(ValueError, match="no conversations"):
        PackedConversations([], context=11, pad_id=PAD, seed=0)
