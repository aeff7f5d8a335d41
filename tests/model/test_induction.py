"""Built-in induction against its definition, searched for token by token."""

from collections.abc import Sequence

import pytest
import torch

from groundup.model.induction import NOWHERE, Found, NgramHeads, followers
from groundup.model.parts import Linear
from groundup.model.specs import Induction

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


def _hot(lengths: tuple[int, ...]) -> NgramHeads:
    heads = NgramHeads(Induction(lengths, places=2), layers=3, vocab_size=7, width=4).double()
    for index, parameter in enumerate(heads.parameters()):
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(index))
    return heads


# Two lengths with two places each, for three tokens: nothing found; the shorter length once; both, one of them once.
FOLLOWERS = torch.tensor([[NOWHERE, 2, 6], [NOWHERE, NOWHERE, 0], [NOWHERE, NOWHERE, 6], [NOWHERE, NOWHERE, NOWHERE]])
LONGEST = (0, 1, 2)


@pytest.mark.parametrize("layer", range(3))
def test_layers_are_offered_the_followers_rows_weighted_by_the_longest_length_found(layer: int) -> None:
    heads = _hot((1, 3))
    offered = Found(heads, FOLLOWERS[:, None]).offer(layer, torch.float64)
    for place, tokens in enumerate(FOLLOWERS.T.tolist()):
        expected = torch.zeros(4, dtype=torch.float64)
        for term, token in enumerate(tokens):
            if token != NOWHERE:
                expected += heads.weight[layer, LONGEST[place], term] * heads.table.weight[token]
        torch.testing.assert_close(offered[0, place], expected)


def test_pointing_adds_gated_head_rows() -> None:
    heads = _hot((1, 2))
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 3, 4, dtype=torch.float64, generator=generator)
    head = Linear(4, 7).double()
    torch.nn.init.normal_(head.weight, generator=generator)
    found = Found(heads, FOLLOWERS[:, None]).point(hidden, head)
    for place, tokens in enumerate(FOLLOWERS.T.tolist()):
        expected = hidden[0, place].clone()
        for term, token in enumerate(tokens):
            if token != NOWHERE:
                strength = heads.gate[term] @ hidden[0, place] + heads.gate_bias[LONGEST[place], term]
                expected += strength * head.weight[token]
        torch.testing.assert_close(found[0, place], expected)
