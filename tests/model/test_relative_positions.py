"""T5's buckets of distances against its paper's rule in exact numbers, and against the reference."""

import math
from fractions import Fraction

import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from groundup.model.config import RelativePositions
from groundup.model.positions import RelativeBias, bucket_borders
from groundup.model.specs import Attention

SIZES = [(32, 128), (64, 256), (8, 20), (4, 9), (16, 100), (32, 17)]
EVERY_SIZE = pytest.mark.parametrize(("buckets", "farthest"), SIZES)
BOTH_KINDS = pytest.mark.parametrize("causal", [False, True], ids=["both sides", "causal"])


def _bias(buckets: int, farthest: int, causal: bool) -> RelativeBias:
    bias = RelativeBias(RelativePositions(buckets, farthest), Attention(3, 3, 4, causal=causal))
    torch.nn.init.normal_(bias.table.weight, generator=torch.Generator().manual_seed(0))
    return bias


def _by_definition(distance: int, buckets: int, farthest: int) -> int:
    """The bucket of a distance in one direction: logarithms compared as powers, so without any rounding."""
    near = buckets // 2
    if distance < near:
        return distance
    steps = buckets - near
    reached = [k for k in range(steps) if Fraction(distance, near) ** steps >= Fraction(farthest, near) ** k]
    return near + reached[-1]


@BOTH_KINDS
@EVERY_SIZE
def test_every_distance_is_in_the_bucket_of_the_definition(buckets: int, farthest: int, causal: bool):
    bias, reach = _bias(buckets, farthest, causal), 2 * farthest + 5
    own = buckets if causal else buckets // 2
    for distance, found in zip(range(-reach, reach), bias.buckets(torch.arange(-reach, reach)).tolist(), strict=True):
        far = max(0, -distance) if causal else abs(distance)
        side = 0 if causal or distance <= 0 else own
        assert found == side + _by_definition(far, own, farthest), distance


@BOTH_KINDS
@EVERY_SIZE
def test_every_distance_is_in_the_bucket_of_the_reference(buckets: int, farthest: int, causal: bool):
    bias, distances = _bias(buckets, farthest, causal), torch.arange(-3 * farthest, 3 * farthest)
    expected = T5Attention._relative_position_bucket(
        distances, bidirectional=not causal, num_buckets=buckets, max_distance=farthest
    )
    assert torch.equal(bias.buckets(distances), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@EVERY_SIZE
def test_the_formula_of_the_paper_agrees_in_both_types(buckets: int, farthest: int, dtype: torch.dtype):
    near = buckets // 2
    far = torch.arange(near, 2 * farthest)
    steps = torch.log(far.to(dtype) / near) / math.log(farthest / near) * (buckets - near)
    expected = (near + steps.long()).clamp(max=buckets - 1)
    found = torch.bucketize(far, torch.tensor(bucket_borders(buckets, farthest)), right=True)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("distance", [16, 32, 64])
def test_a_border_that_is_a_whole_number_begins_a_bucket(distance: int):
    """8 · 16^(k/8) is a whole number for these alone, where a logarithm too small by a bit would be wrong."""
    first, second = torch.tensor(distance - 1), torch.tensor(distance)
    bias = _bias(32, 128, causal=False)
    assert int(bias.buckets(second)) == int(bias.buckets(first)) + 1 == 16 + 8 + round(2 * math.log2(distance / 8))


@BOTH_KINDS
@pytest.mark.parametrize("time", [1, 7, 40])
def test_the_last_rows_of_the_bias_are_those_of_the_whole(causal: bool, time: int):
    bias = _bias(32, 128, causal)
    whole = bias(40, 40)
    assert torch.equal(bias(time, 40), whole[:, 40 - time :])
    for query in range(40):
        for key in range(40):
            row = int(bias.buckets(torch.tensor(key - query)))
            assert torch.equal(whole[:, query, key], bias.table.weight[row])
