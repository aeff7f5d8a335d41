"""The one metrics stream of a run: two files of JSON lines, a progress line, and trackers for those who ask.

What a run *computes* (loss, learning rate, …) goes to `metrics.jsonl`: two equal runs write it bit for bit alike.
What a run *measures* (tokens per second, energy, …) goes to `timings.jsonl`: it differs from run to run and so stays
out of content hashes. Each line is one object that starts with its `step`.
"""

import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from groundup.record.tracking import open_trackers
from groundup.storage import write_atomically

VALUES_FILE = "metrics.jsonl"
MEASURED_FILE = "timings.jsonl"

# A line every ten seconds keeps a log file readable and still shows that the run lives.
_PLAIN_INTERVAL_SECONDS = 10.0
# The rate is that of the recent past: start-up costs (compilation) would spoil the time left for the whole run.
_RATE_WINDOW_SECONDS = 30.0

_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


class MetricsWriter:
    """Writes the two metrics files of folder `out`, line by line, each line whole after a kill.

    resume_at_step: the step of the checkpoint a run goes on from; later lines and a torn last line are dropped first,
        so that a resumed run ends with the files of an unbroken one. None starts both files anew.
    track: further places to write to, `tensorboard` or `wandb` (extra `track`); see `record/tracking.py`.
    Raises UserError for an unknown tracker or one that is not installed.
    """

    def __init__(self, out: Path, resume_at_step: int | None = None, track: Sequence[str] = ()) -> None:
        self._trackers = open_trackers(track, out, resume_at_step)
        self._values = _open_stream(out / VALUES_FILE, resume_at_step)
        self._measured = _open_stream(out / MEASURED_FILE, resume_at_step)

    def write(self, step: int, values: Mapping[str, float], measured: Mapping[str, float]) -> None:
        """Append one line to each file; an empty mapping writes no line. A number that is not finite becomes null."""
        _write_line(self._values, step, values)
        _write_line(self._measured, step, measured)
        for tracker in self._trackers:
            tracker.write(step, {**values, **measured})

    def close(self) -> None:
        self._values.close()
        self._measured.close()
        for tracker in self._trackers:
            tracker.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, or [] where there is none; a torn last line (a killed writer) is left out."""
    if not path.exists():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0]
    return [json.loads(line) for line in whole.splitlines() if line.strip()]


def _open_stream(path: Path, resume_at_step: int | None) -> IO[str]:
    kept = [] if resume_at_step is None else [row for row in read_lines(path) if row["step"] <= resume_at_step]
    write_atomically(path, "".join(_line(row) for row in kept))
    return open(path, "a", encoding="utf-8")


def _write_line(stream: IO[str], step: int, values: Mapping[str, float]) -> None:
    if values:
        # JSON has no word for NaN or infinity; a diverged run must still leave a file that every reader accepts.
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        stream.write(_line({"step": step, **finite}))
        stream.flush()


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n"


class Progress:
    """What is being done, how far it is, how fast it goes and how long it will take: one line on stderr.

        with Progress("pretrain", total=3e6, unit="tokens") as progress:
            progress.advance(8192, loss=2.31)

    On a terminal the line is redrawn in place; elsewhere a plain line appears every ten seconds and at the end.
    Silent when the environment says GROUNDUP_QUIET=1, and on every rank but the first under torchrun (RANK).

    total: the amount at which the work is done, or None where nobody knows.
    unit: what is counted, in the plural; `B` for bytes, `%` for a share of the whole.
    done: the amount that an earlier run has done already; it counts as progress but not as speed.
    """

    def __init__(self, title: str, total: float | None, unit: str, done: float = 0.0) -> None:
        self._title = title
        self._total = total
        self._unit = unit
        self._done = done
        self._fields: dict[str, str | float] = {}
        self._recent: deque[tuple[float, float]] = deque()
        self._display: _TerminalLine | _PlainLines | None = None

    def __enter__(self) -> "Progress":
        self._started = time.monotonic()
        self._started_at = self._done
        self._recent.append((self._started, self._done))
        if not is_silent():
            self._display = _TerminalLine(self._title) if sys.stderr.isatty() else _PlainLines()
        return self

    def advance(self, amount: float = 1.0, **fields: str | float) -> None:
        """Count `amount` more as done; `fields` are shown at the end of the line until they are given anew."""
        now = time.monotonic()
        self._done += amount
        self._fields.update(fields)
        self._recent.append((now, self._done))
        while len(self._recent) > 2 and now - self._recent[1][0] > _RATE_WINDOW_SECONDS:
            self._recent.popleft()
        if self._display is not None and self._display.is_due(now):
            self._display.show(self._title, self._describe(now), self._fraction())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            now = time.monotonic()
            ending = "done in" if kind is None else "stopped after"
            overall = (self._done - self._started_at) / max(now - self._started, 1e-9)
            parts = [self._amounts(), f"{ending} {format_duration(now - self._started)}", *self._rate(overall)]
            self._display.finish(self._title, " · ".join(parts) + self._shown_fields(), self._fraction())
            self._display = None

    def _describe(self, now: float) -> str:
        (before, done_before) = self._recent[0]
        rate = (self._done - done_before) / max(now - before, 1e-9)
        parts = [self._amounts(), *self._rate(rate)]
        if self._total is not None and rate > 0:
            parts.append(f"{format_duration(max(self._total - self._done, 0.0) / rate)} left")
        return " · ".join(parts) + self._shown_fields()

    def _amounts(self) -> str:
        if self._unit == "%":
            return f"{round(self._done):3d} %"
        if self._total is None:
            return f"{format_amount(self._done)} {self._unit}"
        percent = int(100 * (self._fraction() or 0.0))
        return f"{percent:3d} % · {format_amount(self._done)}/{format_amount(self._total)} {self._unit}"

    def _rate(self, rate: float) -> list[str]:
        # Per cent a second say nothing; who counts in them says how fast it goes among the fields.
        return [] if self._unit == "%" else [f"{format_amount(rate)} {self._unit}/s"]

    def _shown_fields(self) -> str:
        shown = (f"{name.replace('_', ' ')} {_shown(value)}" for name, value in self._fields.items())
        return "".join(f" · {field}" for field in shown)

    def _fraction(self) -> float | None:
        if self._total is None:
            return None
        return min(self._done / self._total, 1.0) if self._total > 0 else 1.0


class _TerminalLine:
    """One line with a bar, redrawn in place by rich."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        self._bar = RichProgress(
            TextColumn("[bold]{task.description}", table_column=Column(no_wrap=True, min_width=len(title))),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[line]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=Console(stderr=True),
            redirect_stdout=False,
        )
        self._bar.start()
        self._task = self._bar.add_task(title, total=None, line="")

    def is_due(self, now: float) -> bool:
        # rich itself redraws only ten times a second, however often it is told.
        return True

    def show(self, title: str, line: str, fraction: float | None) -> None:
        self._bar.update(self._task, total=None if fraction is None else 1.0, completed=fraction or 0.0, line=line)

    def finish(self, title: str, line: str, fraction: float | None) -> None:
        # Work of unknown length is whole when it ends; the bar would pulse on for ever otherwise.
        self.show(title, line, 1.0 if fraction is None else fraction)
        self._bar.stop()


class _PlainLines:
    """Lines for a log file or a pipe: one every ten seconds, one at the end."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def is_due(self, now: float) -> bool:
        return now - self._last >= _PLAIN_INTERVAL_SECONDS

    def show(self, title: str, line: str, fraction: float | None) -> None:
        self._last = time.monotonic()
        print(f"{title}: {line.strip()}", file=sys.stderr, flush=True)

    finish = show


def say(text: str) -> None:
    """One line about the course of a run, on stderr; none if the user wants quiet."""
    if not is_silent():
        print(text, file=sys.stderr, flush=True)


def is_silent() -> bool:
    """Whether this process is to print nothing about its progress: the user's wish, or a later rank's manners."""
    return os.environ.get("GROUNDUP_QUIET", "") not in ("", "0") or os.environ.get("RANK", "0") != "0"


def format_amount(amount: float) -> str:
    """A count in at most four figures: 950, 9999, 12.3k, 4.56M, 1.2G."""
    if abs(amount) < 1e4:
        return f"{amount:.0f}" if abs(amount) >= 100 or amount == int(amount) else f"{amount:.3g}"
    rounded = float(f"{amount:.3g}")  # first, lest 999,600 become 1000k
    divisor, letter = next(scale for scale in _SCALES if abs(rounded) >= scale[0])
    return f"{rounded / divisor:g}{letter}"


def format_duration(seconds: float) -> str:
    """A length of time as a person would say it: 0.4 s, 42 s, 3:07, 1:02:09 (hours)."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def _shown(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
