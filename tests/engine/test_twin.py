"""Models of narrow weights that no program expresses: computed in float32, whatever is computed beside them."""

import pytest
import torch
from programs import with_attention, with_capacity
from tiny import hot_decoder, hot_model, random_ids, tiny_config

import groundup as gu
from groundup.engine import kernels
from groundup.engine.compiled import cache_dtype, is_compilable
from groundup.engine.kernels import library
from groundup.engine.runner import Runner
from groundup.engine.runners import runner_of
from groundup.engine.twin import computed_in, twin_of
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.language_model import LanguageModel
from groundup.model.lora import Adapter, LowRank
from groundup.model.parts import Linear
from groundup.quantize.training import rounded

MODELS = {
    "mamba": lambda: hot_decoder(tiny_config("mamba", context=100)),
    "mamba2": lambda: hot_decoder(tiny_config("mamba2", context=100)),
    "qwen3_next": lambda: hot_decoder(tiny_config("qwen3_next", context=100)),
    "lfm2": lambda: hot_decoder(tiny_config("lfm2", context=100)),
    "distance bias": lambda: hot_decoder(with_attention(tiny_config("llama", context=100), rope=None, alibi=1.0)),
    "experts of a capacity": lambda: hot_decoder(with_capacity()),
    "t5": lambda: hot_model(tiny_config("t5")),
}
ALL_MODELS = pytest.mark.parametrize("name", list(MODELS))


@ALL_MODELS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_seed_gives_the_same_text_whatever_is_computed_beside_it(name: str, dtype: torch.dtype):
    """In PyTorch's bfloat16 the log-probabilities differ by hundredths, and most of these texts."""
    model = MODELS[name]().to(dtype)
    prompts = [random_ids(length, seed=length).tolist() for length in (7, 1, 33, 3, 20)]
    options = {"max_tokens": 25, "temperature": 0.8}
    alone = gu.Engine(model, stop_ids=[])
    expected = [alone.generate([prompt], **options)[0] for prompt in prompts]
    crowd = gu.Engine(model, stop_ids=[], cache_tokens=260, step_tokens=11, most_running=4)
    for one, other in zip(expected, crowd.generate(prompts, **options), strict=True):
        assert one.tokens == other.tokens
        torch.testing.assert_close(torch.tensor(other.logprobs), torch.tensor(one.logprobs), rtol=0, atol=1e-4)


@ALL_MODELS
def test_the_twin_computes_what_its_weights_say(name: str):
    """Against float64 with the same weights: only rounding of float32 is between them."""
    model = MODELS[name]().bfloat16()
    ids = torch.stack([random_ids(20, seed=seed) for seed in range(3)])
    inputs = (ids.flip(1), ids) if isinstance(model, EncoderDecoder) else (ids,)
    twin = twin_of(model)
    with torch.no_grad():
        found = twin(*inputs)
        exact = model.double()(*inputs)
    assert found.dtype == torch.float32
    assert (found - exact).norm() < 1e-5 * exact.norm()


def test_without_kernels_texts_are_the_same_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library, "path", lambda: None)
    model = hot_decoder(tiny_config("llama"), dtype=torch.bfloat16)
    assert not is_compilable(model) and computed_in(model) == torch.float32
    prompts = [random_ids(length, seed=length).tolist() for length in (7, 1, 33)]
    options = {"max_tokens": 20, "temperature": 0.8}
    expected = [gu.Engine(model, stop_ids=[]).generate([prompt], **options)[0] for prompt in prompts]
    found = gu.Engine(model, stop_ids=[], step_tokens=11, most_running=4).generate(prompts, **options)
    assert [one.tokens for one in found] == [one.tokens for one in expected]


def test_its_products_are_those_of_the_kernels(monkeypatch: pytest.MonkeyPatch):
    """PyTorch would make float32 of all weights for each."""
    twin, multiplied, product = twin_of(MODELS["qwen3_next"]().bfloat16()), [], kernels.product
    monkeypatch.setattr(kernels, "product", lambda x, one, bias: multiplied.append(one) or product(x, one, bias))
    with torch.no_grad():
        twin(random_ids(9, seed=1)[None])
    found = {one.weight_nk.data_ptr() for one in multiplied}
    assert twin.head_matrix.weight.data_ptr() in found and all(one.is_wide for one in multiplied)
    assert len(multiplied) >= sum(isinstance(one, Linear) for one in twin.modules())


def test_a_twin_shares_its_weights_and_leaves_the_model_as_it_was():
    model = MODELS["qwen3_next"]().bfloat16()
    seen = []
    model.layers[0].register_forward_hook(lambda *call: seen.append(call))
    twin = twin_of(model)
    shared = zip(model.named_parameters(), twin.named_parameters(), strict=True)
    assert all(name == other and one is parameter for (name, one), (other, parameter) in shared)
    assert model.compute_dtype is None and model.embedding.multiply is None
    ids = random_ids(9, seed=1)[None]
    with torch.no_grad():
        twin(ids)
        assert not seen
        before = model(ids)
        assert len(seen) == 1 and before.dtype == torch.bfloat16
        model.embedding.weight.mul_(-1)
        assert not torch.equal(twin(ids), before)


def test_others_compute_themselves():
    for model in (MODELS["mamba2"](), MODELS["mamba2"]().float()):
        assert twin_of(model) is model and computed_in(model) == model.embedding.dtype
    narrow = MODELS["mamba2"]().bfloat16()
    with rounded(narrow, "w4"):
        assert twin_of(narrow) is narrow
    narrow.compute_dtype = torch.float32
    assert twin_of(narrow) is narrow
    trained = MODELS["mamba2"]().float()
    trained.compute_dtype = torch.bfloat16  # as long as it is in training
    assert computed_in(trained) == torch.float32 and twin_of(trained).compute_dtype == torch.float32


def test_its_keys_are_kept_in_float32():
    model = MODELS["distance bias"]().bfloat16()
    assert isinstance(model, LanguageModel) and not is_compilable(model)
    assert cache_dtype(model) == torch.float32
    with pytest.raises(ValueError, match=r"this one keeps keys in torch\.float32"):
        cache_dtype(model, "bfloat16")
    runner = runner_of(model, 4, 0, 8, 2, torch.float32)
    assert isinstance(runner, Runner) and runner.model is not model


def test_adapters_add_to_the_twin():
    """What they add is computed as by the model in float32, which has the same weights."""
    model = MODELS["mamba2"]().bfloat16()
    generator = torch.Generator().manual_seed(0)
    rows, columns = model.layers[0].mixer.output.weight.shape
    low_rank = LowRank(torch.randn(2, columns, generator=generator), torch.randn(rows, 2, generator=generator))
    texts = []
    for one in (model, MODELS["mamba2"]().bfloat16().float()):
        engine = gu.Engine(one, stop_ids=[])
        engine._loop.adapters.add(Adapter("a", {"layers.0.mixer.output": low_rank}))
        texts.append([engine.generate([[1, 2, 3]], max_tokens=9, adapter=name)[0] for name in ("a", None)])
    for one, other in zip(*texts, strict=True):
        assert one.tokens == other.tokens
        torch.testing.assert_close(torch.tensor(other.logprobs), torch.tensor(one.logprobs), rtol=0, atol=1e-4)
    assert texts[0][0].logprobs != texts[0][1].logprobs
