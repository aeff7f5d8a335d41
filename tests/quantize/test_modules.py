"""Quantized layers and models: the layers against the definition in float64, models against rounding by hand."""

from collections.abc import Callable

import pytest
import torch
from tiny import DECODERS, ENCODERS, hot_decoder, hot_model, random_ids, tiny_config
from torch import nn

from groundup.errors import UserError
from groundup.model.experts import ExpertLinear
from groundup.model.language_model import LanguageModel
from groundup.model.parts import Embedding, Linear
from groundup.quantize.convert import (
    FLOATING_LINEAR,
    places,
    quantize_model,
    quantized_format,
    quantized_outline,
    require_floating,
)
from groundup.quantize.matrix import (
    W4,
    W8,
    WEIGHT_FORMATS,
    WeightFormat,
    dequantize,
    gather,
    quantize_rows,
    quantized_linear,
)
from groundup.quantize.modules import QuantizedEmbedding, QuantizedExpertLinear, QuantizedLinear

ALL_FORMATS = pytest.mark.parametrize("format", WEIGHT_FORMATS.values(), ids=WEIGHT_FORMATS)


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _linear(format: WeightFormat, rows: int, columns: int, bias: bool) -> QuantizedLinear:
    linear = QuantizedLinear(format, rows, columns, nn.Parameter(_random(rows, seed=3)) if bias else None)
    linear.take(quantize_rows(_random(rows, columns), format))
    return linear


@ALL_FORMATS
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (17, 33), (70, 300)])
def test_a_layer_computes_what_the_definition_says(format: WeightFormat, bias: bool, shape: tuple[int, int]):
    rows, columns = shape
    linear, x = _linear(format, rows, columns, bias), _random(2, 5, columns, seed=1)
    expected = quantized_linear(x.flatten(0, 1), linear.matrix, linear.bias)
    found = linear(x)
    assert found.shape == (2, 5, rows) and found.dtype == torch.float32
    sizes = x.flatten(0, 1).abs().double() @ dequantize(linear.matrix, torch.float64).abs().T + 10
    assert ((found.flatten(0, 1) - expected).abs() <= (columns + 4) * 2**-24 * sizes).all()


def test_a_layer_answers_in_the_type_it_was_asked_in():
    linear, x = _linear(W4, 20, 40, True), _random(3, 40)
    assert torch.equal(linear(x.bfloat16()), linear(x.bfloat16().float()).bfloat16())


@ALL_FORMATS
def test_rows_are_looked_up_and_summed(format: WeightFormat):
    table = QuantizedEmbedding(format, 70, 200)
    table.take(quantize_rows(_random(70, 200), format))
    rows, ids = dequantize(table.matrix), torch.tensor([[0, 69, 15], [16, 63, 64]])
    assert torch.equal(table(ids, torch.float32), rows[ids])
    assert torch.equal(gather(table.matrix, torch.arange(70)), rows)
    weights = _random(2, 3, seed=1)
    expected = torch.stack([sum(weights[m, n] * rows[ids[m, n]] for n in range(3)) for m in range(2)])
    torch.testing.assert_close(table.sum_of_rows(ids, weights), expected)


@ALL_FORMATS
def test_each_expert_has_its_own_matrix(format: WeightFormat):
    bias = nn.Parameter(_random(3, 20, seed=4))
    experts, matrices = QuantizedExpertLinear(format, 3, 20, 40, bias), []
    for number in range(3):
        matrices.append(quantize_rows(_random(20, 40, seed=number), format))
    experts.take(*matrices)
    parts = [_random(2, 40, seed=7), torch.empty(0, 40), _random(5, 40, seed=8)]
    for part, found, matrix, one in zip(parts, experts(parts), matrices, bias.unbind(), strict=True):
        torch.testing.assert_close(found, quantized_linear(part, matrix, one).float(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def _rounded_by_hand(model: LanguageModel, format: WeightFormat) -> None:
    """A plain model in float64 that computes as the quantized one must: weights rounded beforehand, inputs by hooks."""

    def rounded(x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
        return (x / scale).round() * scale

    for _, module in list(places(model)):
        for one in module.weight if module.weight.ndim == 3 else [module.weight]:
            one.copy_(dequantize(quantize_rows(one, format), torch.float64))
        if isinstance(module, Linear):
            module.register_forward_pre_hook(lambda module, inputs: (rounded(inputs[0]),))
        elif isinstance(module, ExpertLinear):
            module.register_forward_pre_hook(lambda module, inputs: ([rounded(x) for x in inputs[0]],))
    product = model.head_matrix.product
    model.head_matrix.product = lambda x, bias: product(rounded(x), bias)  # type: ignore[method-assign]


@pytest.mark.parametrize("preset", [*DECODERS, *ENCODERS])
def test_a_quantized_model_is_the_plain_one_with_rounded_numbers(preset: str):
    """Nothing is left out and nothing is rounded twice: every kind of layer, tied heads and those with a bias."""
    ids = random_ids(2, 24)
    model, by_hand = (hot_model(tiny_config(preset), dtype=torch.float64) for _ in range(2))
    assert isinstance(by_hand, LanguageModel)
    # With 4 bits a row of an embedding this narrow consists of eighths, which lie between two steps exactly.
    _rounded_by_hand(by_hand, W8)
    quantize_model(model, W8)
    # A number that lies between two steps to float32's precision may be rounded either way: those are few.
    expected, found = by_hand(ids), model.float()(ids)
    apart = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert apart.median() < 1e-5, apart


def test_what_decides_stays_floating():
    for preset in ("deepseek_v3", "qwen3_next", "mamba2", "groundup"):
        model = hot_decoder(tiny_config(preset), dtype=torch.float32)
        named = {place.name for place in places(model)}
        linear = {name for name, module in model.named_modules() if isinstance(module, Linear | ExpertLinear)}
        left = {name for name in linear - named if name.split(".")[-1] not in FLOATING_LINEAR}
        assert not left and "embedding" in named
        quantize_model(model, W8)
        kept = {name for name, _ in model.named_parameters()}
        assert not any(f"{name}.weight" in kept for name in named)


def test_a_tied_head_is_one_matrix():
    model = hot_decoder(tiny_config("llama"), dtype=torch.float32)
    quantize_model(model, W4)
    assert model.head is None and model.head_matrix is model.embedding
    assert sum(name.startswith(("embedding.", "head.")) for name in model.state_dict()) == 2


@pytest.mark.parametrize("preset", ["t5"])
def test_other_models_are_refused_by_name(preset: str):
    model = hot_model(tiny_config(preset), dtype=torch.float32)
    with pytest.raises(UserError, match="a t5 model cannot be quantized: only models of text alone"):
        quantize_model(model, W8)


def test_weights_that_cannot_be_held_are_named():
    model = hot_decoder(tiny_config("llama"), dtype=torch.float32)
    with torch.no_grad():
        model.layers[1].mixer.value.weight[3, 4] = float("inf")
    with pytest.raises(ValueError, match=r"layers\.1\.mixer\.value: a matrix with infinite"):
        quantize_model(model, W4)


def test_an_outline_has_the_shapes_of_what_is_quantized():
    for preset in ("llama", "mixtral", "groundup", "bert"):
        model = hot_decoder(tiny_config(preset), dtype=torch.float32)
        with torch.device("meta"):
            outline = LanguageModel(model.config)
        quantized_outline(outline, W4)
        assert quantized_format(outline) == W4 and quantized_format(model) is None
        require_floating(model, "trained")
        quantize_model(model, W4)
        expected, found = model.state_dict(), outline.state_dict()
        assert {name: (one.shape, one.dtype) for name, one in found.items()} == {
            name: (one.shape, one.dtype) for name, one in expected.items()
        }
        with pytest.raises(UserError, match="a model of w4 weights cannot be trained; name the one"):
            require_floating(model, "trained")


def test_the_kernels_take_their_place(compiled_kernels: None, monkeypatch: pytest.MonkeyPatch):
    """In the engine: they are called, and give what PyTorch's operators give."""
    from groundup.engine import kernels
    from groundup.engine.engine import Engine

    model = hot_decoder(tiny_config("groundup"), dtype=torch.float32)
    quantize_model(model, W4)
    ids = random_ids(1, 30)
    expected = model(ids)
    calls: list[int] = []
    linear: Callable[..., torch.Tensor] = kernels.linear
    monkeypatch.setattr(kernels, "linear", lambda *args: (calls.append(1), linear(*args))[1])
    engine = Engine(model)
    found = model(ids)
    assert len(calls) == sum(isinstance(module, QuantizedLinear) for module in model.modules())
    assert ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).median() < 1e-5
    (written,) = engine.generate([ids[0].tolist()], max_tokens=8, temperature=0.0)
    tokens = ids[0].tolist()
    for token in written.tokens:
        assert int(model(torch.tensor([tokens]))[0, -1].argmax()) == token
        tokens.append(token)


def test_without_kernels_the_engine_uses_pytorch(monkeypatch: pytest.MonkeyPatch):
    from groundup.engine.engine import Engine
    from groundup.engine.kernels import library
    from groundup.quantize.modules import PLAIN

    monkeypatch.setattr(library, "path", lambda: None)
    model = hot_decoder(tiny_config("llama"), dtype=torch.float32)
    quantize_model(model, W8)
    (written,) = Engine(model).generate([[1, 2, 3]], max_tokens=4)
    assert len(written.tokens) and model.embedding.arithmetic is PLAIN
    assert isinstance(model.embedding, QuantizedEmbedding) and not isinstance(model.embedding, Embedding)
