"""Requests to an engine's loop that is turned by hand, on tiny models, and what must have become of them."""

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Protocol

import torch
from hypothesis import strategies as st
from tiny import hot_decoder, random_ids, tiny_config
from torch import Tensor

from groundup.engine.blocks import BLOCK_TOKENS, BlockPool
from groundup.engine.choose import Choice
from groundup.engine.decode_graphs import unrecorded
from groundup.engine.device_runner import DeviceRunner, is_packable
from groundup.engine.draft import DraftGuesser
from groundup.engine.jobs import Scoring, Writing
from groundup.engine.loop import Loop
from groundup.engine.rows import Logits, Row
from groundup.engine.runner import Runner, StepRunner, decoder_of
from groundup.engine.scheduler import Scheduler
from groundup.engine.sequence import Sequence, Step
from groundup.engine.sight import blocks_in_sight, reach, window_of
from groundup.engine.source import Source
from groundup.engine.window_blocks import WindowBlocks
from groundup.model.config import ModelConfig
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.language_model import LanguageModel
from groundup.model.specs import Attention, Experts

CONTEXT = 100
BASE = random_ids(70, seed=3).tolist()
# Of the largest logit of a text: by how much one may be off.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-5}


def _windowed(preset: str) -> ModelConfig:
    """Layers that all see a few tokens: blocks out of sight are given back, unless all tokens are looked through."""
    config = tiny_config(preset, context=CONTEXT)
    windows = (7, 20)
    layers = tuple(
        replace(layer, mixer=replace(layer.attention, window=windows[index]))
        for index, layer in enumerate(config.layers)
    )
    return replace(config, layers=layers)


def _with_some_windows(preset: str, attention: int, *windows: int | None) -> ModelConfig:
    """As many layers like that one as there are windows, each of which sees so many tokens."""
    config = tiny_config(preset, kv_heads=1, context=CONTEXT)
    layer = config.layers[attention]
    others = [one for one in config.layers if not isinstance(one.mixer, Attention)]
    seeing = [replace(layer, mixer=replace(layer.attention, window=window)) for window in windows]
    return replace(config, layers=(*seeing[:1], *others[:1], *seeing[1:]))


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
CONFIGS |= {
    "with capacity": _with_capacity,
    "some windows": lambda: _with_some_windows("llama", 0, 13, None, 5),
    "some windows, recurrent": lambda: _with_some_windows("qwen3_next", -1, None, 13),
}


@cache
def workload_model(name: str) -> LanguageModel:
    return hot_decoder(CONFIGS[name]())


# Each model as it is computed everywhere, and those that a GPU computes with all texts in one row.
CASES = [(name, False) for name in CONFIGS] + [(name, True) for name in CONFIGS if is_packable(workload_model(name))]


def pool_of(
    model: LanguageModel,
    blocks: int,
    budget: int,
    most_running: int,
    host: int = 0,
    block_size: int = BLOCK_TOKENS,
    further: int = 0,
) -> BlockPool:
    """As the engine has it, but with only so many blocks of windows beside those that are in sight."""
    windows, window = None, window_of(model)
    if window is not None:
        count = min(blocks, blocks_in_sight(window, most_running, budget, block_size) + further)
        windows = WindowBlocks(count, blocks, window, block_size)
    return BlockPool(blocks, host=host, block_size=block_size, windows=windows)


def runner_of(model: LanguageModel, pool: BlockPool, packed: bool) -> StepRunner:
    window_blocks = None if pool.windows is None else pool.windows.count
    if packed:
        return DeviceRunner(
            model,
            pool.count,
            pool.host,
            pool.block_size,
            most_texts=5,
            record=unrecorded,
            window_blocks=window_blocks,
        )
    return Runner(model, pool.count, pool.host, window_blocks)


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
    """A text to be scored, or texts to be written, and what was told of them.

    at: the step before which it comes. shared: tokens of the beginning that all requests have in common; own: those
    that follow. limit: of answers. source: which one it is for, where the model has an encoder.
    """

    at: int
    shared: int
    own: int
    limit: int
    copies: int = 1
    scores: bool = False
    cancelled_after: int | None = None
    source: int = 0
    told: list = field(default_factory=list)
    choosers: list[Watching] = field(default_factory=list)
    jobs: list = field(default_factory=list)

    def fresh(self) -> "Request":
        """The same before anything was told."""
        return replace(self, told=[], choosers=[], jobs=[])

    def begin(self, loop: Loop, number: int, source: Source | None = None) -> None:
        """number: makes its own tokens others than those of other requests."""
        prompt = [*BASE[: self.shared], *((number * 7 + 3 * place) % 64 for place in range(self.own))]
        if self.scores:
            self.jobs = [Scoring(prompt, self.told.append, source=source)]
        else:
            self.choosers = [Watching() for _ in range(self.copies)]
            self.told = [[] for _ in self.choosers]
            pairs = zip(self.choosers, self.told, strict=True)
            self.jobs = [
                Writing(prompt, self.limit, chooser, None, told.append, None, source) for chooser, told in pairs
            ]
            self.jobs[0].copies = self.jobs[1:]
        loop.begin(self.jobs[0])

    @torch.no_grad()
    def check(self, logits_of: Callable[[list[int]], Tensor]) -> None:
        """All that was told, and that nothing is missing.

        logits_of: gives (tokens, vocab) by one call of the model without a cache. In float64, rounding never decides
        between two tokens.
        """
        if self.scores:
            self._check_scores(logits_of)
            return
        for job, chooser, told in zip(self.jobs, self.choosers, self.told, strict=True):
            tokens = [piece.choice.token for piece in told]
            assert self.cancelled_after is not None or len(tokens) == self.limit
            if tokens:
                logits_tv = logits_of(job.prompt + tokens[:-1])[len(job.prompt) - 1 :]
                allowed = ROUNDING[logits_tv.dtype] * float(logits_tv.abs().max())
                torch.testing.assert_close(torch.stack(chooser.seen), logits_tv, rtol=0, atol=allowed)
                assert logits_tv.dtype != torch.float64 or tokens == logits_tv.argmax(-1).tolist()

    def _check_scores(self, logits_of: Callable[[list[int]], Tensor]) -> None:
        if self.cancelled_after is None:
            (job,), (found,) = self.jobs, self.told
            logits_tv = logits_of(job.prompt).log_softmax(-1)
            expected = [float(logits_v[token]) for logits_v, token in zip(logits_tv, job.prompt[1:], strict=False)]
            torch.testing.assert_close([one.logprob for one in found], expected, rtol=1e-9, atol=1e-9)


# Requests for whatever a workload may be; with those of other sources, where there are any.
REQUESTS = st.builds(
    Request,
    at=st.integers(0, 10),
    shared=st.integers(0, 60),
    own=st.integers(1, 12),
    limit=st.integers(1, 20),
    copies=st.sampled_from([1, 1, 1, 3]),
    scores=st.sampled_from([False, False, False, True]),
    cancelled_after=st.one_of(st.none(), st.none(), st.integers(0, 12)),
    source=st.integers(0, 3),
)


def check_alone(model: LanguageModel, *requests: Request) -> None:
    """Each text that was finished, against one call of a decoder without a cache."""
    for request in requests:
        request.check(lambda tokens: model(torch.tensor([tokens]))[0])


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


class Unreliable(DraftGuesser):
    """The model itself as its draft, and a place at which its guesses go wrong."""

    def __init__(self, model: LanguageModel | EncoderDecoder, blocks: int, most_running: int) -> None:
        self.pool = pool_of(decoder_of(model), blocks, 24, most_running)
        scheduler = Scheduler(self.pool, 24, most_running, reach=reach(decoder_of(model)))
        runner = Runner(model, blocks) if isinstance(model, EncoderDecoder) else runner_of(model, self.pool, False)
        super().__init__(runner, scheduler)

    def guess(self, texts: Items[tuple[Writing, int]]) -> list[list[int]]:
        found = super().guess(texts)
        for (text, _), guesses in zip(texts, found, strict=True):
            wrong = (len(text.prompt) + 3 * text.written) % 8
            guesses[wrong : wrong + 1] = [(guesses[wrong] + 1) % 64] if wrong < len(guesses) else []
        return found


class Comer(Protocol):
    """Something that is asked of a loop at a time, and perhaps given up some steps later."""

    at: int
    cancelled_after: int | None
    told: list

    @property
    def jobs(self) -> Items: ...

    def begin(self, loop: Loop, number: int) -> None: ...


def serve(
    loop: Loop,
    scheduler: Scheduler,
    comers: Items[Comer],
    begin: Callable[[Comer, Loop, int], None] = lambda comer, loop, number: comer.begin(loop, number),
) -> None:
    """Turn the loop until all that come are at their ends: no block is held, nothing was told of what was given up."""
    heard: list[tuple[Comer, list[int]]] = []
    for time in range(3000):
        for number, comer in enumerate(comers):
            if comer.at == time:
                begin(comer, loop, number)
            if comer.cancelled_after is not None and time == comer.at + comer.cancelled_after:
                for job in comer.jobs[:: 1 if number % 2 else -1]:
                    loop.cancel(job)
                heard.append((comer, list(map(len, comer.told))))
        if loop.is_busy:
            loop.step()
        elif time > max(comer.at for comer in comers):
            assert scheduler.pool.available == scheduler.pool.count
            assert scheduler.pool.windows is None or scheduler.pool.windows.available == scheduler.pool.windows.count
            assert not scheduler.running and not scheduler.waiting
            assert all(list(map(len, comer.told)) == lengths for comer, lengths in heard)
            return
    raise AssertionError("the work does not end")


def finish(loop: Loop, look: Callable[[], object] = lambda: None) -> None:
    """Turn the loop until nothing is left to do, looking at what there is after each step."""
    while loop.is_busy:
        loop.step()
        look()
