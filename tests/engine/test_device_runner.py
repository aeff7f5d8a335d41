"""What a GPU computes, computed here: which models go that way, what is recorded, compiled and adapted on it.

That its numbers are the model's under any workload is in `test_workloads.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import greedy, hot_decoder, random_ids, tiny_config
from torch import Tensor
from workloads import CONFIGS, pool_of, workload_model

import groundup as gu
from groundup.engine import device_runner, loading
from groundup.engine.blocks import BlockPool
from groundup.engine.compiled import CompiledRunner
from groundup.engine.decode_graphs import unrecorded
from groundup.engine.device_runner import DeviceRunner, is_packable, is_recordable, runs_on_device
from groundup.engine.runner import Runner, StepRunner
from groundup.engine.runners import block_size_of, runner_of
from groundup.engine.scheduler import Scheduler
from groundup.errors import UserError
from groundup.model.config import ModelConfig
from groundup.model.language_model import LanguageModel
from groundup.model.lora import Adapter, Adapters, LowRank
from groundup.model.parts import Linear
from groundup.model.rotary import DynamicScaling, Rope

PACKABLE = ["llama", "qwen3", "olmo2", "gpt2", "gpt_neox", "nanochat", "palm", "mixtral", "gpt_oss"]
PROMPTS = [random_ids(length, seed=length).tolist() for length in (7, 1, 40, 33)]


def _with_attention(**changes: object) -> ModelConfig:
    config = tiny_config("llama")
    layers = tuple(replace(one, mixer=replace(one.attention, **changes)) for one in config.layers)
    return replace(config, layers=layers)


UNPACKABLE: dict[str, Callable[[], ModelConfig]] = {
    "induction": lambda: tiny_config("groundup"),
    "experts of a capacity": CONFIGS["with capacity"],
    "latent attention": lambda: tiny_config("deepseek_v3"),
    "recurrence": lambda: tiny_config("mamba2"),
    "distance bias": lambda: _with_attention(rope=None, alibi=1.0),
    "both ways": lambda: tiny_config("bert"),
    "softcap": lambda: tiny_config("gemma2"),
    "rotary scaling by length": lambda: _with_attention(rope=Rope(scaling=DynamicScaling(2.0, 16))),
    "heads of an odd size": lambda: _with_attention(head_dim=12),
}


@pytest.mark.parametrize("name", PACKABLE)
def test_models_of_plain_attention_can_be_packed(name: str):
    assert is_packable(hot_decoder(tiny_config(name)))


@pytest.mark.parametrize("name", list(UNPACKABLE))
def test_others_are_left_to_the_model(name: str):
    assert not is_packable(hot_decoder(UNPACKABLE[name]()))


def _serve(
    runner: StepRunner,
    prompts: list[list[int]],
    adapters: list[Adapter | None] | None = None,
    pool: BlockPool | None = None,
) -> tuple[list[Tensor], list[list[int]]]:
    """The logits of each text's tokens, some of which follow on its prompt one by one, and the tokens."""
    scheduler = Scheduler(pool or BlockPool(40), 24, 4)
    wanted = adapters or [None] * len(prompts)
    texts = [scheduler.add(prompt, 60, adapter=one) for prompt, one in zip(prompts, wanted, strict=True)]
    seen: list[list[Tensor]] = [[] for _ in texts]
    for _ in range(12):
        step = scheduler.schedule()
        hidden_md = runner.run(step)
        for chunk, hidden_td in zip(step.chunks, hidden_md.split([one.length for one in step.chunks]), strict=True):
            adapters = [chunk.sequence.adapter] * len(hidden_td)
            seen[texts.index(chunk.sequence)].append(runner.logits(hidden_td, adapters))
        scheduler.complete(step)
        for text in texts:
            if not text.pending and len(text.tokens) < 48:
                text.tokens.append(3 + len(text.tokens) % 5)
    found = [torch.cat(parts) for parts in seen]
    return found, [text.tokens[: len(one)] for text, one in zip(texts, found, strict=True)]


@torch.no_grad()
def _require_equal(model: LanguageModel, found: list[Tensor], tokens: list[list[int]]) -> None:
    for found_tv, ids in zip(found, tokens, strict=True):
        assert len(ids) > 1
        torch.testing.assert_close(found_tv, model(torch.tensor([ids]))[0], rtol=1e-9, atol=1e-9)


class Recording:
    """Counts what is recorded and what is replayed."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.recorded += 1

        def replay() -> Tensor:
            self.replayed += 1
            return compute()

        return replay


@pytest.mark.parametrize("name", PACKABLE)
def test_logits_are_those_of_the_model_recorded_or_not(name: str):
    model, recording = hot_decoder(tiny_config(name, context=100)), Recording()
    for record in (recording, None):
        _require_equal(model, *_serve(DeviceRunner(model, 40, 0, 16, most_texts=4, record=record), PROMPTS))
    if is_recordable(model):
        # One text of one token has sizes of its own, and three and four texts share one.
        assert 1 <= recording.recorded <= 3 and recording.replayed > recording.recorded
    else:
        assert name in ("mixtral", "gpt_oss") and recording.recorded == 0


@pytest.mark.parametrize("prompts", [PROMPTS, [[3, 4], [5], [6]]])
def test_recorded_steps_find_what_layers_see_in_blocks_of_windows(prompts: list[list[int]]):
    """As few as four texts can have in sight. Three are filled up with one that belongs to nobody."""
    model, recording = workload_model("some windows"), Recording()
    pool = pool_of(model, 40, 24, 4)
    assert pool.windows is not None and pool.windows.count == 4 * 3 + 2
    runner = DeviceRunner(model, 40, 0, 16, 4, record=recording, window_blocks=pool.windows.count)
    _require_equal(model, *_serve(runner, prompts, pool=pool))
    assert recording.replayed > recording.recorded > 0


def _random_adapter(model: LanguageModel, name: str, seed: int) -> Adapter:
    """For every linear map of the layers, or only for those of values and for the last of each layer."""
    generator = torch.Generator().manual_seed(seed)

    def random(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=torch.float64) / columns**0.5

    changes = {
        f"layers.{path}": LowRank(random(3, module.weight.shape[1]), random(module.weight.shape[0], 3))
        for path, module in model.layers.named_modules()
        if isinstance(module, Linear) and (name == "all" or path.endswith(("value", "down")))
    }
    return Adapter(name, changes)


@pytest.mark.parametrize("compile_with", [None, "eager"])
def test_adapters_add_to_the_tokens_of_their_own_texts_and_are_not_recorded(compile_with: str | None):
    model, recording = hot_decoder(tiny_config("llama", context=100)), Recording()
    in_model = Adapters(hot_decoder(tiny_config("llama", context=100)))
    runner = DeviceRunner(model, 40, 0, 16, most_texts=4, record=recording, compile_with=compile_with)
    adapters = [_random_adapter(model, name, seed) for seed, name in enumerate(("all", "few"))]
    _require_equal(model, *_serve(runner, PROMPTS))  # compiled before there are adapters
    replayed = recording.replayed
    for adapter in adapters:
        in_model.add(adapter)
        runner.adapters.add(adapter)
    wanted = [adapters[0], None, adapters[1], adapters[0]]
    found, tokens = _serve(runner, PROMPTS, wanted)
    assert recording.replayed == replayed
    for found_tv, ids, adapter in zip(found, tokens, wanted, strict=True):
        with torch.no_grad(), in_model.applied([adapter], model.device):
            torch.testing.assert_close(found_tv, in_model._model(torch.tensor([ids]))[0], rtol=1e-9, atol=1e-9)


def test_compiled_layers_say_the_same_and_are_few_programs():
    """Whatever the lengths: by torch's compiler without code for a processor, which takes seconds here."""
    torch._dynamo.reset()
    model = hot_decoder(tiny_config("llama", kv_heads=1, context=100))
    runner = DeviceRunner(model, 40, 0, 16, most_texts=4, record=unrecorded, compile_with="eager")
    _require_equal(model, *_serve(runner, PROMPTS))
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    _serve(runner, [random_ids(length, seed=length).tolist() for length in (5, 2, 39, 21)])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
    torch._dynamo.reset()


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine counts as one with a GPU, for types that the tests compute in."""
    monkeypatch.setattr(device_runner, "_has_kernels", lambda device: True)
    monkeypatch.setattr(device_runner, "KERNEL_DTYPES", (torch.float64, torch.float32))
    monkeypatch.setattr(device_runner, "CudaRecorder", lambda device: unrecorded)
    yield


def test_an_engine_on_a_device_writes_the_same_texts_in_blocks_of_its_own(pretended: None):
    model = hot_decoder(tiny_config("llama", kv_heads=1, context=700))
    assert block_size_of(model) == 256
    prompts = [random_ids(length, seed=length).tolist() for length in (250, 1, 520, 3)]
    expected = [greedy(model, prompt, 12) for prompt in prompts]
    engine = gu.Engine(model, stop_ids=[], cache_tokens=1300, host_tokens=2000, step_tokens=100, most_running=3)
    assert isinstance(engine._loop._runner, DeviceRunner) and engine._pool.count == 6
    for _ in range(2):
        assert [one.tokens for one in engine.generate(prompts, max_tokens=12)] == expected
    assert engine.generate([[*prompts[2], 1]], max_tokens=1)[0].cached == 512
    with pytest.raises(ValueError, match="does not fit into the cache of this engine, which holds 256;"):
        gu.Engine(model, stop_ids=[], cache_tokens=200).generate([prompts[2]])


def test_guesses_of_a_draft_on_a_device_change_nothing(pretended: None):
    model = hot_decoder(tiny_config("llama", kv_heads=1, context=100))
    expected = gu.Engine(model, stop_ids=[]).generate(PROMPTS, max_tokens=20)
    for speculate in (gu.DraftModel(hot_decoder(tiny_config("llama", kv_heads=1, context=100))), gu.PromptLookup()):
        engine = gu.Engine(model, stop_ids=[], speculate=speculate)
        assert [one.tokens for one in engine.generate(PROMPTS, max_tokens=20)] == [one.tokens for one in expected]


def test_who_computes_is_told_by_device_type_and_model(monkeypatch: pytest.MonkeyPatch):
    plain = hot_decoder(tiny_config("llama"), dtype=torch.bfloat16)
    assert not runs_on_device(plain) and block_size_of(plain) == 16
    assert isinstance(runner_of(plain, 4, 0, 8, 2, torch.bfloat16), CompiledRunner)
    assert isinstance(runner_of(hot_decoder(tiny_config("llama")), 4, 0, 8, 2, torch.float64), Runner)
    monkeypatch.setattr(device_runner, "_has_kernels", lambda device: True)
    assert runs_on_device(plain)
    assert not runs_on_device(plain.float()), "the kernel knows no float32"
    plain.compute_dtype = torch.bfloat16
    assert runs_on_device(plain)
    assert not runs_on_device(hot_decoder(tiny_config("gemma2"), dtype=torch.bfloat16))


def test_what_only_a_gpu_does_is_refused_elsewhere(tmp_path: Path):
    model = hot_decoder(tiny_config("llama"))
    with pytest.raises(ValueError, match="`compile_layers` is for models that a GPU runs"):
        gu.Engine(model, stop_ids=[], compile_layers=True)
    with pytest.raises(ValueError, match="`device` is for folders"):
        gu.Engine(model, stop_ids=[], device="cuda")
    with pytest.raises(ValueError, match=r"`quantize` 'fp8' is for GPUs of compute capability 8\.9 and above"):
        gu.Engine(tmp_path, quantize="fp8")
    with pytest.raises(UserError, match="`device` must be cpu, cuda, or cuda:1 and so on, not 'gpu'"):
        gu.Engine(tmp_path, device="gpu")
    with pytest.raises(UserError, match=r"there is no cuda:99 here: PyTorch finds \d GPUs"):
        gu.Engine(tmp_path, device="cuda:99")


def test_a_folder_for_a_device_comes_in_a_type_that_it_knows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """`meta` stands for the device: it has no numbers, but types."""
    gu.save(hot_decoder(tiny_config("llama"), dtype=torch.float32), tmp_path)
    monkeypatch.setattr(loading, "device_of", lambda name: torch.device(name))
    moved = loading.load_for_engine(tmp_path, None, "meta")
    assert moved.device.type == "meta" and {one.dtype for one in moved.parameters()} == {torch.bfloat16}
    assert loading.load_for_engine(tmp_path, "w8", "meta").final_norm.weight.dtype == torch.float32
    assert loading.load_for_engine(tmp_path, None, "cpu").embedding.dtype == torch.float32
    gu.save(hot_decoder(tiny_config("llama"), dtype=torch.float16), tmp_path)
    assert loading.load_for_engine(tmp_path, None, "meta").embedding.dtype == torch.float16


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@needs_gpu
@pytest.mark.parametrize("name", PACKABLE)
@pytest.mark.parametrize("compiles", [False, True])
def test_a_gpu_says_what_the_model_says_but_for_rounding(name: str, compiles: bool):
    """Against the same weights in float64: not much farther off than the model itself is in bfloat16, padded."""
    exact = hot_decoder(tiny_config(name, context=300), dtype=torch.bfloat16)
    model = hot_decoder(tiny_config(name, context=300), dtype=torch.bfloat16).cuda()
    pool = pool_of(model, 8, 24, 4, host=8, block_size=256)
    windows = None if pool.windows is None else pool.windows.count
    runner = runner_of(model, pool.count, pool.host, 24, 4, torch.bfloat16, compiles, windows)
    found, tokens = _serve(runner, PROMPTS, pool=pool)
    plain, _ = _serve(Runner(model, 40), PROMPTS)
    exact = exact.double()
    for found_tv, plain_tv, ids in zip(found, plain, tokens, strict=True):
        with torch.no_grad():
            exact_tv = exact(torch.tensor([ids]))[0]
        off, usual = ((each.double() - exact_tv).norm() for each in (found_tv, plain_tv))
        assert off < 1.5 * usual


@needs_gpu
def test_an_engine_on_a_gpu_serves_a_folder(tmp_path: Path):
    gu.save(hot_decoder(tiny_config("llama", context=300), dtype=torch.bfloat16), tmp_path)
    formats = [None, "fp8"] if torch.cuda.get_device_capability() >= (8, 9) else [None]
    for format in formats:
        engine = gu.Engine(tmp_path, device="cuda", stop_ids=[], quantize=format, step_tokens=32, most_running=3)
        assert isinstance(engine._loop._runner, DeviceRunner)
        together = engine.generate(PROMPTS, max_tokens=20)
        assert [len(one.tokens) for one in together] == [20] * len(PROMPTS)
        assert engine._pool.available == engine._pool.count
