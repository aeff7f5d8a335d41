import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from groundup.errors import UserError
from groundup.record.metrics import MetricsWriter, Progress, format_amount, format_duration, read_lines


def write_steps(writer: MetricsWriter, steps: range) -> None:
    for step in steps:
        writer.write(step, {"loss": 4.0 / step}, {"tokens_per_second": 100.0 * step})


def test_what_is_computed_and_what_is_measured_go_to_different_files(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": 2.5}, {"seconds": 0.25})
        writer.write(2, {"loss": 2.0}, {})
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0}]
    assert read_lines(tmp_path / "timings.jsonl") == [{"step": 1, "seconds": 0.25}]


def test_a_resumed_run_ends_with_the_files_of_an_unbroken_one(tmp_path: Path) -> None:
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    unbroken.mkdir()
    resumed.mkdir()
    with MetricsWriter(unbroken) as writer:
        write_steps(writer, range(1, 21))
    with MetricsWriter(resumed) as writer:
        write_steps(writer, range(1, 15))
    with open(resumed / "metrics.jsonl", "a") as file:
        file.write('{"step": 15, "lo')  # killed while writing
    with MetricsWriter(resumed, resume_at_step=10) as writer:
        write_steps(writer, range(11, 21))
    for name in ("metrics.jsonl", "timings.jsonl"):
        assert (resumed / name).read_bytes() == (unbroken / name).read_bytes()


def test_without_a_step_to_resume_at_old_lines_are_gone(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        write_steps(writer, range(1, 5))
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": 9.0}, {})
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 9.0}]
    assert read_lines(tmp_path / "timings.jsonl") == []


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from groundup.record.metrics import MetricsWriter\n"
        "writer = MetricsWriter(Path(sys.argv[1]))\n"
        "writer.write(7, {'loss': 1.0}, {'seconds': 2.0}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)])
    assert ended.returncode == -signal.SIGKILL
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 7, "loss": 1.0}]


def test_a_diverged_loss_still_leaves_strict_json(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": float("nan"), "grad_norm": float("inf")}, {})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert row == {"step": 1, "loss": None, "grad_norm": None}


def test_an_unknown_tracker_is_named_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`mlflow`.*tensorboard, wandb"):
        MetricsWriter(tmp_path, track=("mlflow",))


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_says_how_to_install_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"`{name}` is not installed: pip install 'groundup\[track\]'"):
        MetricsWriter(tmp_path, track=(name,))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="extra `track` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsWriter(tmp_path, track=("tensorboard",)) as writer:
        write_steps(writer, range(1, 5))
    events = EventAccumulator(str(tmp_path / ".track/tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (step, pytest.approx(4.0 / step)) for step in range(1, 5)
    ]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("groundup.record.metrics.time", clock)
    return clock


@pytest.fixture(autouse=True)
def loud_first_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GROUNDUP_QUIET", raising=False)
    monkeypatch.delenv("RANK", raising=False)


def test_progress_without_a_terminal_is_one_line_every_ten_seconds(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("pretrain", 3_000_000, "tokens") as progress:
        for _ in range(25):
            clock.now += 1.0
            progress.advance(50_000, loss=2.5)
    assert capsys.readouterr().err.splitlines() == [
        "pretrain: 16 % · 500k/3M tokens · 50k tokens/s · 50 s left · loss 2.5",
        "pretrain: 33 % · 1M/3M tokens · 50k tokens/s · 40 s left · loss 2.5",
        "pretrain: 41 % · 1.25M/3M tokens · done in 25 s · 50k tokens/s · loss 2.5",
    ]


def test_time_left_follows_the_recent_speed_not_the_slow_start(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("pretrain", 1000, "steps") as progress:
        clock.now += 100.0  # compiling
        progress.advance(1)
        for _ in range(50):
            clock.now += 1.0
            progress.advance(10)
    assert "501/1000 steps · 10 steps/s · 50 s left" in capsys.readouterr().err


def test_what_an_earlier_run_did_counts_as_done_but_not_as_speed(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("pretrain", 1000, "steps", done=900) as progress:
        clock.now += 10.0
        progress.advance(10)
    assert capsys.readouterr().err.splitlines()[-1] == "pretrain: 91 % · 910/1000 steps · done in 10 s · 1 steps/s"


def test_an_interrupted_run_says_stopped_and_lets_the_interrupt_pass(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt), Progress("read", None, "B") as progress:
        clock.now += 2.0
        progress.advance(4e6)
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "read: 4M B · stopped after 2.0 s · 2M B/s\n"


@pytest.mark.parametrize("variable", [("GROUNDUP_QUIET", "1"), ("RANK", "1")])
def test_quiet_runs_and_later_ranks_print_nothing(
    variable: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*variable)
    with Progress("pretrain", 10, "steps") as progress:
        progress.advance(10)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_the_bar_is_redrawn_and_ends_whole() -> None:
    program = (
        "from groundup.record.metrics import Progress\n"
        "with Progress('pretrain', 10, 'steps') as progress:\n"
        "    for _ in range(10): progress.advance(1)"
    )
    leader, follower = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "GROUNDUP_QUIET": "0", "RANK": "0"}
    ended = subprocess.run([sys.executable, "-c", program], stderr=follower, env=environment)
    os.close(follower)
    drawn = os.read(leader, 100_000).decode()
    os.close(leader)
    assert ended.returncode == 0
    assert "100 % · 10/10 steps" in drawn and "\x1b[2K" in drawn


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (0, "0"),
        (7, "7"),
        (0.125, "0.125"),
        (9_999, "9999"),
        (12_345, "12.3k"),
        (999_600, "1M"),
        (4.56e6, "4.56M"),
        (2e9, "2G"),
    ],
)
def test_amounts_are_short(amount: float, shown: str) -> None:
    assert format_amount(amount) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.42, "0.4 s"), (9.96, "10 s"), (42, "42 s"), (59.7, "1:00"), (187, "3:07"), (3729, "1:02:09")],
)
def test_durations_are_said_as_people_say_them(seconds: float, shown: str) -> None:
    assert format_duration(seconds) == shown


def test_a_share_of_the_whole_is_shown_as_per_cent_alone(capsys: pytest.CaptureFixture[str]):
    with Progress("train", 100, "%") as progress:
        for _ in range(3):
            progress.advance(100 / 3, loss=2.5)
    line = capsys.readouterr().err.splitlines()[-1]
    assert "100 %" in line and "%/s" not in line and "100/100" not in line and "loss 2.5" in line
