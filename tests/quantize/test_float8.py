"""Products in floating point of 8 bits are off by no more than rounding makes them, and by scales that fit each row."""

import pytest
import torch
from tiny import hot_decoder, random_ids, tiny_config
from torch import Tensor

from groundup.errors import UserError
from groundup.model.experts import ExpertLinear
from groundup.model.parts import Embedding, Linear
from groundup.quantize.convert import quantize_model
from groundup.quantize.float8 import FLOAT8, Float8Linear, float8_product, float8_rows, use_float8
from groundup.quantize.matrix import WEIGHT_FORMATS

# Half of the last of three bits of mantissa; half of the smallest number, 2^-9, for those below the normal ones.
RELATIVE, LEAST = 2.0**-4, 2.0**-10


def _uneven(rows: int, columns: int, seed: int) -> Tensor:
    """Rows of very different size, with numbers of very different size."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-4, 3, rows)[torch.randperm(rows, generator=generator)]
    return torch.randn(rows, columns, generator=generator) ** 3 * sizes[:, None]


def _rounding(x_mk: Tensor) -> Tensor:
    """The most by which each number is off."""
    x_mk = x_mk.double()
    scales_m1 = x_mk.abs().amax(1, keepdim=True) / 448
    # Float32 divides by a scale that is itself rounded: 2^-22 of a number is more than both.
    return torch.maximum(RELATIVE * x_mk.abs(), LEAST * scales_m1) + 2.0**-22 * x_mk.abs()


def _back(x_mk: Tensor) -> Tensor:
    """The numbers that the rounded ones stand for, float64."""
    rows = float8_rows(x_mk)
    return rows.values_mk.double() * rows.scales_m[:, None].double()


def test_each_number_is_the_nearest_there_is():
    x_mk = _uneven(40, 64, seed=1)
    x_mk[3] = 0
    rows = float8_rows(x_mk)
    assert rows.values_mk.dtype == FLOAT8 and not rows.values_mk.float().isnan().any()
    back_mk = _back(x_mk)
    off_mk = (back_mk - x_mk.double()).abs()
    assert (off_mk <= _rounding(x_mk)).all()
    assert off_mk.max() > 0 and (back_mk[3] == 0).all()
    # All of the range is used: the largest of each row is the largest that there is.
    assert (rows.values_mk.float().abs().amax(1)[rows.scales_m > 1e-30] == 448).all()


def test_a_product_is_within_the_bound_of_its_roundings():
    """|x w − x̂ ŵ| ≤ Σ |x| δw + |w| δx + δx δw, then bfloat16's 2^-9, and 2^-24 for each of the sums of float32."""
    x_mk, weight_nk = _uneven(30, 64, seed=2), _uneven(48, 64, seed=3)
    found_mn = float8_product(float8_rows(x_mk), float8_rows(weight_nk))
    assert found_mn.dtype == torch.bfloat16
    exact_mn = x_mk.double() @ weight_nk.double().T
    x, w, dx, dw = x_mk.double().abs(), weight_nk.double().abs(), _rounding(x_mk), _rounding(weight_nk)
    bound_mn = x @ dw.T + dx @ w.T + dx @ dw.T
    size_mn = (x + dx) @ (w + dw).T
    rounded_mn = _back(x_mk) @ _back(weight_nk).T
    bound_mn = bound_mn + 2.0**-8 * (exact_mn.abs() + bound_mn) + 64 * 2.0**-24 * size_mn
    off_mn = (found_mn.double() - exact_mn).abs()
    assert (off_mn <= bound_mn).all()
    assert (off_mn / bound_mn).max() > 0.05, "the bound says nothing"
    # Against the rounded numbers themselves only the sums and the last rounding are left.
    left_mn = 2.0**-8 * rounded_mn.abs() + 64 * 2.0**-24 * size_mn
    assert ((found_mn.double() - rounded_mn).abs() <= left_mn).all()


def test_the_linear_maps_of_layers_are_replaced_and_nothing_else():
    model = hot_decoder(tiny_config("mixtral"))
    before = {name: type(module) for name, module in model.named_modules()}
    use_float8(model)
    changed = {name for name, module in model.named_modules() if type(module) is not before[name]}
    assert changed == {f"layers.{layer}.mixer.{one}" for layer in (0, 1) for one in ("query", "key", "value", "output")}
    kept = {type(module) for module in model.modules()}
    assert {Embedding, ExpertLinear, Linear, Float8Linear} <= kept


@pytest.mark.parametrize("preset", ["llama", "gpt2"])
@torch.no_grad()
def test_a_model_is_less_off_than_with_weights_of_four_bits(preset: str):
    """A number of four bits is off by up to a fifteenth of the largest of 32, one of these by a sixteenth of itself.

    gpt2 has biases. Embedding and head stay as they are in both.
    """
    exact, model, coarse = (hot_decoder(tiny_config(preset), dtype=torch.float32) for _ in range(3))
    use_float8(model)
    floating = coarse.embedding, coarse.head
    quantize_model(coarse, WEIGHT_FORMATS["w4_g32"])
    coarse.embedding, coarse.head = floating
    expected, ids = exact(random_ids(2, 40)), random_ids(2, 40)
    assert 0 < (model(ids) - expected).norm() < (coarse(ids) - expected).norm()


def test_sizes_that_are_not_multiplied_stay_and_quantized_models_are_refused():
    linear, model = Linear(24, 32), hot_decoder(tiny_config("llama"), dtype=torch.float32)
    torch.nn.init.ones_(linear.weight)
    model.layers[0].mixer.output = linear
    use_float8(model)
    assert model.layers[0].mixer.output is linear
    quantized = hot_decoder(tiny_config("llama"), dtype=torch.float32)
    quantize_model(quantized, WEIGHT_FORMATS["w8"])
    with pytest.raises(UserError, match="cannot be quantized again"):
        use_float8(quantized)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="there is no such GPU"
)
def test_a_gpu_multiplies_alike():
    """Both round alike; sums in another order differ by less than the last bit of bfloat16, rarely by that."""
    x_mk, weight_nk = _uneven(30, 64, seed=2), _uneven(48, 64, seed=3)
    expected_mn = float8_product(float8_rows(x_mk), float8_rows(weight_nk))
    found_mn = float8_product(float8_rows(x_mk.cuda()), float8_rows(weight_nk.cuda())).cpu()
    scale_mn = x_mk.abs() @ weight_nk.abs().T
    assert ((found_mn.float() - expected_mn.float()).abs() <= 2**-7 * expected_mn.float().abs() + 1e-5 * scale_mn).all()
