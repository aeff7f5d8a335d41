"""Our engine on a model folder, whatever kind of weights that holds."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from task import Task, answer

from groundup.engine.engine import Engine
from groundup.engine.guessing import PromptLookup
from groundup.engine.sampling import Sampling

IMPORTED = time.monotonic()
# How tokens are chosen where the overhead is measured.
CHOICES = {"the likeliest": Sampling(), "temperature 0.8, top-p 0.95": Sampling(temperature=0.8, top_p=0.95)}


class Groundup:
    """A model folder; tokens are chosen, the likeliest each time, and told."""

    def __init__(self, task: Task, speculate: PromptLookup | None = None) -> None:
        self._engine = Engine(task.model, stop_ids=(), speculate=speculate)

    def prefill(self, prompt: list[int]) -> float:
        return self._seconds([prompt], 1)

    def decode(self, prompts: list[list[int]], new_tokens: int) -> float:
        """The time up to the first tokens is that of other prompts: these would be found in the cache."""
        others = [prompt[::-1] for prompt in prompts]
        first = self._seconds(others, 1)
        return self._seconds(prompts, new_tokens) - first

    def nats(self, texts: list[list[int]]) -> float:
        return -sum(score.total for score in self._engine.score(texts))

    def extras(self, task: Task) -> dict[str, Any]:
        """How long steps take in which every stream gets a token, and how much of that is outside the model."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for number, (choice, sampling) in enumerate(CHOICES.items()):
            found[choice] = {}
            for streams in task.streams:
                prompts = task.prompts(streams, task.context_tokens, seed=5000 + 100 * number + streams)
                steps = self._watched(prompts, task.new_tokens, sampling)
                step_s = statistics.median(step for step, _ in steps)
                outside_s = statistics.median(step - model for step, model in steps)
                found[choice][str(streams)] = {"step_s": step_s, "outside_s": outside_s, "share": outside_s / step_s}
        return {"overhead": found, "guessing": self._guessing(task)}

    def _guessing(self, task: Task) -> dict[str, float]:
        """One stream after a text that repeats, with guesses and without, in tokens per second.

        How many guesses are right depends on what the model repeats: tokens per step say so. A model of random weights
        can only show what right guesses are worth.
        """
        phrase = task.prompts(1, task.context_tokens, seed=4)[0]
        prompt = (phrase * 8)[: task.prompt_tokens]
        plain = (task.new_tokens - 1) / self.decode([prompt], task.new_tokens)
        quick = Groundup(task, PromptLookup())
        steps = quick._watched([prompt], task.new_tokens)
        seconds = quick.decode([prompt[1:]], task.new_tokens)
        return {
            "plain": plain,
            "guessing": (task.new_tokens - 1) / seconds,
            "tokens_per_step": (task.new_tokens - 1) / len(steps),
        }

    def _seconds(self, prompts: list[list[int]], new_tokens: int, sampling: Sampling | None = None) -> float:
        begun = time.perf_counter()
        written = self._engine.generate(prompts, replace(sampling or Sampling(), max_tokens=new_tokens))
        seconds = time.perf_counter() - begun
        if any(len(one.tokens) != new_tokens for one in written):
            raise SystemExit(f"texts of other lengths than {new_tokens} were written")
        return seconds

    def _watched(
        self, prompts: list[list[int]], new_tokens: int, sampling: Sampling | None = None
    ) -> list[tuple[float, float]]:
        """Seconds of each step but the first, and of what the model took of it."""
        loop: Any = self._engine._loop
        runner, step = loop._runner, loop.step
        watch = _Watched(runner)
        steps: list[tuple[float, float]] = []

        def timed_step() -> None:
            watch.seconds, begun = 0.0, time.perf_counter()
            step()
            steps.append((time.perf_counter() - begun, watch.seconds))

        loop._runner, loop.step = watch, timed_step
        try:
            self._seconds(prompts, new_tokens, sampling)
        finally:
            loop._runner, loop.step = runner, step
        return steps[1:]


class _Watched:
    """What the engine asks of the model, and how long that took."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._runner, name)
        return self._timed(found) if callable(found) else found

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - begun

        return timed


if __name__ == "__main__":
    answer(Groundup, IMPORTED)
