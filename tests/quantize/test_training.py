"""Training aware of quantization: it computes what is served, and lets gradients through."""

import pytest
import torch
from tiny import DECODERS, ENCODERS, hot_decoder, hot_model, random_ids, tiny_config

from groundup.errors import UserError
from groundup.model.parts import Linear
from groundup.quantize.convert import nearest, quantize_model
from groundup.quantize.matrix import W4, WEIGHT_FORMATS, WeightFormat, dequantize, quantize_rows, rounded_weights
from groundup.quantize.training import as_served

ALL_FORMATS = pytest.mark.parametrize("format", WEIGHT_FORMATS.values(), ids=WEIGHT_FORMATS)


@ALL_FORMATS
@pytest.mark.parametrize("search", [False, True])
def test_rounded_weights_are_those_of_the_quantized_matrix(format: WeightFormat, search: bool):
    weight = torch.randn(7, 200, generator=torch.Generator().manual_seed(0))
    expected = dequantize(quantize_rows(weight, format, search))
    assert torch.equal(rounded_weights(weight, format, search), expected)
    assert torch.equal(rounded_weights(weight.view(7, 1, 200), format, search)[:, 0], expected)


@pytest.mark.parametrize("preset", [*DECODERS, *ENCODERS])
def test_what_training_computes_is_what_is_served(preset: str):
    """The forward pass of a model in training equals that of the model quantized to the same format."""
    model, ids = hot_model(tiny_config(preset), dtype=torch.float32), random_ids(2, 24)
    with torch.no_grad():
        plain = model(ids)
        with as_served(model, "w4"):
            found = model(ids)
        assert torch.equal(model(ids), plain), "outside of it nothing is rounded"
        quantize_model(model, W4, lambda name, weight: nearest(weight, W4, search=False))
        expected = model(ids)
    # A number that lies between two steps to float32's precision may be rounded either way: those are few.
    apart = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert apart.median() < 1e-5 and (plain - expected).norm() > 1e-3 * plain.norm()


@ALL_FORMATS
def test_gradients_are_those_of_a_layer_with_the_rounded_numbers(format: WeightFormat):
    """Of y = Q(x) Q(W)ᵀ: by x the gradient times Q(W), by W the gradient times Q(x)."""
    draw = torch.Generator().manual_seed(0)
    linear = Linear(40, 20)
    torch.nn.init.normal_(linear.weight, generator=draw)
    x = torch.randn(6, 40, generator=draw, requires_grad=True)
    slope = torch.randn(6, 20, generator=draw)
    scale = x.detach().abs().amax(-1, keepdim=True) / 127
    rounded_x = (x.detach() / scale).round() * scale
    rounded_weight = dequantize(quantize_rows(linear.weight.detach(), format, search=False))
    model = hot_decoder(tiny_config("llama"), dtype=torch.float32)
    model.layers[0].mixer.query = linear
    with as_served(model, format.name):
        out = linear(x)
        out.backward(slope)
    torch.testing.assert_close(out, rounded_x @ rounded_weight.T)
    torch.testing.assert_close(x.grad, slope @ rounded_weight)
    torch.testing.assert_close(linear.weight.grad, slope.T @ rounded_x)


@pytest.mark.parametrize("preset", ["groundup", "mixtral"])
def test_weights_that_have_changed_are_rounded_anew(preset: str):
    """Without gradients rounded weights are kept, but only for as long as they are those of the model."""
    model, ids = hot_decoder(tiny_config(preset), dtype=torch.float32), random_ids(1, 12)
    with as_served(model, "w4"), torch.no_grad():
        first = model(ids)
        assert torch.equal(model(ids), first)
        for parameter in model.parameters():
            parameter.mul_(1.25)
        found = model(ids)
    with as_served(model, "w4"), torch.no_grad():
        expected = model(ids)
    assert torch.equal(found, expected) and not torch.equal(found, first)


def test_off_is_off_and_other_models_are_refused():
    model = hot_decoder(tiny_config("llama"), dtype=torch.float32)
    with as_served(model, None):
        assert all(module.rounding is None for module in model.modules() if isinstance(module, Linear))
    other = hot_model(tiny_config("t5"), dtype=torch.float32)
    with pytest.raises(UserError, match="a t5 model cannot be quantized"), as_served(other, "w4"):
        pass
