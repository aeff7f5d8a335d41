"""Segments say who sees whom and where recurrent layers begin anew; compared with loops over tokens."""

import pytest
import torch

from groundup.model.context import Memory, Visibility

SEGMENTS = torch.tensor([[0, 0, 1, 1, 1, 2], [-1, -1, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0]], dtype=torch.int32)


@pytest.mark.parametrize("time", [6, 4, 1])
def test_a_segment_starts_where_the_token_before_is_of_another(time: int):
    """Also where the token before is in the cache."""
    starts = Visibility(SEGMENTS[:, -time:], SEGMENTS).starts()
    assert starts is not None
    for row, segments in enumerate(SEGMENTS.tolist()):
        for index in range(time):
            at = 6 - time + index
            assert starts[row, index] == (at > 0 and segments[at] != segments[at - 1])


def test_nothing_starts_where_rows_are_one_segment():
    assert Visibility(None, None).starts() is None


def test_tokens_see_the_memory_of_their_own_segment_and_padding_that_of_the_first():
    hidden, memory_segments = torch.zeros(1, 4, 8), torch.tensor([[0, 0, 1, -1]], dtype=torch.int32)
    targets = torch.tensor([[-1, 0, 1]], dtype=torch.int32)
    visible = Memory(hidden, memory_segments).visible(targets, time=3)
    assert visible.segments_bt is not None
    assert visible.segments_bt.tolist() == [[0, 0, 1]]
    one_segment = Memory(hidden, memory_segments).visible(None, time=2)
    assert one_segment.segments_bt is not None
    assert one_segment.segments_bt.tolist() == [[0, 0]]
    assert Memory(hidden, None).visible(targets, time=3) == Visibility(None, None)
