"""Built-in induction against its definition, searched for token by token."""

from collections.abc import Sequence

import pytest
import torch

from groundup.model.config import Induction
from groundup.model.induction import NOWHERE, NgramHeads, followers

SPEC = Induction(lengths=(1, 2, 3, 5), places=3)


def searched(tokens: Sequence[int], segments: Sequence[int], length: int) -> list[list[int]]:
    """What `followers` finds for one length, by looking back from every place in turn; a list for each token."""
    found = []
    for place in range(len(tokens)):
        answers = []
        for earlier in range(place - 1, length - 2, -1):
            here, there = range(place - length + 1, place + 1), range(earlier - length + 1, earlier + 1)
            if len({segments[at] for at in (*here, *there)}) > 1:
                continue
            if [tokens[at] for at in here] == [tokens[at] for at in there]:
                answers.append(tokens[earlier + 1])
        found.append((answers + [NOWHERE] * SPEC.places)[: SPEC.places])
    return found


@pytest.mark.parametrize("seed", range(20))
def test_followers_are_those_a_search_finds(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vocabulary = (2, 4, 9)[seed % 3]
    stream = torch.randint(0, vocabulary, (3, 60), generator=generator)
    segments = torch.randint(0, 2, (3, 60), generator=generator).mul(torch.rand(3, 60, generator=generator) < 0.1)
    segments = segments.cumsum(1).int()
    found = followers(stream, segments, SPEC).view(len(SPEC.lengths), SPEC.places, 3, 60)
    for index, length in enumerate(SPEC.lengths):
        for row in range(3):
            expected = searched(stream[row].tolist(), segments[row].tolist(), length)
            assert found[index, :, row].T.tolist() == expected


def test_no_segments_means_one_for_each_row() -> None:
    stream = torch.tensor([[5, 6, 5, 6], [6, 6, 5, 5]])
    one, two = followers(stream, None, Induction((1, 2), places=1))
    assert one.tolist() == [[-1, -1, 6, 5], [-1, 6, -1, 5]]
    assert two.tolist() == [[-1, -1, -1, 5], [-1, -1, -1, -1]]


def test_what_comes_later_changes_nothing() -> None:
    """A token's followers depend on the tokens up to it alone: no look into the future."""
    stream = torch.randint(0, 5, (1, 80), generator=torch.Generator().manual_seed(0))
    whole = followers(stream, None, SPEC)
    for end in (1, 2, 17, 79):
        assert torch.equal(followers(stream[:, :end], None, SPEC), whole[..., :end])


def test_rows_are_those_of_the_table_and_zero_for_nowhere() -> None:
    induction = NgramHeads(Induction((1, 3), places=1), vocab_size=7, width=4).double()
    torch.nn.init.normal_(induction.table.weight)
    tokens = torch.tensor([[[2, NOWHERE, 6]], [[NOWHERE, 0, 6]]])
    for rows, ids in zip(induction.rows(tokens, torch.float64), tokens, strict=True):
        for place, token in enumerate(ids[0].tolist()):
            expected = torch.zeros(4, dtype=torch.float64) if token == NOWHERE else induction.table.weight[token]
            assert torch.equal(rows[0, place], expected)


def test_pointing_adds_gated_head_rows() -> None:
    induction = NgramHeads(Induction((1, 2), places=1), vocab_size=7, width=4).double()
    for parameter in induction.parameters():
        torch.nn.init.normal_(parameter)
    hidden, head = torch.randn(1, 3, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    tokens = torch.tensor([[[2, NOWHERE, 6]], [[NOWHERE, 0, 1]]])
    found = induction.point(hidden, tokens, head)
    for place in range(3):
        expected = hidden[0, place].clone()
        for number, ids in enumerate(tokens):
            strength = induction.gate[number] @ hidden[0, place] + induction.gate_bias[number]
            expected += strength * (head[ids[0, place]] if ids[0, place] != NOWHERE else 0)
        torch.testing.assert_close(found[0, place], expected)
