"""Optimizers against linear algebra and closed forms."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import hot_decoder, hot_model, random_ids, tiny_config
from tiny_training import UnevenRows, corruption_for
from torch import Tensor, nn

from groundup.model.presets import PRESETS
from groundup.model.specs import Experts, Router
from groundup.train.learner import final_hidden, text_part
from groundup.train.optim import LearningRates, Muon, build_optimizers, orthogonalise, schedule, set_learning_rates

QUERY = "layers.0.mixer.query.weight"


def _matrices(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 64, 24), (2, 24, 64), (1, 1, 5), (1, 5, 1)], ids=str)
def test_orthogonalise_evens_the_singular_values_and_keeps_the_directions(shape: tuple[int, ...], scale: float):
    matrices = scale * _matrices(*shape)
    result = orthogonalise(matrices)
    assert result.dtype == torch.bfloat16
    for matrix, orthogonal in zip(matrices, result.double(), strict=True):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        assert values.min() > 1e-3 * values.norm()
        stretched = torch.linalg.svdvals(orthogonal)
        assert stretched.min() > 0.85
        assert stretched.max() < 1.15
        # In the basis of the matrix itself the result is diagonal, and positive: U (UᵀXV) Vᵀ with UᵀXV ≈ 1.
        core = left.T @ orthogonal @ right.T
        torch.testing.assert_close(core, torch.eye(len(values), dtype=torch.float64), rtol=0, atol=0.15)


def test_each_matrix_of_a_stack_is_orthogonalised_on_its_own():
    large, small = 100 * _matrices(1, 16, 16), 0.01 * _matrices(1, 16, 16, seed=1)
    together = orthogonalise(torch.cat((large, small)))
    assert torch.equal(together, torch.cat((orthogonalise(large), orthogonalise(small))))


@pytest.mark.parametrize("shape", [(4, 4), (8, 2), (2, 8)], ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_first_muon_step_in_closed_form(shape: tuple[int, int], weight_decay: float):
    rows, columns = shape
    gradient, start = _matrices(*shape).float(), _matrices(*shape, seed=1).float()
    weight = nn.Parameter(start.clone())
    weight.grad = gradient.clone()
    Muon([weight], lr=0.1, momentum=0.9, second_moment=0.95, weight_decay=weight_decay).step()

    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    update = left @ right
    # After one step the running mean square is 5 % of this step's: every row ends equally long, the whole as before.
    row_lengths = update.square().mean(dim=1, keepdim=True).sqrt()
    update = update / row_lengths * update.norm() / (update / row_lengths).norm()
    decayed = torch.where(update * start > 0, start * (1 - 0.1 * weight_decay), start)
    expected = decayed - 0.1 * math.sqrt(max(1.0, rows / columns)) * update
    assert (weight - expected).norm() < 0.1 * 0.15 * update.norm() * math.sqrt(max(1.0, rows / columns))
    # Independent of the iteration's accuracy: the length of the step.
    step = (weight - decayed).norm() / update.norm() / math.sqrt(max(1.0, rows / columns))
    assert step.item() == pytest.approx(0.1, rel=0.1)


def test_the_second_muon_step_follows_nesterov_momentum_and_the_running_row_norm():
    gradients = [_matrices(3, 3, seed=seed).float() for seed in (2, 3)]
    weight = nn.Parameter(torch.zeros(3, 3))
    optimizer = Muon([weight], lr=1.0, momentum=0.8, second_moment=0.75)
    for gradient in gradients:
        weight.grad = gradient.clone()
        before = weight.detach().clone()
        optimizer.step()
    average = 0.8 * (0.2 * gradients[0]) + 0.2 * gradients[1]
    torch.testing.assert_close(optimizer.state[weight]["momentum"], average)

    def orthogonal(matrix: Tensor) -> Tensor:
        return orthogonalise(matrix[None])[0].float()

    first = orthogonal(0.2 * gradients[0] + 0.8 * (0.2 * gradients[0]))
    second = orthogonal(0.2 * gradients[1] + 0.8 * average)
    mean_squares = 0.75 * 0.25 * first.square().mean(1) + 0.25 * second.square().mean(1)
    evened = second / mean_squares.sqrt()[:, None]
    torch.testing.assert_close(before - weight, evened * second.norm() / evened.norm(), rtol=1e-4, atol=1e-5)


def test_weights_without_a_gradient_stay():
    moved, still = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    moved.grad = torch.eye(2)
    Muon([moved, still], lr=0.1).step()
    assert torch.equal(still, torch.ones(2, 2))
    assert not torch.equal(moved, torch.ones(2, 2))


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_parameter_is_moved_by_exactly_one_optimizer(preset: str):
    model = hot_model(tiny_config(preset), dtype=torch.float32)
    optimizers = build_optimizers(model, LearningRates(0.02, 0.2, 0.004))
    owned = [parameter for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]]
    learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sorted(map(id, owned)) == sorted(map(id, learned.values()))
    before = {name: parameter.detach().clone() for name, parameter in learned.items()}
    rows = UnevenRows(corruption=corruption_for(preset)).rows(np.arange(4))
    text_part(model).logits(final_hidden(model, rows)).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()
    for name, parameter in learned.items():
        assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_muon_moves_the_matrices_but_the_head_and_no_table(preset: str):
    model = hot_model(tiny_config(preset), dtype=torch.float32)
    muon, _ = build_optimizers(model, LearningRates(0.02, 0.2, 0.004))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    moved = {names[id(parameter)] for group in muon.param_groups for parameter in group["params"]}
    parts = ("mixer.", "cross.", "feed_forward.", "transform.linear.")
    inside = {name for name in names.values() if any(part in name for part in parts) and name.endswith(".weight")}
    assert moved == {name for name in inside if "norm." not in name and "convolution" not in name}


@pytest.mark.parametrize("preset", ["bert", "t5"])
def test_what_is_added_to_an_embedding_keeps_its_pace_and_what_is_added_to_scores_that_of_scalars(preset: str):
    model = hot_model(tiny_config(preset))
    _, adam = build_optimizers(model, LearningRates(0.02, 0.2, 0.004))
    rates = {id(parameter): group["lr"] for group in adam.param_groups for parameter in group["params"]}
    by_name = {name: rates.get(id(parameter)) for name, parameter in model.named_parameters()}
    if preset == "bert":
        assert by_name["token_types.weight"] == by_name["positions.weight"] == by_name["embedding.weight"]
    else:
        scalars = by_name["decoder.final_norm.weight"]
        assert by_name["encoder.relative.table.weight"] == by_name["decoder.relative.table.weight"] == scalars
        assert by_name["decoder.embedding.weight"] == pytest.approx(0.004 * (32 / 768) ** -0.5)


@pytest.mark.parametrize("tied", [True, False])
def test_positions_keep_pace_with_the_embedding_that_they_are_added_to(tied: bool):
    model = hot_decoder(replace(tiny_config("gpt2"), tied_head=tied))
    _, adam = build_optimizers(model, LearningRates(0.02, 0.2, 0.004))
    rates = {id(parameter): group["lr"] for group in adam.param_groups for parameter in group["params"]}
    assert rates[id(model.positions.weight)] == rates[id(model.embedding.weight)]
    assert (rates[id(model.head_matrix.weight)] == rates[id(model.embedding.weight)]) == tied


def test_a_stack_of_matrices_is_moved_as_each_of_them_alone():
    start, gradients = _matrices(3, 8, 4).float(), [_matrices(3, 8, 4, seed=seed).float() for seed in (1, 2)]
    gradients[1][2] = 0  # an expert that no token chose
    stack, alone = nn.Parameter(start.clone()), [nn.Parameter(one.clone()) for one in start]
    optimizers = [Muon(ones, lr=0.1, momentum=0.8, weight_decay=0.5) for ones in ([stack], alone)]
    for gradient in gradients:
        stack.grad = gradient.clone()
        for parameter, one in zip(alone, gradient, strict=True):
            parameter.grad = one.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert not torch.equal(stack, start)
    torch.testing.assert_close(stack, torch.stack(list(alone)), rtol=1e-6, atol=1e-6)
    for key in ("momentum", "row_square"):
        expected = torch.stack([optimizers[1].state[parameter][key] for parameter in alone])
        torch.testing.assert_close(optimizers[0].state[stack][key], expected, rtol=1e-6, atol=1e-6)


def test_experts_are_moved_by_muon_and_their_correction_by_no_gradient():
    config = tiny_config("llama")
    layer = config.layers[0]
    experts = Experts(layer.network, Router(4, 2, "sigmoid", correction=True), shared=layer.network, shared_gate=True)
    model = hot_decoder(replace(config, layers=(replace(layer, feed_forward=experts),) * 2), dtype=torch.float32)
    muon, adam = build_optimizers(model, LearningRates(0.02, 0.2, 0.004))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_muon, by_adam = (
        {names[id(one)].partition("feed_forward.")[2] for group in optimizer.param_groups for one in group["params"]}
        for optimizer in (muon, adam)
    )
    matrices = {f"{part}.{name}.weight" for part in ("experts", "shared") for name in ("gate", "up", "down")}
    assert by_muon == {"", "router.weight", "shared_gate.weight", *matrices}
    assert by_adam == {""}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(random_ids(4, 16)).square().mean().backward()
    for optimizer in (muon, adam):
        optimizer.step()
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert still == {f"layers.{index}.feed_forward.correction" for index in range(2)}


def test_schedule_rises_stays_and_falls_to_zero():
    assert schedule(0.5, warmup=0.1, cooldown=0.4) == 1
    assert schedule(0.8, warmup=0.1, cooldown=0.4) == pytest.approx(0.5)
    assert schedule(1.0, warmup=0.1, cooldown=0.4) == 0
    assert schedule(0.05, warmup=0.1, cooldown=0.4) == pytest.approx(0.5, abs=0.011)
    assert 0 < schedule(0.0, warmup=0.1, cooldown=0.4) < 0.011
    assert [schedule(spent, warmup=0.0, cooldown=0.0) for spent in (0.0, 0.5, 1.0)] == [1, 1, 1]


def test_rates_follow_schedule_and_width_and_muon_gathers_momentum():
    model = hot_decoder(tiny_config("nanochat"), dtype=torch.float32)
    optimizers = muon, adam = build_optimizers(model, LearningRates(0.02, 0.2, 0.004), weight_decay=0.01)
    by_width = (32 / 768) ** -0.5

    def rate_of(parameter: nn.Parameter) -> float:
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        return next(group["lr"] for group in groups if any(parameter is one for one in group["params"]))

    query, table, head = (model.get_parameter(name) for name in (QUERY, "embedding.weight", "head.weight"))
    assert [rate_of(query), rate_of(table), rate_of(head)] == pytest.approx([0.02, 0.2 * by_width, 0.004 * by_width])
    for _ in range(2):  # the factor applies to the peak, not to what was set before
        set_learning_rates(optimizers, 0.25, step=150)
    assert [rate_of(query), rate_of(table), rate_of(head)] == pytest.approx([0.005, 0.05 * by_width, 0.001 * by_width])
    assert muon.param_groups[0]["momentum"] == pytest.approx(0.9)
    set_learning_rates(optimizers, 0.25, step=10_000)
    assert muon.param_groups[0]["momentum"] == pytest.approx(0.95)
    assert muon.param_groups[0]["weight_decay"] == 0.01
    assert "momentum" not in adam.param_groups[0]


def test_a_tied_head_learns_at_the_rate_of_a_head():
    model = hot_decoder(tiny_config("llama"), dtype=torch.float32)
    _, adam = build_optimizers(model, LearningRates(0.02, 0.2, 0.004))
    rates = [group["lr"] for group in adam.param_groups for one in group["params"] if one is model.head_matrix.weight]
    assert rates == pytest.approx([0.004 * (32 / 768) ** -0.5])
