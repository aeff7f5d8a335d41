"""The ordered map over processes: order, errors, and an end to every worker."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from operator import neg  # workers import what they run, which they could not from a test file
from pathlib import Path

import pytest

from groundup.corpus.parallel import ordered_map


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_items(workers: int):
    assert list(ordered_map(neg, range(20), workers)) == [-number for number in range(20)]


def test_large_items_both_ways_do_not_block():
    items = [bytes(3_000_000)] * 4
    assert [len(result) for result in ordered_map(bytes, items, 2)] == [3_000_000] * 4


def test_items_are_taken_only_as_workers_get_free():
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield number

    results = ordered_map(neg, items(), 2)
    next(results)
    assert taken <= 3
    results.close()
    assert multiprocessing.active_children() == []


def test_an_error_in_a_worker_is_raised_here_and_ends_all():
    with pytest.raises(TypeError, match="bad operand"):
        list(ordered_map(neg, [1, "text", 2, 3], 2))
    assert multiprocessing.active_children() == []


def test_workers_leave_ctrl_c_to_their_parent():
    results = ordered_map(neg, range(20), 2)
    # A result of each: both workers have started and set their handlers.
    assert [next(results), next(results)] == [0, -1]
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
    assert list(results) == [-number for number in range(2, 20)]


PARENT = """
import multiprocessing, sys, time
from groundup.corpus.parallel import ordered_map
if __name__ == "__main__":
    results = ordered_map(time.sleep, {seconds}, 2)
    next(results), next(results)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    {then}
"""


@pytest.mark.parametrize(
    ("seconds", "then", "end"),
    [([0, 0, 60, 60], "list(results)", signal.SIGINT), ([0, 0, 0, 0], "time.sleep(60)", signal.SIGKILL)],
    ids=["ctrl-c while workers are busy", "kill -9 of the parent while they wait"],
)
def test_workers_end_with_their_parent(tmp_path: Path, seconds: list[int], then: str, end: signal.Signals):
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(seconds=seconds, then=then))
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts what runs in the background with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert parent.stdout is not None
    workers = [int(word) for word in parent.stdout.readline().split()]
    assert len(workers) == 2
    # Ctrl-C goes to every process of the terminal.
    (os.killpg if end == signal.SIGINT else os.kill)(parent.pid, end)
    _, errors = parent.communicate(timeout=20)
    if end == signal.SIGINT:
        assert errors.strip().endswith("KeyboardInterrupt")
        assert errors.count("Traceback") == 1  # the parent's; workers stay silent
    deadline = time.monotonic() + 20
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))


def is_running(process: int) -> bool:
    """Whether a process lives; one that only waits for its parent to ask how it ended does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
