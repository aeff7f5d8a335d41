"""Losses and corrections that balance experts, against closed forms and `transformers`."""

import math

import numpy as np
import pytest
import torch
from tiny import hot_decoder, tiny_config
from tiny_training import CONTEXT, UnevenRows, train_tiny
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from groundup.model.experts import Routing, route
from groundup.model.specs import Router
from groundup.record.metrics import read_lines
from groundup.train.balance import (
    Balance,
    Routed,
    balance_loss,
    end_step,
    expert_load,
    load_balance_loss,
    published_balance,
    router_z_loss,
    routers,
    update_correction,
)


def _routing(logits: list[list[float]], chosen: int = 1, score: str = "softmax") -> Routing:
    logits_ne = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    return route(Router(logits_ne.shape[1], chosen, score), logits_ne)[0]  # type: ignore[arg-type]


def _random(tokens: int, experts: int, chosen: int) -> tuple[Tensor, Routing]:
    generator = torch.Generator().manual_seed(0)
    logits_ne = torch.randn(tokens, experts, generator=generator, dtype=torch.float64) + torch.arange(experts) / 3
    return logits_ne, route(Router(experts, chosen), logits_ne)[0]


def _all(rows: int, places: int) -> Tensor:
    return torch.ones(rows, places, dtype=torch.bool)


def _load_balance(routing: Routing, counted_bt: Tensor | None = None) -> float:
    """Of a single row."""
    (loss,) = load_balance_loss(routing, _all(1, len(routing.scores_ne)) if counted_bt is None else counted_bt)
    return loss.item()


def test_load_counts_choices_of_counted_tokens_row_by_row():
    routing = _routing([[3.0, 2.0, 0.0], [0.0, 1.0, 2.0], [1.0, 2.0, 0.0], [9.0, 0.0, 8.0]], chosen=2)
    assert expert_load(routing, _all(1, 4)).tolist() == [[3, 3, 2]]
    assert expert_load(routing, _all(2, 2)).tolist() == [[1, 2, 1], [2, 1, 1]]
    assert expert_load(routing, torch.tensor([[True, True, True, False]])).tolist() == [[2, 3, 1]]


@pytest.mark.parametrize("chosen", [1, 2, 4])
def test_balance_loss_is_one_where_load_and_scores_are_even(chosen: int):
    turns = [[float((expert - token) % 4) for expert in range(4)] for token in range(4)]
    assert _load_balance(_routing(turns, chosen)) == pytest.approx(1.0)


def test_balance_loss_is_the_number_of_experts_where_one_gets_everything():
    assert _load_balance(_routing([[50.0, 0.0, 0.0]] * 5)) == pytest.approx(3.0)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_balance_loss_in_closed_form(score: str):
    first, second = math.log(3.0), math.log(0.5)  # odds
    routing = _routing([[first, 0.0], [first, second], [0.0, first]], score=score)
    # Scores of the first expert among both: softmax is odds / sum of odds, sigmoids are odds / (1 + odds).
    shares = {"softmax": (3 / 4, 3 / 3.5, 1 / 4), "sigmoid": (0.75 / 1.25, 0.75 / (0.75 + 1 / 3), 0.5 / 1.25)}[score]
    mean = sum(shares) / 3
    assert _load_balance(routing) == pytest.approx(2 * (2 / 3 * mean + 1 / 3 * (1 - mean)))


def test_balance_loss_pulls_the_scores_of_busy_experts_down_alone():
    routing = _routing([[1.0, 0.5], [1.0, 0.2], [0.0, 0.1]])
    load_balance_loss(routing, _all(1, 3)).sum().backward()
    gradient_ne = routing.logits_ne.grad
    # 2 · (2/3 · P + 1/3 · (1 - P)), P the mean of softmax₀: its slope by logit₀ of a token is 2/9 · p(1 - p).
    p_n = routing.scores_ne.detach()[:, 0]
    torch.testing.assert_close(gradient_ne[:, 0], 2 / 9 * p_n * (1 - p_n))
    torch.testing.assert_close(gradient_ne[:, 1], -gradient_ne[:, 0])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chosen", [1, 2, 5])
def test_the_losses_of_rows_are_those_of_the_reference_for_each_by_the_number_of_choices(chosen: int, masked: bool):
    logits_ne, routing = _random(40, 5, chosen)
    counted_bt = (torch.arange(40) % 3 != 0).view(4, 10) if masked else _all(4, 10)
    ours = load_balance_loss(routing, counted_bt)
    for row, (part, counted) in enumerate(zip(logits_ne.split(10), counted_bt, strict=True)):
        theirs = load_balancing_loss_func((part,), 5, chosen, counted[None] if masked else None)
        assert ours[row].item() == pytest.approx(float(theirs) / chosen, rel=1e-6)


def test_a_row_of_padding_has_no_loss():
    _, routing = _random(20, 5, 2)
    counted_bt = torch.stack((torch.ones(10), torch.zeros(10))).bool()
    for loss in (load_balance_loss, router_z_loss):
        assert loss(routing, counted_bt)[0] > 0
        assert loss(routing, counted_bt)[1] == 0


def test_a_loss_over_the_whole_batch_would_not_be_the_sum_of_its_parts():
    """Why the loss is one of rows: two rows that are each out of balance may balance each other."""
    routing = _routing([[50.0, 0.0], [50.0, 0.0], [0.0, 50.0], [0.0, 50.0]])
    assert load_balance_loss(routing, _all(1, 4)).tolist() == pytest.approx([1.0])
    assert load_balance_loss(routing, _all(2, 2)).tolist() == pytest.approx([2.0, 2.0])


def test_z_loss_is_the_mean_square_of_the_log_of_the_sum():
    routing = _routing([[math.log(3.0), 0.0], [0.0, 0.0], [7.0, 7.0]])
    expected = (math.log(4.0) ** 2 + math.log(2.0) ** 2) / 2
    assert router_z_loss(routing, torch.tensor([[True, True, False]])).tolist() == pytest.approx([expected])
    loss = router_z_loss(routing, _all(1, 3)).sum()
    assert loss.item() == pytest.approx((2 * expected + (7 + math.log(2.0)) ** 2) / 3)
    loss.backward()
    # The slope of z² by a logit is 2 z times its softmax.
    slope = 2 * (7 + math.log(2.0)) / 2 / 3
    torch.testing.assert_close(routing.logits_ne.grad[2], torch.full((2,), slope, dtype=torch.float64))


def test_a_correction_rises_for_idle_experts_and_falls_for_busy_ones():
    correction_e = torch.tensor([0.5, 0.0, 0.0, -1.0])
    update_correction(correction_e, torch.tensor([9.0, 3.0, 4.0, 0.0]), rate=0.25)
    assert correction_e.tolist() == [0.25, 0.25, 0.0, -0.75]


def test_corrections_even_out_the_load():
    logits_ne, routing = _random(400, 5, 2)
    spec, correction_e = Router(5, 2, "sigmoid", correction=True), torch.zeros(5, dtype=torch.float64)

    def load_e(routing: Routing) -> Tensor:
        return expert_load(routing, _all(1, 400))[0]

    before = load_e(routing)
    for _ in range(400):
        update_correction(correction_e, load_e(route(spec, logits_ne, correction_e)[0]), rate=0.001)
    after = load_e(route(spec, logits_ne, correction_e)[0])
    assert before.max() / before.min() > 2
    assert after.max() / after.min() < 1.1


def test_losses_and_loads_add_up_over_micro_batches():
    routings = [_random(40, 5, 2)[1], _random(40, 5, 1)[1]]
    balance, counted_bt = Balance(load=0.3, z=0.02, correction=0.1), torch.arange(40).view(4, 10) % 7 != 0

    def part(first: int, last: int) -> tuple[Tensor, Tensor]:
        tokens = slice(10 * first, 10 * last)
        routed = [Routed(Routing(*(one[tokens] for one in routing)), counted_bt[first:last]) for routing in routings]
        return balance_loss(routed, balance)

    whole, parts = part(0, 4), [part(0, 1), part(1, 4)]
    for total, addends in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(total, sum(addends), rtol=1e-12, atol=1e-12)
    load = sum(float(load_balance_loss(routing, counted_bt).sum()) for routing in routings)
    z = sum(float(router_z_loss(routing, counted_bt).sum()) for routing in routings)
    assert float(whole[0]) == pytest.approx(0.3 * load + 0.02 * z)
    assert whole[1][:2].tolist() == pytest.approx([load, z])
    loads = torch.cat([expert_load(routing, counted_bt).sum(0) for routing in routings])
    assert whole[1][2:].tolist() == loads.tolist()


def test_the_figures_of_a_step_are_means_and_the_busiest_and_idlest_of_all_experts():
    found = routers(hot_decoder(tiny_config("mixtral")))
    even, uneven = [6.0] * 8, [20.0, 4.0, 4.0, 4.0, 4.0, 4.0, 5.0, 3.0]
    tally = torch.tensor([6.0, 12.0, *even, *uneven], dtype=torch.float64)
    assert end_step(found, tally, rows=3, balance=Balance(1.0, 1.0, 0.0)) == {
        "load_balance_loss": 1.0,
        "router_z_loss": 2.0,
        "expert_load_max": pytest.approx(20 / 6),
        "expert_load_min": pytest.approx(3 / 6),
    }


def test_published_factors_follow_the_kind_of_router():
    assert published_balance(hot_decoder(tiny_config("llama"))) is None
    assert published_balance(hot_decoder(tiny_config("mixtral"))) == Balance(0.01, 0.001, 0.0)
    assert published_balance(hot_decoder(tiny_config("deepseek_v3"))) == Balance(0.0001, 0.0, 0.001)


# In the loop


@pytest.mark.parametrize("micro_rows", [12, 5])
def test_a_step_moves_the_corrections_by_the_load_of_all_its_rows(micro_rows: int, tmp_path):
    before = hot_decoder(tiny_config("deepseek_v3", context=CONTEXT), seed=2, dtype=torch.float32)
    after = train_tiny(tmp_path, "deepseek_v3", steps=1, micro_rows=micro_rows)
    input_ids, _, positions, segments = map(torch.from_numpy, UnevenRows().rows(np.arange(12)).arrays())
    routings: list[Routing] = []
    with torch.no_grad():
        before.hidden(input_ids, positions, segments, routings=routings)
    assert len(routings) == 1
    load = torch.tensor([sum(expert in one for one in routings[0].experts_nc.tolist()) for expert in range(16)]).float()
    ours, theirs = (model.layers[1].feed_forward.correction for model in (after, before))
    torch.testing.assert_close(ours - theirs, 0.001 * torch.sign(load.mean() - load), rtol=0, atol=1e-6)
    (line,) = read_lines(tmp_path / "metrics.jsonl")
    assert line["expert_load_max"] == pytest.approx(float(load.max() / load.mean()))
    assert line["expert_load_min"] == pytest.approx(float(load.min() / load.mean()))
    counted_bt = segments >= 0
    assert line["load_balance_loss"] == pytest.approx(
        float(load_balance_loss(routings[0], counted_bt).mean()), rel=1e-5
    )
    assert line["router_z_loss"] == pytest.approx(float(router_z_loss(routings[0], counted_bt).mean()), rel=1e-5)


def test_the_loss_in_the_metrics_is_that_of_the_tokens_alone(tmp_path):
    train_tiny(tmp_path, "mixtral", steps=1)
    model = hot_decoder(tiny_config("mixtral", context=CONTEXT), seed=2, dtype=torch.float32).double()
    input_ids, targets, positions, segments = map(torch.from_numpy, UnevenRows().rows(np.arange(12)).arrays())
    logits = model.logits(model.hidden(input_ids, positions, segments))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert read_lines(tmp_path / "metrics.jsonl")[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_decoders_without_experts_have_no_figures_of_them(tmp_path):
    train_tiny(tmp_path, "llama", steps=1)
    (line,) = read_lines(tmp_path / "metrics.jsonl")
    assert not {"load_balance_loss", "router_z_loss", "expert_load_max", "expert_load_min"} & line.keys()
