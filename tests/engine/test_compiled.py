"""Models whose layers are a program: the numbers of the same model in PyTorch, whatever is computed together."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tiny import hot_decoder, random_ids, tiny_config

import groundup as gu
from groundup.engine.blocks import BlockPool
from groundup.engine.compiled import CACHE_TYPES, CompiledRunner, cache_dtype, is_compilable
from groundup.engine.quantized import use_kernels
from groundup.engine.scheduler import Scheduler
from groundup.model.config import ModelConfig
from groundup.model.language_model import LanguageModel
from groundup.model.lora import Adapter, Adapters, LowRank
from groundup.model.specs import Norm, QueryKeyNorm
from groundup.quantize.convert import quantize_model
from groundup.quantize.matrix import WEIGHT_FORMATS
from groundup.quantize.modules import QuantizedLinear


def _with_attention(config: ModelConfig, **changes: object) -> ModelConfig:
    layers = tuple(replace(one, mixer=replace(one.attention, **changes)) for one in config.layers)
    return replace(config, layers=layers)


def _with_capacity() -> ModelConfig:
    config = tiny_config("mixtral")
    experts = config.layers[0].feed_forward
    router = replace(experts.router, chosen=1, normalised=False, capacity=3)
    return replace(config, layers=(replace(config.layers[0], feed_forward=replace(experts, router=router)),) * 2)


CONFIGS: dict[str, Callable[[], ModelConfig]] = {
    "llama": lambda: tiny_config("llama", kv_heads=1, context=100),
    "qwen3": lambda: tiny_config("qwen3", context=100),
    "olmo2": lambda: tiny_config("olmo2", context=100),
    "gemma2": lambda: tiny_config("gemma2", context=100),
    "gpt2": lambda: tiny_config("gpt2", context=100),
    "gpt_neox": lambda: tiny_config("gpt_neox", context=100),
    "nanochat": lambda: tiny_config("nanochat", context=100),
    "palm": lambda: tiny_config("palm", context=100),
    "mixtral": lambda: tiny_config("mixtral", context=100),
    "gpt_oss": lambda: tiny_config("gpt_oss", context=100),
    "no last norm": lambda: replace(tiny_config("llama", context=100), final_norm=None),
    "window": lambda: _with_attention(tiny_config("llama", context=100), window=11, sinks=True),
}


def _quantized(name: str, format: str = "w8", head: bool = False) -> LanguageModel:
    """A model of quantized layers, computed by the kernels; head: embedding and head are too."""
    model = hot_decoder(CONFIGS[name]()).float()
    floating = model.embedding, model.head
    quantize_model(model, WEIGHT_FORMATS[format])
    if not head:
        model.embedding, model.head = floating
    use_kernels(model)
    return model


@pytest.mark.parametrize("format", ["w8", "w4_g32"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_logits_are_those_of_the_model(name: str, format: str):
    model = _quantized(name, format)
    assert is_compilable(model)
    prompts = [random_ids(length, seed=length).tolist() for length in (7, 1, 40, 33)]
    runner = CompiledRunner(model, 40, 24, torch.float32)
    scheduler = Scheduler(BlockPool(40), 24, 4)
    texts = [scheduler.add(prompt, 60) for prompt in prompts]
    seen: dict[int, list[torch.Tensor]] = {number: [] for number in range(len(texts))}
    for _ in range(12):
        step = scheduler.schedule()
        for chunk, hidden_td in runner.run(step):
            seen[texts.index(chunk.sequence)].append(runner.logits(hidden_td))
        scheduler.complete(step)
        for text in texts:
            if not text.pending and len(text.tokens) < 48:
                text.tokens.append(3 + len(text.tokens) % 5)
    for number, text in enumerate(texts):
        found_tv = torch.cat(seen[number])
        with torch.no_grad():
            expected_tv = model(torch.tensor([text.tokens[: len(found_tv)]]))[0]
        _require_close(found_tv, expected_tv)


def _require_close(found_tv: torch.Tensor, expected_tv: torch.Tensor) -> None:
    """Equal to rounding, but for few tokens: where an activation lies between two integers, the last bit of a float32
    decides which it becomes, and all that follows from it differs by about a hundredth."""
    off_t = (found_tv - expected_tv).norm(dim=-1) / expected_tv.norm(dim=-1)
    assert off_t.quantile(0.8) < 2e-6
    assert off_t.max() < 3e-2


def test_a_text_is_the_same_to_the_bit_whatever_is_computed_beside_it():
    model = _quantized("gemma2", "w4_g32", head=True)
    prompts = [random_ids(length, seed=length).tolist() for length in (7, 1, 40, 3, 33)]
    alone = gu.Engine(model, stop_ids=[])
    expected = [alone.generate([prompt], max_tokens=30)[0] for prompt in prompts]
    crowd = gu.Engine(model, stop_ids=[], cache_tokens=160, step_tokens=11, most_running=4)
    for _ in range(2):  # the second time beginnings come from the cache
        for one, other in zip(expected, crowd.generate(prompts, max_tokens=30), strict=True):
            assert one.tokens == other.tokens and one.logprobs == other.logprobs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_narrow_keys_cost_less_than_activations_in_eight_bits(dtype: torch.dtype):
    """A key in bfloat16 is off by at most 2^-9 of itself, one in int8 by 1/254 of the largest of its head; an
    activation by 1/254 of the largest of all heads, at seven places of a layer instead of one."""
    model = hot_decoder(CONFIGS["llama"]()).float()
    ids = random_ids(60, seed=1).tolist()
    with torch.no_grad():
        exact_tv = model(torch.tensor([ids]))[0]
    quantize_model(model, WEIGHT_FORMATS["w8"])
    wide_tv, narrow_tv = _logits(model, ids, torch.float32), _logits(model, ids, dtype)
    assert 0 < (wide_tv - narrow_tv).norm() < (wide_tv - exact_tv).norm()


def _logits(model: LanguageModel, ids: list[int], dtype: torch.dtype) -> torch.Tensor:
    runner, scheduler = CompiledRunner(model, 8, 64, dtype), Scheduler(BlockPool(8), 64, 4)
    scheduler.add(ids, len(ids))
    ((_, hidden_td),) = runner.run(scheduler.schedule())
    return runner.logits(hidden_td)


def test_adapters_add_to_their_own_texts_what_they_add_in_the_model():
    model = _quantized("qwen3")
    adapters = [_random_adapter(model, name, seed) for seed, name in enumerate(("all", "few"))]
    runner, scheduler = CompiledRunner(model, 40, 24, torch.float32), Scheduler(BlockPool(40), 24, 4)
    wanted = [adapters[0], None, adapters[1], adapters[0]]
    prompts = [random_ids(length, seed=length).tolist() for length in (7, 9, 40, 33)]
    texts = [scheduler.add(prompt, 60, adapter=adapter) for prompt, adapter in zip(prompts, wanted, strict=True)]
    seen: dict[int, list[torch.Tensor]] = {number: [] for number in range(len(texts))}
    while (step := scheduler.schedule()).chunks:
        for chunk, hidden_td in runner.run(step):
            seen[texts.index(chunk.sequence)].append(runner.logits(hidden_td))
        scheduler.complete(step)
    in_model = Adapters(model)
    for adapter in adapters:
        in_model.add(adapter)
    for number, (prompt, adapter) in enumerate(zip(prompts, wanted, strict=True)):
        with torch.no_grad(), in_model.applied([adapter], model.device):
            expected_tv = model(torch.tensor([prompt]))[0]
        _require_close(torch.cat(seen[number]), expected_tv)


def test_an_adapter_that_is_dropped_is_not_kept_by_the_step_that_had_it_last():
    model = _quantized("llama")
    runner, scheduler = CompiledRunner(model, 40, 24, torch.float32), Scheduler(BlockPool(40), 24, 4)
    adapter = _random_adapter(model, "all", 0)
    gone = weakref.ref(adapter)
    adapted = scheduler.add([1, 2, 3], 10, adapter=adapter)
    runner.run(scheduler.schedule())
    scheduler.remove(adapted)
    scheduler.add([1, 2, 3], 10)
    runner.run(scheduler.schedule())
    del adapter, adapted
    gc.collect()
    assert gone() is None


def _random_adapter(model: LanguageModel, name: str, seed: int) -> Adapter:
    """For every linear map of the layers, or only for those of values and for the last of each layer."""
    generator = torch.Generator().manual_seed(seed)
    changes = {}
    for path, module in model.layers.named_modules():
        if isinstance(module, QuantizedLinear) and (name == "all" or path.endswith(("value", "down"))):
            down = torch.randn(3, module.columns, generator=generator) / module.columns**0.5
            changes[f"layers.{path}"] = LowRank(down, torch.randn(module.rows, 3, generator=generator))
    return Adapter(name, changes)


def test_what_moves_to_the_host_comes_back_as_it_was():
    model = _quantized("llama", head=True)
    prompts = [random_ids(length, seed=length).tolist() for length in (40, 41, 42, 43)]
    expected = [gu.Engine(model, stop_ids=[]).generate([prompt], max_tokens=20)[0] for prompt in prompts]
    engine = gu.Engine(model, stop_ids=[], cache_tokens=96, host_tokens=400, step_tokens=24, most_running=3)
    for _ in range(2):
        assert [one.tokens for one in engine.generate(prompts, max_tokens=20)] == [one.tokens for one in expected]
    assert engine.generate(prompts[:1], max_tokens=20)[0].cached == 32


BEYOND = {
    "induction": lambda: tiny_config("groundup"),
    "experts of a capacity": _with_capacity,
    "latent attention": lambda: tiny_config("deepseek_v3"),
    "recurrence": lambda: tiny_config("mamba2"),
    "distance bias": lambda: _with_attention(tiny_config("llama"), rope=None, alibi=1.0),
    "clamped values": lambda: _with_attention(tiny_config("llama"), clip=2.0),
    "both ways": lambda: _with_attention(tiny_config("llama"), causal=False),
    "a norm for each head": lambda: _with_attention(
        tiny_config("llama"), query_key_norm=QueryKeyNorm(Norm(), over="each_head")
    ),
}


@pytest.mark.parametrize("name", list(BEYOND))
def test_what_no_program_expresses_is_left_to_the_model(name: str):
    model = hot_decoder(BEYOND[name]()).float()
    quantize_model(model, WEIGHT_FORMATS["w8"])
    assert not is_compilable(model)


def test_matrices_that_are_not_quantized_are_left_to_the_model():
    assert not is_compilable(hot_decoder(tiny_config("llama")))


def test_the_type_of_keys_is_chosen_where_the_kernels_run():
    model, plain = _quantized("llama"), hot_decoder(tiny_config("llama"))
    assert cache_dtype(model) == torch.bfloat16 and cache_dtype(model, "int8") == torch.int8
    assert cache_dtype(plain) == torch.float64
    texts = {kind: gu.Engine(model, stop_ids=[], cache_type=kind).generate([[1, 2, 3]]) for kind in CACHE_TYPES}
    assert texts["float32"][0].logprobs != texts["int8"][0].logprobs
    with pytest.raises(ValueError, match="`cache_type` 'int8' is for quantized models that the kernels run"):
        gu.Engine(plain, stop_ids=[], cache_type="int8")
    with pytest.raises(ValueError, match="`cache_type` must be one of float32, bfloat16, int8, not 'int4'"):
        gu.Engine(model, stop_ids=[], cache_type="int4")
