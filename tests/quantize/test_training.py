"""Training aware of quantization: it computes what is served, and lets gradients through."""

import pytest
import torch
from tiny import DECODERS, ENCODERS, hot_decoder, hot_model, random_ids, tiny_config

from groundup.errors import UserError
from groundup.model.parts import Linear
from groundup.quantize.convert import quantize_model
from groundup.quantize.matrix import W4, WEIGHT_FORMATS, WeightFormat, dequantize, quantize_rows, rounded_weights
from groundup.quantize.training import RISING, rounded, rounded_share

ALL_FORMATS = pytest.mark.parametrize("format", WEIGHT_FORMATS.values(), ids=WEIGHT_FORMATS)


@ALL_FORMATS
def test_rounded_weights_are_those_of_the_quantized_matrix(format: WeightFormat):
    weight = torch.randn(7, 200, generator=torch.Generator().manual_seed(0))
    expected = dequantize(quantize_rows(weight, format))
    assert torch.equal(rounded_weights(weight, format), expected)
    assert torch.equal(rounded_weights(weight.view(7, 1, 200), format)[:, 0], expected)


@pytest.mark.parametrize("preset", [*DECODERS, *ENCODERS])
def test_what_training_computes_is_what_is_served(preset: str):
    """The forward pass of a model in training equals that of the model quantized to the same format."""
    model, ids = hot_model(tiny_config(preset), dtype=torch.float32), random_ids(2, 24)
    with torch.no_grad():
        plain = model(ids)
        with rounded(model, "w4"):
            found = model(ids)
        assert torch.equal(model(ids), plain), "outside of it nothing is rounded"
        quantize_model(model, W4)
        expected = model(ids)
    # A number that lies between two steps to float32's precision may be rounded either way: those are few.
    apart = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert apart.median() < 1e-5 and (plain - expected).norm() > 1e-3 * plain.norm()


@ALL_FORMATS
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_gradients_are_those_of_a_layer_with_the_numbers_that_are_seen(format: WeightFormat, share: float):
    """Of y = Q(x) S(W)ᵀ, S(W) = share · Q(W) + (1 - share) · W: by x the gradient times S(W), by W that times Q(x)."""
    draw = torch.Generator().manual_seed(0)
    linear = Linear(40, 20)
    torch.nn.init.normal_(linear.weight, generator=draw)
    x = torch.randn(6, 40, generator=draw, requires_grad=True)
    slope = torch.randn(6, 20, generator=draw)
    scale = x.detach().abs().amax(-1, keepdim=True) / 127
    integers = quantize_rows(linear.weight.detach(), format)
    rounded_x = (x.detach() / scale).round() * scale
    seen_weight = share * dequantize(integers) + (1 - share) * linear.weight.detach()
    model = hot_decoder(tiny_config("llama"), dtype=torch.float32)
    model.layers[0].mixer.query = linear
    with rounded(model, format.name, share):
        out = linear(x)
        out.backward(slope)
        assert torch.equal(linear.used_weight(), dequantize(integers)) == (share == 1)
    torch.testing.assert_close(out, rounded_x @ seen_weight.T)
    torch.testing.assert_close(x.grad, slope @ seen_weight)
    torch.testing.assert_close(linear.weight.grad, slope.T @ rounded_x)


@pytest.mark.parametrize(
    ("spent", "rounded_from", "share"),
    [
        (0.3, 0.8, 0),
        (0.8, 0.8, 0),
        (0.83, 0.8, 0.25),
        (0.92, 0.8, 1),
        (1, 0.8, 1),
        (0, 0, 0),
        (0.3, 0, 0.5),
        (0.7, 0, 1),
    ],
)
def test_the_share_rises_over_three_fifths_of_what_is_left(spent: float, rounded_from: float, share: float):
    assert RISING == 0.6
    assert rounded_share(spent, rounded_from) == pytest.approx(share, abs=1e-12)


def test_rows_that_are_looked_up_are_those_of_the_rounded_table():
    table = hot_decoder(tiny_config("llama"), dtype=torch.float32)
    ids = random_ids(2, 9)
    with rounded(table, "w4", 0.5):
        rows = table.embedding(ids, torch.float32)
        assert torch.equal(rows, table.embedding.used_weight()[ids])
        rows.sum().backward()
    counts = torch.bincount(ids.flatten(), minlength=len(table.embedding.weight))
    assert torch.equal(table.embedding.weight.grad, counts[:, None].expand_as(table.embedding.weight).float())


def test_off_is_off_and_other_models_are_refused():
    model = hot_decoder(tiny_config("llama"), dtype=torch.float32)
    for format, share in ((None, 1.0), ("w4", 0.0)):
        with rounded(model, format, share):
            assert all(module.rounding is None for module in model.modules() if isinstance(module, Linear))
    other = hot_model(tiny_config("t5"), dtype=torch.float32)
    with pytest.raises(UserError, match="a t5 model cannot be quantized"), rounded(other, "w4"):
        pass
