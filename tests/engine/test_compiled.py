"""Models whose layers are a program: the numbers of the same model in PyTorch, whatever is computed together."""

import gc
import weakref
from typing import Any

import pytest
import torch
from programs import CONFIGS, differences, with_attention, with_capacity
from tiny import hot_decoder, random_ids, tiny_config

import groundup as gu
from groundup.engine import cache_plan
from groundup.engine.blocks import BlockPool
from groundup.engine.compiled import CACHE_TYPES, CompiledRunner, cache_dtype, is_compilable
from groundup.engine.copies import Copy
from groundup.engine.kernels import library
from groundup.engine.loading import use_kernels
from groundup.engine.scheduler import Scheduler
from groundup.model.language_model import LanguageModel
from groundup.model.lora import Adapter, LowRank, LowRankTable
from groundup.model.parts import Linear
from groundup.quantize.convert import quantize_model
from groundup.quantize.matrix import WEIGHT_FORMATS
from groundup.quantize.modules import QuantizedLinear


def _quantized(name: str, format: str = "w8", head: bool = False) -> LanguageModel:
    """A model of quantized layers, computed by the kernels; head: embedding and head are too."""
    model = hot_decoder(CONFIGS[name]()).float()
    floating = model.embedding, model.head
    quantize_model(model, WEIGHT_FORMATS[format])
    if not head and model.induction is None:
        model.embedding, model.head = floating
    use_kernels(model)
    return model


@pytest.mark.parametrize("format", ["w8", "w4_g32"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_logits_are_those_of_the_model(name: str, format: str):
    model = _quantized(name, format)
    assert is_compilable(model)
    if model.config.residual_mix:  # short, as there is more to be rounded, and with few words, which repeat
        prompts, longest = [random_ids(length, seed=length, vocabulary=4).tolist() for length in range(3, 15)], 15
    else:
        prompts, longest = [random_ids(length, seed=length).tolist() for length in (7, 1, 40, 33)], 48
    _require_small(differences(model, prompts, longest))


def _require_small(off_n: torch.Tensor) -> None:
    """Equal to rounding, but for few tokens: where an activation lies between two integers, the last bit of a float32
    decides which it becomes, and all that follows from it differs by about a hundredth."""
    assert off_n.quantile(0.75) < 2e-6
    assert off_n.max() < 5e-2


def test_a_text_can_be_as_long_as_the_model_allows():
    model = _quantized("llama")
    ids = random_ids(model.config.max_positions, seed=2).tolist()
    with torch.no_grad():
        expected_tv = model(torch.tensor([ids]))[0]
    _require_small((_logits(model, ids, torch.float32) - expected_tv).norm(dim=-1) / expected_tv.norm(dim=-1))


@pytest.mark.parametrize("name", ["gemma2", "groundup"])
def test_a_text_is_the_same_to_the_bit_whatever_is_computed_beside_it(name: str):
    model = _quantized(name, "w4_g32", head=True)
    prompts = [random_ids(length, seed=length).tolist() for length in (7, 1, 40, 3, 33)]
    alone = gu.Engine(model, stop_ids=[])
    expected = [alone.generate([prompt], max_tokens=30)[0] for prompt in prompts]
    crowd = gu.Engine(model, stop_ids=[], cache_tokens=160, step_tokens=11, most_running=4)
    for _ in range(2):  # the second time beginnings come from the cache
        for one, other in zip(expected, crowd.generate(prompts, max_tokens=30), strict=True):
            assert one.tokens == other.tokens and one.logprobs == other.logprobs
    guessing = gu.Engine(model, stop_ids=[], speculate=gu.PromptLookup())
    for one, other in zip(expected, guessing.generate(prompts, max_tokens=30), strict=True):
        assert one.tokens == other.tokens and one.logprobs == other.logprobs


@pytest.mark.parametrize("host", [0, 300])
@pytest.mark.parametrize("cache_type", ["float32", "bfloat16", "int8"])
def test_texts_are_the_same_to_the_bit_with_as_few_blocks_of_windows_as_can_be(
    cache_type: Any, host: int, monkeypatch: pytest.MonkeyPatch
):
    """Others have taken what was out of sight when a text comes again, or one that begins like it."""
    model = _quantized("some windows", "w4_g32", head=True)
    shared = random_ids(40, seed=1).tolist()
    prompts = [[*shared[: 7 * number], *random_ids(40, seed=number).tolist()] for number in range(6)]
    limits = {"step_tokens": 24, "most_running": 2, "cache_type": cache_type}
    alone = gu.Engine(model, stop_ids=[], **limits)
    expected = [alone.generate([prompt], max_tokens=20)[0] for prompt in prompts]
    monkeypatch.setattr(cache_plan, "BLOCKS_PER_FURTHER_ONE", 100)
    crowd = gu.Engine(model, stop_ids=[], cache_tokens=240, host_tokens=host, **limits)
    assert crowd._pool.windows is not None and crowd._pool.windows.count == 2 * 3 + 2 < crowd._pool.count
    for _ in range(3):
        for one, other in zip(expected, crowd.generate(prompts, max_tokens=20), strict=True):
            assert one.tokens == other.tokens and one.logprobs == other.logprobs
    assert crowd._pool.windows.available == 8


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
    runner, scheduler = CompiledRunner(model, 8, len(ids), dtype), Scheduler(BlockPool(8), len(ids), 4)
    scheduler.add(ids, len(ids))
    return runner.logits(runner.run(scheduler.schedule()), [None] * len(ids))


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("qwen3", False),
        ("qwen3", True),
        ("gpt2", True),
        ("groundup", True),
        ("qwen2_moe", False),
        ("narrow embedding", True),
    ],
)
def test_adapters_add_to_their_own_texts_what_they_add_in_the_model(name: str, head: bool):
    """Also to embedding and head, whether the kernels compute these or the model does."""
    model = _quantized(name, head=head)
    adapters = [_random_adapter(model, kind, seed) for seed, kind in enumerate(("all", "few"))]
    lengths = (7, 9, 12, 11) if model.config.residual_mix else (7, 9, 40, 33)
    prompts = [random_ids(length, seed=length).tolist() for length in lengths]
    _require_small(differences(model, prompts, 0, [adapters[0], None, adapters[1], adapters[0]]))


def test_scores_are_of_the_head_that_the_adapter_makes():
    """The same activations through the head, as many tokens as they are, and one that a text goes on from."""
    model = _quantized("llama")
    runner, scheduler = CompiledRunner(model, 8, 24, torch.float32), Scheduler(BlockPool(8), 24, 4)
    ids, adapter = random_ids(20, seed=1).tolist(), _random_adapter(model, "all", 0)
    runner.adapters.add(adapter)
    scheduler.add(ids, 20, adapter=adapter)
    hidden_td = runner.run(scheduler.schedule())
    logits_tv = runner.logits(hidden_td, [adapter] * 20).log_softmax(-1)
    expected_t = logits_tv[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0]
    found_t = torch.tensor([choice.logprob for choice in runner.score(hidden_td, ids[1:], adapter, top=0)])
    torch.testing.assert_close(found_t, expected_t, rtol=1e-5, atol=1e-5)


def test_a_step_is_one_call_of_the_library_with_adapters_and_without(monkeypatch: pytest.MonkeyPatch):
    model = _quantized("llama")
    runner, scheduler = CompiledRunner(model, 8, 24, torch.float32), Scheduler(BlockPool(8), 24, 4)
    adapter, called, call = _random_adapter(model, "few", 0), [], library.call
    runner.adapters.add(adapter)
    monkeypatch.setattr(library, "call", lambda name, job: (called.append(name), call(name, job)))
    counts = []
    for wanted in (None, adapter, None):
        called.clear()
        text = scheduler.add([1, 2, 3], 10, adapter=wanted)
        runner.run(scheduler.schedule())
        scheduler.remove(text)
        counts.append(called.count("program"))
    assert counts == [1, 1, 1]


def test_blocks_are_copied_one_after_the_other():
    """One that is saved elsewhere, written over, and fetched back is as it was."""
    model = _quantized("llama")
    runner, scheduler = CompiledRunner(model, 8, 24, torch.float32), Scheduler(BlockPool(8), 24, 4)
    text = scheduler.add(random_ids(20, seed=1).tolist(), 30)
    step = scheduler.schedule()
    runner.run(step)
    scheduler.complete(step)
    text.tokens.append(5)
    step, block = scheduler.schedule(), text.table.block_of(0)
    expected_td = runner.run(step)[0][1].clone()
    changed_td = runner.run(step._replace(copies=[Copy(block, 5), Copy(7, block)]))[0][1].clone()
    runner.run(step._replace(copies=[Copy(5, block)]))
    found_td = runner.run(step._replace(copies=[Copy(block, 6), Copy(7, block), Copy(6, block)]))[0][1]
    assert torch.equal(found_td, expected_td) and not torch.equal(changed_td, expected_td)


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


def _random_adapter(model: LanguageModel, kind: str, seed: int) -> Adapter:
    """For every linear map, the embedding and the head, or only for the maps of values and the last of each layer."""
    generator = torch.Generator().manual_seed(seed)

    def low_rank(inputs: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
        down = torch.randn(3, inputs, generator=generator) / inputs**0.5
        return down, torch.randn(outputs, 3, generator=generator)

    changes: dict[str, LowRank | LowRankTable] = {}
    for path, module in model.named_modules():
        if not path.startswith(("layers.", "embedding_")) or (kind == "few" and not path.endswith(("value", "down"))):
            continue
        if isinstance(module, QuantizedLinear):
            changes[path] = LowRank(*low_rank(module.columns, module.rows))
        elif isinstance(module, Linear):
            changes[path] = LowRank(*low_rank(*module.weight.shape[::-1]))
    if kind == "all":
        changes["embedding"] = LowRankTable(*low_rank(model.config.vocab_size, model.config.table_width))
        changes["head_product"] = LowRank(*low_rank(model.config.table_width, model.config.vocab_size))
    return Adapter(kind, changes)


def test_what_moves_to_the_host_comes_back_as_it_was():
    model = _quantized("llama", head=True)
    prompts = [random_ids(length, seed=length).tolist() for length in (40, 41, 42, 43)]
    expected = [gu.Engine(model, stop_ids=[]).generate([prompt], max_tokens=20)[0] for prompt in prompts]
    engine = gu.Engine(model, stop_ids=[], cache_tokens=96, host_tokens=400, step_tokens=24, most_running=3)
    for _ in range(2):
        assert [one.tokens for one in engine.generate(prompts, max_tokens=20)] == [one.tokens for one in expected]
    assert engine.generate(prompts[:1], max_tokens=20)[0].cached == 32


BEYOND = {
    "experts of a capacity": with_capacity,
    "recurrence": lambda: tiny_config("mamba2"),
    "distance bias": lambda: with_attention(tiny_config("llama"), rope=None, alibi=1.0),
    "both ways": lambda: with_attention(tiny_config("llama"), causal=False),
}


@pytest.mark.parametrize("name", list(BEYOND))
def test_what_no_program_expresses_is_left_to_the_model(name: str):
    model = hot_decoder(BEYOND[name]()).float()
    quantize_model(model, WEIGHT_FORMATS["w8"])
    assert not is_compilable(model)


def test_the_type_of_keys_is_chosen_where_the_kernels_run():
    model, plain = _quantized("llama"), hot_decoder(tiny_config("llama"))
    assert cache_dtype(model) == torch.bfloat16 and cache_dtype(model, "int8") == torch.int8
    assert cache_dtype(plain) == torch.float64
    texts = {kind: gu.Engine(model, stop_ids=[], cache_type=kind).generate([[1, 2, 3]]) for kind in CACHE_TYPES}
    assert texts["float32"][0].logprobs != texts["int8"][0].logprobs
    with pytest.raises(ValueError, match="`cache_type` 'int8' is for models that the kernels run"):
        gu.Engine(plain, stop_ids=[], cache_type="int8")
    with pytest.raises(ValueError, match="`cache_type` must be one of float32, bfloat16, int8, not 'int4'"):
        gu.Engine(model, stop_ids=[], cache_type="int4")
