"""A street of three toy stages, small enough to kill a hundred times: words ─▶ counts ─▶ walk (resumable).

    python tests/toy_street.py TEXT RUN    runs it, for the tests that kill it

Each stage notes in the environment variable TOY_LOG that it ran.
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from groundup.recipe.runner import run_stages
from groundup.recipe.stages import Stage
from groundup.settings import setting
from groundup.storage import write_json


@dataclass(frozen=True)
class WordsConfig:
    path: str = setting("", "text to split")
    min_length: int = setting(1, "shortest word to keep")


@dataclass(frozen=True)
class CountsConfig:
    lower: bool = setting(True, "count without regard to case")


@dataclass(frozen=True)
class WalkConfig:
    steps: int = setting(20, "steps to take")
    pause_seconds: float = setting(0.0, "rest after each step")


def fingerprint(config: WordsConfig) -> str:
    return Path(config.path).read_text()


def words(config: WordsConfig, out: Path) -> None:
    _note("words")
    kept = [word for word in Path(config.path).read_text().split() if len(word) >= config.min_length]
    write_json(out / "words.json", sorted(kept))


def counts(config: CountsConfig, out: Path, *, words: Path) -> None:
    _note("counts")
    spelled = [word.lower() if config.lower else word for word in json.loads((words / "words.json").read_text())]
    write_json(out / "counts.json", {word: spelled.count(word) for word in sorted(set(spelled))})


def walk(config: WalkConfig, out: Path, *, counts: Path) -> None:
    """Adds up pseudo-random steps; every step is a checkpoint, in a hidden file that is taken away at the end."""
    checkpoint = out / ".position.json"
    step, position = json.loads(checkpoint.read_text()) if checkpoint.exists() else (0, 0)
    _note(f"walk from {step}")
    stride = sum(json.loads((counts / "counts.json").read_text()).values())
    while step < config.steps:
        step, position = step + 1, (position * 31 + stride + step) % 1_000_003
        write_json(checkpoint, [step, position])
        time.sleep(config.pause_seconds)
    (out / "position.txt").write_text(str(position))
    checkpoint.unlink()


def _note(text: str) -> None:
    if "TOY_LOG" in os.environ:
        with open(os.environ["TOY_LOG"], "a") as log:
            log.write(text + "\n")


STAGES = (
    Stage(
        "words",
        "words",
        "01-words",
        "toy_street:words",
        "toy_street:WordsConfig",
        (),
        ("errors",),
        "split",
        fingerprint="toy_street:fingerprint",
    ),
    Stage(
        "counts",
        "counts",
        "02-counts",
        "toy_street:counts",
        "toy_street:CountsConfig",
        ("words",),
        ("errors",),
        "count",
    ),
    Stage(
        "walk",
        "walk",
        "03-walk",
        "toy_street:walk",
        "toy_street:WalkConfig",
        ("counts",),
        ("errors",),
        "walk",
        resumable=True,
    ),
)


def run(text: Path, folder: Path, **walk: float) -> None:
    configs = {"words": WordsConfig(str(text)), "counts": CountsConfig(), "walk": WalkConfig(**walk)}  # type: ignore[arg-type]
    run_stages(configs, folder, stages=STAGES)


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), steps=20, pause_seconds=0.01)
