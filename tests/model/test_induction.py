"""Built-in induction against its definition, searched for token by token."""

from collections.abc import Sequence

import pytest
import torch

from groundup.model.induction import NOWHERE, Induction, followers

LENGTHS = (1, 2, 3, 5)


def searched(tokens: Sequence[int], segments: Sequence[int], length: int) -> list[int]:
    """What `followers` finds, by looking back from every place in turn."""
    found = []
    for place in range(len(tokens)):
        answer = NOWHERE
        for earlier in range(place - 1, length - 2, -1):
            here, there = range(place - length + 1, place + 1), range(earlier - length + 1, earlier + 1)
            if here[0] < 0 or len({segments[at] for at in (*here, *there)}) > 1:
                continue
            if [tokens[at] for at in here] == [tokens[at] for at in there]:
                answer = tokens[earlier + 1]
                break
        found.append(answer)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_followers_are_those_a_search_finds(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vocabulary = (2, 4, 9)[seed % 3]
    stream = torch.randint(0, vocabulary, (3, 60), generator=generator)
    segments = torch.randint(0, 2, (3, 60), generator=generator).mul(torch.rand(3, 60, generator=generator) < 0.1)
    segments = segments.cumsum(1).int()
    for length, found in zip(LENGTHS, followers(stream, segments, LENGTHS), strict=True):
        for row in range(3):
            assert found[row].tolist() == searched(stream[row].tolist(), segments[row].tolist(), length)


def test_no_segments_means_one_for_each_row() -> None:
    stream = torch.tensor([[5, 6, 5, 6], [6, 6, 5, 5]])
    one, two = followers(stream, None, (1, 2))
    assert one.tolist() == [[-1, -1, 6, 5], [-1, 6, -1, 5]]
    assert two.tolist() == [[-1, -1, -1, 5], [-1, -1, -1, -1]]


def test_what_follows_later_changes_nothing() -> None:
    """A place's follower depends on the tokens up to it alone: no look into the future."""
    generator = torch.Generator().manual_seed(0)
    stream = torch.randint(0, 5, (1, 80), generator=generator)
    whole = followers(stream, None, LENGTHS)
    for end in (1, 2, 17, 79):
        for part, full in zip(followers(stream[:, :end], None, LENGTHS), whole, strict=True):
            assert part.tolist() == full[:, :end].tolist()


def test_rows_are_those_of_the_table_and_zero_for_nowhere() -> None:
    induction = Induction((1, 3), vocab_size=7, width=4).double()
    torch.nn.init.normal_(induction.table.weight)
    tokens = [torch.tensor([[2, NOWHERE, 6]]), torch.tensor([[NOWHERE, 0, 6]])]
    for rows, ids in zip(induction.rows(tokens, torch.float64), tokens, strict=True):
        for place, token in enumerate(ids[0].tolist()):
            expected = torch.zeros(4, dtype=torch.float64) if token == NOWHERE else induction.table.weight[token]
            assert torch.equal(rows[0, place], expected)


def test_pointing_adds_gated_head_rows() -> None:
    induction = Induction((1, 2), vocab_size=7, width=4).double()
    for parameter in induction.parameters():
        torch.nn.init.normal_(parameter)
    hidden, head = torch.randn(1, 3, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    tokens = [torch.tensor([[2, NOWHERE, 6]]), torch.tensor([[NOWHERE, 0, 1]])]
    found = induction.point(hidden, tokens, head)
    for place in range(3):
        expected = hidden[0, place].clone()
        for number, ids in enumerate(tokens):
            strength = induction.gate[number] @ hidden[0, place] + induction.gate_bias[number]
            expected += strength * (head[ids[0, place]] if ids[0, place] != NOWHERE else 0)
        torch.testing.assert_close(found[0, place], expected)
