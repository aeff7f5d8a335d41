"""What is assembled for a model: as much cache as was said, and limits in which something can be computed."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from sourced import sourced_model
from tiny import hot_decoder, tiny_config

import groundup as gu
from groundup.engine import cache_plan
from groundup.engine.assembly import assemble, cache_tokens_for
from groundup.engine.blocks import BLOCK_TOKENS
from groundup.engine.kernels import KeyValueBlocks
from groundup.engine.kernels.checks import round_up
from groundup.engine.paged import Slots
from groundup.hardware import usable_memory_bytes
from groundup.model.language_model import LanguageModel
from groundup.quantize.convert import quantize_model
from groundup.quantize.matrix import W8


def _held_bytes(runner: Any) -> int:
    """Of keys, values and token ids, once something has been computed."""
    if hasattr(runner, "_key_values"):
        layers: list[KeyValueBlocks] = runner._key_values
        parts = [(each.keys, each.values, each.key_scales, each.value_scales) for each in layers]
        return sum(tensor.nbytes for tensors in parts for tensor in tensors)
    slots: list[Slots] = [runner._store.ids, *runner._store.keys, *runner._store.values]
    return sum(each._values_hnk.nbytes for each in slots if each._values_hnk is not None)


def _model(preset: str, quantized: bool) -> LanguageModel:
    model = hot_decoder(tiny_config(preset, context=100), dtype=torch.float32)
    if quantized:
        quantize_model(model, W8)
    return model


@pytest.mark.parametrize(
    ("preset", "quantized", "cache_type"),
    [
        ("llama", False, None),
        ("deepseek_v3", False, None),
        ("llama", True, "float32"),
        ("llama", True, None),
        ("llama", True, "int8"),
        ("deepseek_v3", True, None),
        ("deepseek_v3", True, "int8"),
    ],
)
def test_the_usual_cache_takes_the_memory_that_it_may(
    preset: str, quantized: bool, cache_type: Any, compiled: None, monkeypatch: pytest.MonkeyPatch
):
    """No more but for the last block, and no less than half."""
    monkeypatch.setattr(cache_plan, "CACHE_BYTES", 400_000)
    engine = gu.Engine(_model(preset, quantized), stop_ids=[], most_running=500, cache_type=cache_type)
    engine.generate([[1, 2, 3]], max_tokens=2)
    held, blocks = _held_bytes(engine._loop._runner), engine._pool.count
    assert held * (blocks - 1) / blocks <= 400_000
    assert held >= 200_000


def _with_a_window(quantized: bool, window: int | None) -> LanguageModel:
    """Three layers, all but the second of which see so many tokens."""
    config = tiny_config("llama", kv_heads=1, context=1000)
    layer = config.layers[0]
    seeing = replace(layer, mixer=replace(layer.attention, window=window))
    model = hot_decoder(replace(config, layers=(seeing, layer, seeing)), dtype=torch.float32)
    if quantized:
        quantize_model(model, W8)
    return model


@pytest.mark.parametrize("quantized", [False, True])
def test_where_some_layers_see_a_window_as_much_memory_holds_more_tokens(
    quantized: bool, compiled: None, monkeypatch: pytest.MonkeyPatch
):
    """Three texts have at most 3 · (2 + 2) + 1 blocks of 20 tokens in sight; a quarter of all blocks comes to that."""
    monkeypatch.setattr(cache_plan, "CACHE_BYTES", 400_000)
    tokens = {}
    for window in (20, None):
        engine = gu.Engine(_with_a_window(quantized, window), stop_ids=[], most_running=3, step_tokens=16)
        engine.generate([[1, 2, 3]], max_tokens=2)
        pool, held = engine._pool, _held_bytes(engine._loop._runner)
        assert held * (pool.count - 1) / pool.count <= 400_000
        assert held >= 200_000
        tokens[window] = pool.tokens
        assert pool.windows is None if window is None else pool.windows.count == 13 + pool.count // 4
    assert tokens[20] > 1.3 * tokens[None]


def test_the_usual_cache_holds_a_text_of_full_length_however_small_it_may_be(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache_plan, "CACHE_BYTES", 1)
    pool = assemble(_model("llama", quantized=False), 64, 4).pool
    assert pool.tokens == 112  # 100 in whole blocks
    (written,) = gu.Engine(_model("llama", quantized=False), stop_ids=[]).generate([[1] * 90], max_tokens=500)
    assert len(written.tokens) == 10
    # Of an encoder-decoder also its source: 100 tokens here, and of sound 30 places.
    assert assemble(sourced_model("text"), 64, 4).pool.tokens == 208
    assert assemble(sourced_model("sound"), 64, 4).pool.tokens == 144


def test_the_usual_cache_leaves_half_of_the_memory_however_long_texts_may_be(monkeypatch: pytest.MonkeyPatch):
    """Two layers of a head of 8 or more: what a text of 100 tokens takes would be all of the memory."""
    model = _model("llama", quantized=False)
    everything = assemble(model, 64, 1).pool.tokens * sum(cache_plan._token_bytes(model, torch.float32))
    monkeypatch.setattr(cache_plan, "memory_bytes", lambda device: everything)
    engine = gu.Engine(model, stop_ids=[])
    assert 100 / 2 <= engine._pool.tokens <= 112 / 2 + BLOCK_TOKENS
    with pytest.raises(ValueError, match="a text of up to 90 tokens does not fit into the cache"):
        engine.generate([[1] * 90], max_tokens=1)
    assert len(engine.generate([[1] * 30], max_tokens=2)[0].tokens) == 2


def test_the_usual_cache_is_no_larger_than_what_can_run_at_a_time():
    pool = assemble(_model("llama", quantized=False), 64, most_running=3).pool
    assert pool.tokens == 304 and pool.host == 0


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"cache_tokens": 0}, "`cache_tokens` must be an integer of at least 1, not 0"),
        ({"cache_tokens": "9"}, "`cache_tokens` must be an integer of at least 1, not '9'"),
        ({"host_tokens": -1}, "`host_tokens` must be an integer of at least 0, not -1"),
        ({"step_tokens": 2.5}, "`step_tokens` must be an integer of at least 1, not 2.5"),
        ({"most_running": True}, "`most_running` must be an integer of at least 1, not True"),
        ({"step_tokens": 8}, r"`most_running` must be at most `step_tokens` \(8\), not 64"),
    ],
)
def test_limits_in_which_nothing_can_be_computed_are_refused_by_name(limits: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        gu.Engine(_model("llama", quantized=False), stop_ids=[], **limits)


@pytest.mark.parametrize("tokens", [31, 32, 33])
def test_texts_for_which_a_cache_was_measured_are_computed_at_a_time(tokens: int):
    """With the blocks of the prompts alone, the last one would wait until another has ended."""
    model, cpu = _model("llama", quantized=False), torch.device("cpu")
    for cache_tokens, together in ((cache_tokens_for(3, tokens, cpu), 3), (3 * round_up(tokens, BLOCK_TOKENS), 2)):
        scheduler = assemble(model, 64 * 3, 3, cache_tokens=cache_tokens).scheduler
        for number in range(3):
            scheduler.add([number] * tokens, tokens)
        assert len(scheduler.schedule().chunks) == together


def test_limits_are_those_that_were_said():
    model = _model("llama", quantized=False)
    pool = assemble(model, 64, 4, cache_tokens=20, host_tokens=50).pool
    assert (pool.count, pool.host, pool.block_size) == (2, 4, BLOCK_TOKENS)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("tokens", [10**15, 10**30])
def test_a_cache_that_no_memory_has_room_for_is_refused_in_a_sentence(tokens: int, quantized: bool, compiled: None):
    """The size is that of keys and values, or of one layer's: never more than what would be taken."""
    with pytest.raises(ValueError, match=f"`cache_tokens`.*: room for {tokens} tokens takes at least") as found:
        gu.Engine(_model("llama", quantized), stop_ids=[], cache_tokens=tokens)
    size, machine = re.findall(r"([\d,.]+) GiB", str(found.value))
    # Two layers of one kv head, or more, of at least 8 numbers in 2 bytes.
    assert float(size.replace(",", "")) >= tokens * 2 * 2 * 8 * 2 / 2**30 - 1
    assert float(machine.replace(",", "")) == pytest.approx(usable_memory_bytes() / 2**30, abs=0.06)
    assert isinstance(found.value.__cause__, MemoryError | OverflowError | RuntimeError)


@pytest.mark.parametrize("quantized", [False, True])
def test_a_cache_that_the_system_would_promise_and_not_have_is_refused(quantized: bool, compiled: None):
    """Half as much again as the machine has: nothing raises where memory is taken when it is written to."""
    model = _model("llama", quantized)
    token_bytes = 2 * 2 * model.config.layers[0].attention.kv_heads * model.config.layers[0].attention.head_dim * 2
    with pytest.raises(ValueError, match=r"`cache_tokens`.*takes at least"):
        gu.Engine(model, stop_ids=[], cache_tokens=int(1.5 * usable_memory_bytes()) // token_bytes)


def test_a_layer_that_finds_no_memory_for_its_keys_says_so_to_whoever_asked():
    """Shapes of the model in PyTorch are known when the first keys are written; the engine is of use afterwards."""
    slots = Slots(10**14)
    with pytest.raises(ValueError, match=f"`cache_tokens`: room for {16 * 10**14 + 1} tokens takes at least") as found:
        slots.write(torch.tensor([[0]]), torch.zeros(1, 2, 1, 8))
    assert isinstance(found.value.__cause__, MemoryError)
    with pytest.raises(ValueError, match="`host_tokens`: room for"):
        Slots(1, 10**14).write(torch.tensor([[0]]), torch.zeros(1, 2, 1, 8))
