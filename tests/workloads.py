"""Requests to an engine's loop that is turned by hand, on tiny models, and what must have become of them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from tiny import hot_decoder, random_ids, tiny_config
from torch import Tensor

from groundup.engine.blocks import BlockPool
from groundup.engine.choose import Choice
from groundup.engine.decode_graphs import unrecorded
from groundup.engine.device_runner import DeviceRunner, is_packable
from groundup.engine.jobs import Scoring, Writing
from groundup.engine.loop import Loop
from groundup.engine.rows import Logits, Row
from groundup.engine.runner import Runner, StepRunner
from groundup.engine.scheduler import Scheduler
from groundup.engine.sequence import Sequence, Step
from groundup.model.config import ModelConfig
from groundup.model.language_model import LanguageModel
from groundup.model.specs import Experts

CONTEXT = 100
BASE = random_ids(70, seed=3).tolist()


def _windowed(preset: str) -> ModelConfig:
    """Layers that all see a few tokens: blocks out of sight are given back, unless all tokens are looked through."""
    config = tiny_config(preset, context=CONTEXT)
    windows = (7, 20)
    layers = tuple(
        replace(layer, mixer=replace(layer.attention, window=windows[index]))
        for index, layer in enumerate(config.layers)
    )
    return replace(config, layers=layers)


def _with_capacity() -> ModelConfig:
    """Experts that take the first three tokens of a text each, and so count what they took."""
    config = tiny_config("mixtral", context=CONTEXT)

    def limited(experts: Experts) -> Experts:
        return replace(experts, router=replace(experts.router, chosen=1, normalised=False, capacity=3))

    return replace(config, layers=tuple(replace(one, feed_forward=limited(one.feed_forward)) for one in config.layers))


CONFIGS: dict[str, Callable[[], ModelConfig]] = {
    name: lambda name=name: tiny_config(name, kv_heads=1, context=CONTEXT)
    for name in ("groundup", "nanochat", "llama", "gemma2", "mamba", "mamba2", "qwen3_next", "lfm2")
}
CONFIGS |= {name: lambda name=name: tiny_config(name, context=CONTEXT) for name in ("mixtral", "deepseek_v3", "gpt2")}
CONFIGS |= {"windowed": lambda: _windowed("llama"), "windowed, with induction": lambda: _windowed("groundup")}
CONFIGS |= {"with capacity": _with_capacity}


@cache
def workload_model(name: str) -> LanguageModel:
    return hot_decoder(CONFIGS[name]())


# Each model as it is computed everywhere, and those that a GPU computes with all texts in one row.
CASES = [(name, False) for name in CONFIGS] + [(name, True) for name in CONFIGS if is_packable(workload_model(name))]


def runner_of(model: LanguageModel, pool: BlockPool, packed: bool) -> StepRunner:
    if packed:
        return DeviceRunner(model, pool.count, pool.host, pool.block_size, most_texts=5, record=unrecorded)
    return Runner(model, pool.count, pool.host)


class Watching:
    """Takes the likeliest token, and keeps the logits."""

    has_ended = False

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def fork(self) -> "Watching":
        return Watching()

    def draw(self, ahead: int = 0) -> None:
        """It looks for itself."""

    def choose(self, logits: Logits) -> Choice:
        logits_v = logits.logits_v if isinstance(logits, Row) else logits
        self.seen.append(logits_v)
        return Choice(int(logits_v.argmax()), 0.0, [])


@dataclass
class Request:
    """shared: tokens of the beginning that all requests have in common; own: those that follow; limit: of answers."""

    at: int
    shared: int
    own: int
    limit: int
    copies: int = 1
    scores: bool = False
    cancelled_after: int | None = None
    told: list = field(default_factory=list)
    choosers: list[Watching] = field(default_factory=list)
    jobs: list = field(default_factory=list)

    def begin(self, loop: Loop, number: int) -> None:
        prompt = [*BASE[: self.shared], *((number * 7 + 3 * place) % 64 for place in range(self.own))]
        if self.scores:
            self.jobs = [Scoring(prompt, self.told.append)]
        else:
            self.choosers = [Watching() for _ in range(self.copies)]
            self.told = [[] for _ in self.choosers]
            pairs = zip(self.choosers, self.told, strict=True)
            self.jobs = [Writing(prompt, self.limit, chooser, None, told.append) for chooser, told in pairs]
            self.jobs[0].copies = self.jobs[1:]
        loop.begin(self.jobs[0])


class CountingScheduler(Scheduler):
    """Counts how often a sequence gives way, the tokens that are computed, and what comes back from the host."""

    preempted = computed = brought_back = 0

    def schedule(self) -> Step:
        step = super().schedule()
        self.computed += sum(chunk.length for chunk in step.chunks)
        self.brought_back += sum(copy.source >= self.pool.count for copy in step.copies)
        return step

    def _preempt_youngest(self) -> Sequence:
        self.preempted += 1
        return super()._preempt_youngest()


@torch.no_grad()
def check_alone(model: LanguageModel, request: Request) -> None:
    """Each text that was finished, against one call of the model without a cache."""
    if request.scores:
        if request.cancelled_after is None:
            (job,), (found,) = request.jobs, request.told
            logits_tv = model(torch.tensor([job.prompt]))[0].log_softmax(-1)
            expected = [float(logits_v[token]) for logits_v, token in zip(logits_tv, job.prompt[1:], strict=False)]
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        return
    for job, chooser, told in zip(request.jobs, request.choosers, request.told, strict=True):
        tokens = [piece.choice.token for piece in told]
        assert request.cancelled_after is not None or len(tokens) == request.limit
        if tokens:
            logits_tv = model(torch.tensor([job.prompt + tokens[:-1]]))[0, len(job.prompt) - 1 :]
            torch.testing.assert_close(torch.stack(chooser.seen), logits_tv, rtol=1e-9, atol=1e-9)
            assert tokens == logits_tv.argmax(-1).tolist()
