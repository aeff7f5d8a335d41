"""The parts of preset `groundup` against their definitions, written out token by token."""

import pytest
import torch

from groundup.model.shortcuts import HASH_MULTIPLIERS, NgramEmbedding, ResidualMix, TokenValues
from groundup.model.specs import VALUE_GATE_WIDTH, Attention


def _random_(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)


@pytest.mark.parametrize("buckets", [(97,), (97, 211)])
def test_ngram_rows_are_those_of_each_tokens_own_past(buckets: tuple[int, ...]):
    ngrams = NgramEmbedding(buckets, width=5).double()
    _random_(ngrams, 0)
    # Two documents in one row: the second one's first tokens must not see the first one's last.
    tokens = [11, 7, 3, 900, 42, 7, 3]
    starts = [0, 0, 0, 0, 4, 4, 4]
    input_ids = torch.tensor([tokens])
    positions = torch.tensor([[place - start for place, start in enumerate(starts)]])

    found = ngrams(input_ids, positions, torch.float64)

    for place, token in enumerate(tokens):
        expected = torch.zeros(5, dtype=torch.float64)
        for order, rows in enumerate(buckets, start=1):
            key = token * HASH_MULTIPLIERS[0]
            for distance in range(1, order + 1):
                earlier = tokens[place - distance] if place - distance >= starts[place] else 0
                key ^= earlier * HASH_MULTIPLIERS[distance]
            expected += ngrams.tables[order - 1].weight[key % rows].detach()
        torch.testing.assert_close(found[0, place], expected)


def test_ngram_rows_continue_from_the_tokens_before():
    ngrams = NgramEmbedding((97, 211), width=5).double()
    _random_(ngrams, 1)
    input_ids = torch.randint(0, 500, (2, 9), generator=torch.Generator().manual_seed(2))
    positions = torch.arange(9).expand(2, 9)
    whole = ngrams(input_ids, positions, torch.float64)
    rest = ngrams(input_ids, positions[:, 4:], torch.float64)
    torch.testing.assert_close(rest, whole[:, 4:], rtol=0, atol=0)


def test_token_values_are_table_rows_times_twice_a_sigmoid_per_head():
    values = TokenValues(Attention(heads=4, kv_heads=2, head_dim=6), vocab_size=10).double()
    _random_(values, 3)
    x_btd = torch.randn(1, 3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    ids = torch.tensor([[8, 1, 8]])
    found = values(values.table(ids, torch.float64), x_btd)
    assert found.shape == (1, 3, 2, 6)
    for place in range(3):
        for head in range(2):
            gate = 2 / (1 + torch.exp(-(values.gate[head] @ x_btd[0, place, :VALUE_GATE_WIDTH])))
            row = values.table.weight[ids[0, place], head * 6 : head * 6 + 6]
            torch.testing.assert_close(found[0, place, head], gate * row)


def test_residuals_mix_by_one_scalar_each():
    mix = ResidualMix(3)
    with torch.no_grad():
        mix.scalars.copy_(torch.tensor([0.5, 2.0, -1.0]))
    x, first, ngram = torch.tensor([4.0]), torch.tensor([10.0]), torch.tensor([3.0])
    assert mix(x, (first, ngram)).item() == 0.5 * 4 + 2 * 10 - 3
