"""How fast an engine answers: when it hands out each token, and what follows from that.

All figures are computed from times of one clock, in seconds; `measure` is what takes them.
"""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np

from groundup.engine.asking import Listener
from groundup.engine.completion import Heard, heard
from groundup.engine.engine import Engine
from groundup.engine.sampling import Sampling
from groundup.engine.speed_plan import Plan

# Tokens of answers that nobody counts: the first ones that an engine gives take memory and wake its threads, and steps
# of so many texts are recorded where a GPU replays them.
WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Timeline:
    """When one text was asked for, and when each of its tokens came."""

    asked: float
    came: tuple[float, ...]

    @property
    def first_token(self) -> float:
        """Seconds from the question to the first token."""
        return self.came[0] - self.asked

    @property
    def gaps(self) -> list[float]:
        """Seconds between each token and the next."""
        return [after - before for before, after in zip(self.came, self.came[1:], strict=False)]


@dataclass(frozen=True)
class Quantiles:
    """Of a time in seconds: half of all are at most `p50`, 95 of a hundred at most `p95`, 99 at most `p99`."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class StreamSpeed:
    """Figures of texts that were written at a time.

    streams: how many. first_token_s, gap_s: from the question to a text's first token, and from each token to the next.
    decode_tokens_per_s: of all streams together, while every one of them is writing; None where they never all were.
    overall_tokens_per_s: new tokens of all of them, from the first question to the last token: prompts take part of it.
    Rates are medians over the repeats, times are of all their tokens.
    """

    streams: int
    first_token_s: Quantiles
    gap_s: Quantiles
    decode_tokens_per_s: float | None
    overall_tokens_per_s: float


@dataclass(frozen=True)
class EngineSpeed:
    """Figures of an engine. prefill_tokens_per_s: of a prompt alone, up to its answer's first token."""

    prefill_tokens_per_s: float
    streams: list[StreamSpeed]


def measure(engine: Engine, plan: Plan, tell: Callable[[int, str], None] = lambda tokens, what: None) -> EngineSpeed:
    """Ask the engine all that is planned, each text with a random prompt of its own, so that no beginning is known.

    tell: is given the tokens that were computed and what they were for: none before a measurement, all after it.
    The texts are as long as planned, whatever tokens end others; model and cache must have room for all of them.
    """
    prompts = _Prompts(engine.model.config.vocab_size, plan.prompt_length)

    def ask(count: int, new_tokens: int, what: str) -> list[Timeline]:
        tell(0, what)
        texts = _ask(engine, prompts.take(count), new_tokens)
        tell(count * (plan.prompt_length + new_tokens), what)
        return texts

    for count in plan.streams:
        _ask(engine, prompts.take(count), WARM_UP_TOKENS)
    firsts = [ask(1, 1, "prefill")[0].first_token for _ in range(plan.repeats)]
    rows = []
    for count in plan.streams:
        what = f"{count} stream{'s' if count > 1 else ''}"
        rows.append(stream_speed([ask(count, plan.new_tokens, what) for _ in range(plan.repeats)]))
    return EngineSpeed(plan.prompt_length / statistics.median(firsts), rows)


def stream_speed(runs: Sequence[Sequence[Timeline]]) -> StreamSpeed:
    """Figures of repeated runs, each of the same number of texts."""
    texts = [one for run in runs for one in run]
    decode = [rate for run in runs if (rate := decode_rate(run)) is not None]
    return StreamSpeed(
        streams=len(runs[0]),
        first_token_s=quantiles([one.first_token for one in texts]),
        gap_s=quantiles([gap for one in texts for gap in one.gaps]),
        decode_tokens_per_s=statistics.median(decode) if decode else None,
        overall_tokens_per_s=statistics.median(overall_rate(run) for run in runs),
    )


def decode_rate(texts: Sequence[Timeline]) -> float | None:
    """Tokens per second of all texts together while every one of them is written; None where there is no such time.

    Each text counts between its own first and last token within that time. Tokens over the length of the time itself
    would count those of its two ends once too often or too seldom: those of one step come one after another.
    """
    begin, end = max(one.came[0] for one in texts), min(one.came[-1] for one in texts)
    total = 0.0
    for one in texts:
        within = [at for at in one.came if begin <= at <= end]
        if len(within) < 2:
            return None
        total += (len(within) - 1) / (within[-1] - within[0])
    return total


def overall_rate(texts: Sequence[Timeline]) -> float:
    """Tokens per second from the first question to the last token."""
    seconds = max(one.came[-1] for one in texts) - min(one.asked for one in texts)
    return sum(len(one.came) for one in texts) / seconds


def quantiles(seconds: Sequence[float]) -> Quantiles:
    """Of at least one time; between two of them by their distance (numpy's default)."""
    return Quantiles(*(float(one) for one in np.quantile(seconds, (0.5, 0.95, 0.99))))


class _Prompts:
    """Random token ids, other ones each time but the same in every process."""

    def __init__(self, vocab_size: int, length: int) -> None:
        self._vocab_size, self._length = vocab_size, length
        self._random = random.Random(0)

    def take(self, count: int) -> list[list[int]]:
        return [self._random.choices(range(self._vocab_size), k=self._length) for _ in range(count)]


def _ask(engine: Engine, prompts: Sequence[list[int]], new_tokens: int) -> list[Timeline]:
    """Texts of `new_tokens` each, asked for at a time: no token ends them.

    The engine's thread notes the times itself: waking another one for every token would cost as much as some tokens do.
    """
    times: list[list[float]] = []
    ended: SimpleQueue[Heard] = SimpleQueue()

    def listen() -> Listener:
        came: list[float] = []
        times.append(came)

        def tell(event: Heard) -> None:
            came.append(time.perf_counter())
            if isinstance(event, Exception) or event.ending is not None:
                ended.put(event)

        return tell

    asked = time.perf_counter()
    with engine.telling(prompts, listen, Sampling(max_tokens=new_tokens)):
        for _ in prompts:
            heard(ended.get())
    return [Timeline(asked, tuple(came)) for came in times]
