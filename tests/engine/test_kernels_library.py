"""The library itself: loading, levels, threads, forks, and what the doctor says."""

import ctypes
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from groundup.cli import main
from groundup.engine import kernels
from groundup.engine.kernels import library
from groundup.errors import UserError
from groundup.quantize.matrix import W4, QuantizedMatrix, quantize_rows

SMALLEST_LEVEL = {**os.environ, library.LEVEL_VARIABLE: "portable"}


def _layer() -> tuple[QuantizedMatrix, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return quantize_rows(torch.randn(2000, 256, generator=draw), W4), torch.randn(8, 256, generator=draw)


def _output(matrix: QuantizedMatrix, x: torch.Tensor) -> list[float]:
    return kernels.linear(kernels.quantize(x), matrix).flatten().tolist()


def test_without_the_library_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library, "path", lambda: None)
    library.load.cache_clear()
    library._function.cache_clear()
    with pytest.raises(UserError, match=r"kernels were not compiled .* install a C\+\+ compiler"):
        kernels.quantize(torch.zeros(1, 1))
    assert library.finding().verdict == "missing" and "not compiled" in library.finding().sentence


def test_the_doctor_names_the_instructions(level: str):
    finding = library.finding()
    assert finding.verdict == ("slow" if level in ("portable", "avx2") else "good") and level in finding.sentence


def test_groundup_doctor_speaks_of_the_kernels(
    compiled: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("groundup.hardware.doctor", lambda folder: [])
    main(["doctor"])
    assert f"kernels          {library.finding().sentence}" in capsys.readouterr().out


@pytest.mark.parametrize(("asked", "said"), [("sse", "choose among portable, avx2, avx512"), ("", "choose among")])
def test_unknown_instructions_are_refused(compiled: None, asked: str, said: str):
    with pytest.raises(UserError, match=said):
        library.set_level(asked)


def test_the_environment_can_ask_for_fewer_instructions(compiled: None):
    program = "from groundup.engine.kernels import library; print(library.level())"
    done = subprocess.run(
        [sys.executable, "-c", program], env=SMALLEST_LEVEL, capture_output=True, text=True, check=True
    )
    assert done.stdout == "portable\n"


def test_without_threads_of_its_own_there_is_nothing_to_compute_with(compiled: None):
    with pytest.raises(ValueError, match="at least 1 thread, not 0"):
        library.set_threads(0)


def test_a_forked_child_has_threads_of_its_own(threads: None):
    """While the parent's are at work: whatever state their locks are in, the child does not wait for them."""
    library.set_threads(3)
    layer = _layer()
    expected, stop = _output(*layer), threading.Event()

    def work() -> None:
        while not stop.is_set():
            kernels.linear(kernels.quantize(layer[1]), layer[0])

    busy = threading.Thread(target=work)
    busy.start()
    try:
        for _ in range(5):
            context = multiprocessing.get_context("fork")
            answers, child_end = context.Pipe(duplex=False)
            child = context.Process(target=lambda end: end.send(_output(*layer)), args=(child_end,))
            child.start()
            assert answers.poll(60), "the child hangs"
            assert answers.recv() == expected
            child.join()
    finally:
        stop.set()
        busy.join()
    assert _output(*layer) == expected


def test_several_python_threads_may_call_at_once(threads: None):
    library.set_threads(2)
    layer = _layer()
    expected, wrong = _output(*layer), []

    def work() -> None:
        for _ in range(50):
            if _output(*layer) != expected:
                wrong.append(True)

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_calls_let_go_of_pythons_lock(compiled: None):
    """ctypes keeps it only for libraries that are loaded as `PyDLL`."""
    assert not isinstance(library.load(), ctypes.PyDLL)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in Linux's /proc")
def test_threads_come_and_go(threads: None):
    layer = _layer()
    expected = _output(*layer)
    library.set_threads(1)
    before = _running_threads()
    for count in (4, 1, 2, 7, 1):
        library.set_threads(count)
        assert _output(*layer) == expected
        _wait_until(lambda wanted=before + count - 1: _running_threads() == wanted)


def _running_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def _wait_until(reached: Callable[[], bool]) -> None:
    """The system takes a moment to forget a thread that has ended."""
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="a thread's sleeps are counted in Linux's /proc")
def test_a_thread_sleeps_only_after_a_millisecond_without_work(threads: None):
    """True on a busy machine, too: there is no more than one sleep for each millisecond that passes."""
    library.set_threads(2)
    matrix, x = _layer()
    quantized = kernels.quantize(x)
    kernels.linear(quantized, matrix)
    before, begun = _sleeps(), time.monotonic()
    for _ in range(2000):
        kernels.linear(quantized, matrix)
    milliseconds, after = 1000 * (time.monotonic() - begun), _sleeps()
    others = [count - before[thread] for thread, count in after.items() if thread in before]
    assert others and max(others) <= milliseconds + 10


def _sleeps() -> dict[int, int]:
    """How often each other thread of this process has waited for something."""
    found = {}
    for folder in Path("/proc/self/task").iterdir():
        if int(folder.name) != threading.get_native_id():
            lines = (folder / "status").read_text().splitlines()
            found[int(folder.name)] = int(next(line for line in lines if line.startswith("voluntary")).split()[1])
    return found
