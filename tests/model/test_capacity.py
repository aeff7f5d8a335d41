"""Experts with room for so many tokens of a text, against counting by hand."""

import pytest
import torch
from torch import Tensor

from groundup.model.cache import LayerKeyValues
from groundup.model.context import Visibility
from groundup.model.experts import has_room
from groundup.model.specs import Router

EXPERTS, TIME = 4, 30


def _chosen(batch: int = 3) -> Tensor:
    return torch.randint(EXPERTS, (batch, TIME), generator=torch.Generator().manual_seed(0))


def _by_hand(experts: list[int], segments: list[int], capacity: int) -> list[bool]:
    """Row by row: how often each expert was taken since the text of a token began."""
    found, taken, before = [], [0] * EXPERTS, None
    for expert, segment in zip(experts, segments, strict=True):
        if segment != before:
            taken, before = [0] * EXPERTS, segment
        taken[expert] += segment >= 0
        found.append(taken[expert] <= capacity)
    return found


def _segments(kind: str) -> Tensor | None:
    rows = {
        "one text": None,
        "left padding": [[-1] * 5 + [0] * 25, [0] * 30, [-1] * 29 + [0]],
        "right padding": [[0] * 25 + [-1] * 5, [0] * 30, [0] + [-1] * 29],
        "texts in a row": [[0] * 11 + [1] * 2 + [2] * 17, [0] + [1] * 29, [0] * 10 + [1] * 10 + [-1] * 10],
    }[kind]
    return None if rows is None else torch.tensor(rows, dtype=torch.int32)


@pytest.mark.parametrize("chunks", [[30], [1] * 30, [4, 9, 17]], ids=["at once", "one by one", "in chunks"])
@pytest.mark.parametrize("capacity", [1, 3, 100])
@pytest.mark.parametrize("kind", ["one text", "left padding", "right padding", "texts in a row"])
def test_room_is_that_of_counting_by_hand(kind: str, capacity: int, chunks: list[int]):
    experts, segments = _chosen(), _segments(kind)
    cache, parts, end = LayerKeyValues(), [], 0
    for part in experts.split(chunks, dim=1):
        end += part.shape[1]
        seen = None if segments is None else segments[:, :end]
        visible = Visibility(None if seen is None else seen[:, end - part.shape[1] :], seen)
        parts.append(has_room(Router(EXPERTS, 1, capacity=capacity), part, visible, cache))
    found = torch.cat(parts, dim=1)
    rows = torch.zeros_like(experts) if segments is None else segments
    expected = [_by_hand(*pair, capacity) for pair in zip(experts.tolist(), rows.tolist(), strict=True)]
    # Of padding nothing is expected.
    assert torch.equal(found | (rows < 0), torch.tensor(expected) | (rows < 0))
    assert capacity == 100 or not found.all()
