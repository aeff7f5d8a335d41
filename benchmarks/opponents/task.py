"""What each side of `engine.py` is asked, and how it answers: a JSON line on standard output.

Each side runs in an environment of its own, so this file needs nothing but Python.
"""

import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

# Nobody else's output may be taken for an answer.
MARK = "measured: "


@dataclass(frozen=True)
class Task:
    """One round of speeds, or, of `texts`, what the model says of them.

    model: folder or file. started: when the process was asked for, on the clock `time.monotonic`, which all share.
    prompt_tokens: of the prompt whose reading is timed. context_tokens: of the prompts from which streams go on, short,
    so that an engine may read all of them at once; new_tokens: of each stream, of which the first is not timed.
    texts: a JSON file with the token ids of each.
    """

    model: str
    threads: int
    started: float
    vocab_size: int
    prompt_tokens: int = 512
    context_tokens: int = 16
    new_tokens: int = 64
    streams: list[int] = field(default_factory=lambda: [1, 16, 32])
    texts: str | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(self.prompt_tokens + 1, self.context_tokens + self.new_tokens)

    def prompts(self, count: int, length: int, seed: int) -> list[list[int]]:
        """Random token ids."""
        draw = random.Random(seed)
        return [[draw.randrange(self.vocab_size) for _ in range(length)] for _ in range(count)]

    def words(self) -> str:
        """For the side's command line."""
        return json.dumps(asdict(self))


class Side(Protocol):
    """Something that runs a model."""

    def prefill(self, prompt: list[int]) -> float:
        """Seconds from a prompt to the first token after it."""

    def decode(self, prompts: list[list[int]], new_tokens: int) -> float:
        """Seconds from the first to the last of `new_tokens` that follow each prompt, all prompts together."""

    def nats(self, texts: list[list[int]]) -> float:
        """What all tokens but the first of each text cost, given those before them."""

    def extras(self, task: Task) -> dict[str, Any]:
        """What else there is to tell."""


def answer(load: Callable[[Task], Side], imported: float) -> None:
    """Do the task of the command line and print what came of it.

    imported: the time at which the side's libraries were loaded, on the clock `time.monotonic`.
    """
    task = Task(**json.loads(sys.argv[1]))
    side = load(task)
    loaded = time.monotonic()
    found = _speeds(task, side, imported, loaded) if task.texts is None else _likelihood(side, Path(task.texts))
    print(MARK + json.dumps(found), flush=True)


def told(output: str) -> dict[str, Any]:
    """What a side answered, among what else it printed."""
    (line,) = (one for one in output.splitlines() if one.startswith(MARK))
    answer: dict[str, Any] = json.loads(line.removeprefix(MARK))
    return answer


def _likelihood(side: Side, path: Path) -> dict[str, Any]:
    texts = json.loads(path.read_text(encoding="utf-8"))
    return {"nats": side.nats(texts), "tokens": sum(len(text) - 1 for text in texts)}


# How often a prompt, and what one stream writes, is measured in a round: these take a moment only. The median counts.
REPEATS = 5


def _speeds(task: Task, side: Side, imported: float, loaded: float) -> dict[str, Any]:
    (short,) = task.prompts(1, task.context_tokens, seed=0)
    side.prefill(short)
    figures: dict[str, Any] = {
        "start_s": {
            "process and libraries": imported - task.started,
            "load": loaded - imported,
            "first token": time.monotonic() - loaded,
            "whole": time.monotonic() - task.started,
        }
    }
    side.prefill(task.prompts(1, task.prompt_tokens, seed=1)[0])
    prompts = task.prompts(REPEATS, task.prompt_tokens, seed=2)
    figures["prefill"] = task.prompt_tokens / statistics.median(map(side.prefill, prompts))
    for streams in task.streams:
        side.decode(task.prompts(streams, task.context_tokens, seed=10 + streams), 4)
        seeds = [1000 * (number + 1) + streams for number in range(REPEATS if streams == 1 else 1)]
        texts = [task.prompts(streams, task.context_tokens, seed) for seed in seeds]
        seconds = statistics.median(side.decode(one, task.new_tokens) for one in texts)
        figures[str(streams)] = streams * (task.new_tokens - 1) / seconds
    return figures | side.extras(task)
