"""A run folder as the report sees it: the small files that stages leave behind, by stage, as far as they exist.

Only finished folders (`NN-STAGE`) are read; what a stage is still working on is nobody's business yet. Keys may be
missing anywhere: an older run, or one that stopped half way, still gives the report of what is there.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundup.record.metrics import MEASURED_FILE, VALUES_FILE, read_lines

STAGES = ("corpus", "tokenizer", "tokens", "pretrain", "sft", "evaluate")

Row = dict[str, Any]


@dataclass(frozen=True)
class StageFiles:
    """What one finished stage left behind; empty where the file or the stage does not exist."""

    summary: Row
    scores: Row
    cost: Row
    metrics: list[Row]
    timings: list[Row]
    samples: list[Row]


@dataclass(frozen=True)
class RunFolder:
    """path: as the user gave it, which is how commands in the report name it. stages: finished ones, by name."""

    path: Path
    stages: dict[str, StageFiles]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def stage(self, name: str) -> StageFiles:
        return self.stages.get(name, StageFiles({}, {}, {}, [], [], []))

    def is_done(self, name: str) -> bool:
        return name in self.stages


def read_run(path: Path) -> RunFolder:
    """Read what the report shows of the run at `path`."""
    return RunFolder(
        path,
        {
            folder.name.partition("-")[2]: _read_stage(folder)
            for folder in sorted(path.glob("[0-9][0-9]-*"))
            if folder.is_dir()
        },
    )


def _read_stage(folder: Path) -> StageFiles:
    return StageFiles(
        summary=_read_object(folder / "summary.json") | _measured(folder),
        scores=_read_object(folder / "scores.json"),
        cost=_read_object(folder / "cost.json"),
        metrics=read_lines(folder / VALUES_FILE),
        timings=read_lines(folder / MEASURED_FILE),
        samples=read_lines(folder / "samples.jsonl"),
    )


def _measured(folder: Path) -> Row:
    """What the stage measured of itself, apart from its content since two equal runs differ in it."""
    measured = _read_object(folder / "measured.json")
    return {"measured": measured} if measured else {}


def _read_object(path: Path) -> Row:
    return dict(json.loads(path.read_bytes())) if path.exists() else {}


def number(row: Mapping[str, Any], *keys: str) -> float | None:
    """The number at `row[key][key]…`, or None where there is none."""
    value: Any = row
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def last_number(lines: Sequence[Row], key: str) -> float | None:
    """The number at `key` in the last line that has one: how a measured figure ended."""
    return next((value for line in reversed(lines) if (value := number(line, key)) is not None), None)


def rows(row: Mapping[str, Any], key: str) -> list[Row]:
    """The objects of the list at `row[key]`, or []."""
    value = row.get(key)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
