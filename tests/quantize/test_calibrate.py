"""Rounding with a look at the activations, against the same done in float64 and against what it is to make better."""

import pytest
import torch
from tiny import hot_decoder, random_ids, tiny_config

from groundup.model.parts import Matrix
from groundup.quantize.calibrate import DAMPING, calibrated, observe, quantize_with_errors_passed_on
from groundup.quantize.convert import places, quantize_model
from groundup.quantize.matrix import (
    W4,
    W4_SMALL_GROUPS,
    W8,
    WEIGHT_FORMATS,
    WeightFormat,
    dequantize,
    quantize_rows,
)

ALL_FORMATS = pytest.mark.parametrize("format", WEIGHT_FORMATS.values(), ids=WEIGHT_FORMATS)


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _activations(tokens: int, columns: int) -> torch.Tensor:
    """Channels that go together, as those of real models do."""
    return _random(tokens, 12, seed=5) @ _random(12, columns, seed=6) + 0.3 * _random(tokens, columns, seed=7)


def _error(weight: torch.Tensor, rounded: torch.Tensor, x: torch.Tensor) -> float:
    return float((x @ (weight - rounded).T).square().sum())


@ALL_FORMATS
@pytest.mark.parametrize("shape", [(20, 128), (33, 300), (5, 40)])
def test_outputs_come_closer_than_by_rounding_to_the_nearest(format: WeightFormat, shape: tuple[int, int]):
    weight, x = _random(*shape), _activations(1000, shape[1])
    nearest, passed_on = (
        dequantize(one)
        for one in (quantize_rows(weight, format), quantize_with_errors_passed_on(weight, x.T @ x, format))
    )
    assert _error(weight, passed_on, x) < 0.7 * _error(weight, nearest, x)


def test_each_column_is_rounded_after_the_best_correction_for_those_before_it():
    """GPTQ's rule, spelled out: of what is rounded so far the error is taken back by the others as well as can be."""
    columns = 40
    weight, x = _random(6, columns), _activations(500, columns).double()
    gram = x.T @ x
    damped = gram + DAMPING * gram.diagonal().mean() * torch.eye(columns)
    found = quantize_with_errors_passed_on(weight, gram.float(), W8)
    scales = found.scales_ng.double()
    left = weight.double().clone()
    for k in range(columns):
        integer = (left[:, k] / scales[:, 0]).round().clamp(-127, 127)
        assert torch.equal(found.integers_nk()[:, k].double(), integer), k
        error = left[:, k] - integer * scales[:, 0]
        if k + 1 < columns:
            # The change of the others that makes the damped error of the output least, by the normal equations.
            rest = slice(k + 1, columns)
            left[:, rest] += error[:, None] * torch.linalg.solve(damped[rest, rest], damped[rest, k])
        left[:, k] = integer * scales[:, 0]


@ALL_FORMATS
def test_where_activations_have_nothing_in_common_nothing_is_passed_on(format: WeightFormat):
    weight = _random(7, 200)
    found = quantize_with_errors_passed_on(weight, torch.eye(200), format)
    assert torch.equal(dequantize(found), dequantize(quantize_rows(weight, format)))


@pytest.mark.parametrize("format", [W8, W4], ids=["w8", "w4"])
def test_channels_that_are_never_used_do_no_harm(format: WeightFormat):
    weight, x = _random(7, 200), _activations(300, 200)
    x[:, 50:90] = 0
    found = quantize_with_errors_passed_on(weight, x.T @ x, format)
    apart = (dequantize(found) - weight)[:, 50:90].abs()
    step = found.scales_ng.abs().float().amax(1, keepdim=True)
    assert (apart <= 1.01 * step).all()


def test_what_cannot_be_rounded_is_refused():
    with pytest.raises(ValueError, match="infinite or undefined"):
        quantize_with_errors_passed_on(torch.tensor([[1.0, float("nan")]]), torch.eye(2), W8)


def _batches() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    ids = [random_ids(3, 20, seed=seed) for seed in range(4)]
    return [(one, torch.arange(20).expand(3, 20), torch.zeros(3, 20, dtype=torch.int32)) for one in ids]


@pytest.mark.parametrize("preset", ["groundup", "llama", "gpt2", "mixtral"])
def test_gram_matrices_are_those_of_what_each_matrix_is_given(preset: str):
    """Seen from outside, by hooks: of every layer, and of the head."""
    model = hot_decoder(tiny_config(preset), dtype=torch.float32)
    inputs: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        grams = observe(model, _batches())
        for name, module in places(model):
            if isinstance(module, Matrix):
                module.register_forward_pre_hook(
                    lambda module, given, name=name: inputs.setdefault(name, []).append(given[0])
                )
        head = "embedding" if model.head is None else "head"
        inputs = {}
        for batch in _batches():
            hidden = model.hidden(*batch)
            inputs.setdefault("the head", []).append(hidden)
    inputs = {name: one for name, one in inputs.items() if one[0].is_floating_point()}
    inputs[head] = inputs.pop("the head")
    assert inputs.keys() == grams.keys() and all(module.rounding is None for _, module in places(model))
    for name, given in inputs.items():
        x = torch.cat([one.flatten(0, -2) for one in given]).double()
        torch.testing.assert_close(grams[name].double(), x.T @ x, rtol=1e-4, atol=1e-3 * float((x.T @ x).abs().max()))


def test_a_calibrated_model_is_quantized_as_a_whole():
    model = hot_decoder(tiny_config("groundup"), dtype=torch.float32)
    names = {place.name for place in places(model)}
    grams = observe(model, _batches())
    query = model.layers[0].mixer.query.weight.detach().clone()
    quantize_model(model, W4_SMALL_GROUPS, calibrated(grams, W4_SMALL_GROUPS))
    expected = quantize_with_errors_passed_on(query, grams["layers.0.mixer.query"], W4_SMALL_GROUPS)
    assert torch.equal(model.layers[0].mixer.query.values, expected.values)
    assert not list(places(model)) and {name for name in names if name not in grams} >= {"ngrams.tables.0"}
