"""Losses and corrections that balance experts, against closed forms and `transformers`."""

import math

import pytest
import torch
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from groundup.model.experts import Routing, route
from groundup.model.specs import Router
from groundup.train.balance import expert_load, load_balance_loss, router_z_loss, update_correction


def _routing(logits: list[list[float]], chosen: int = 1, score: str = "softmax") -> Routing:
    logits_ne = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    return route(Router(logits_ne.shape[1], chosen, score), logits_ne)[0]  # type: ignore[arg-type]


def _random(tokens: int, experts: int, chosen: int) -> tuple[Tensor, Routing]:
    generator = torch.Generator().manual_seed(0)
    logits_ne = torch.randn(tokens, experts, generator=generator, dtype=torch.float64) + torch.arange(experts) / 3
    return logits_ne, route(Router(experts, chosen), logits_ne)[0]


def test_load_counts_choices_of_counted_tokens():
    routing = _routing([[3.0, 2.0, 0.0], [0.0, 1.0, 2.0], [1.0, 2.0, 0.0], [9.0, 0.0, 8.0]], chosen=2)
    assert expert_load(routing).tolist() == [3, 3, 2]
    assert expert_load(routing, torch.tensor([True, True, True, False])).tolist() == [2, 3, 1]


@pytest.mark.parametrize("chosen", [1, 2, 4])
def test_balance_loss_is_one_where_load_and_scores_are_even(chosen: int):
    turns = [[float((expert - token) % 4) for expert in range(4)] for token in range(4)]
    assert load_balance_loss(_routing(turns, chosen)).item() == pytest.approx(1.0)


def test_balance_loss_is_the_number_of_experts_where_one_gets_everything():
    assert load_balance_loss(_routing([[50.0, 0.0, 0.0]] * 5)).item() == pytest.approx(3.0)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_balance_loss_in_closed_form(score: str):
    first, second = math.log(3.0), math.log(0.5)  # odds
    routing = _routing([[first, 0.0], [first, second], [0.0, first]], score=score)
    # Scores of the first expert among both: softmax is odds / sum of odds, sigmoids are odds / (1 + odds).
    shares = {"softmax": (3 / 4, 3 / 3.5, 1 / 4), "sigmoid": (0.75 / 1.25, 0.75 / (0.75 + 1 / 3), 0.5 / 1.25)}[score]
    mean = sum(shares) / 3
    assert load_balance_loss(routing).item() == pytest.approx(2 * (2 / 3 * mean + 1 / 3 * (1 - mean)))


def test_balance_loss_pulls_the_scores_of_busy_experts_down_alone():
    routing = _routing([[1.0, 0.5], [1.0, 0.2], [0.0, 0.1]])
    load_balance_loss(routing).backward()
    gradient_ne = routing.logits_ne.grad
    # 2 · (2/3 · P + 1/3 · (1 - P)), P the mean of softmax₀: its slope by logit₀ of a token is 2/9 · p(1 - p).
    p_n = routing.scores_ne.detach()[:, 0]
    torch.testing.assert_close(gradient_ne[:, 0], 2 / 9 * p_n * (1 - p_n))
    torch.testing.assert_close(gradient_ne[:, 1], -gradient_ne[:, 0])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chosen", [1, 2, 5])
def test_balance_loss_of_one_layer_is_that_of_the_reference_by_the_number_of_choices(chosen: int, masked: bool):
    logits_ne, routing = _random(40, 5, chosen)
    counted_n = torch.arange(40) % 3 != 0 if masked else None
    mask = None if counted_n is None else counted_n.view(4, 10)
    theirs = load_balancing_loss_func((logits_ne,), 5, chosen, mask)
    assert load_balance_loss(routing, counted_n).item() == pytest.approx(float(theirs) / chosen, rel=1e-6)


def test_z_loss_is_the_mean_square_of_the_log_of_the_sum():
    routing = _routing([[math.log(3.0), 0.0], [0.0, 0.0], [7.0, 7.0]])
    expected = (math.log(4.0) ** 2 + math.log(2.0) ** 2) / 2
    assert router_z_loss(routing, torch.tensor([True, True, False])).item() == pytest.approx(expected)
    loss = router_z_loss(routing)
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
    before = expert_load(routing)
    for _ in range(400):
        update_correction(correction_e, expert_load(route(spec, logits_ne, correction_e)[0]), rate=0.001)
    after = expert_load(route(spec, logits_ne, correction_e)[0])
    assert before.max() / before.min() > 2
    assert after.max() / after.min() < 1.1
