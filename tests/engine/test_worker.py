"""The engine's thread: nobody waits for ever, whatever breaks, forks, or is ended in the midst of something else."""

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from groundup.engine.worker import Worker
from groundup.errors import UserError


class _Work:
    """Stands for a loop: it is busy as long as there are steps to take."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], None]] = []
        self.told: list[Exception] = []

    @property
    def is_busy(self) -> bool:
        return bool(self.steps)

    def step(self) -> None:
        self.steps[0]()
        del self.steps[0]

    def fail_all(self, error: Exception) -> None:
        self.steps.clear()
        self.told.append(error)


def _break() -> None:
    raise RuntimeError("broken")


def _within_a_minute(ask: Callable[[], object]) -> object:
    """What is done in another thread, so that a test that would hang fails instead."""
    done: list[object] = []
    thread = threading.Thread(target=lambda: done.append(ask()), daemon=True)
    thread.start()
    thread.join(60)
    assert done, "this takes for ever"
    return done[0]


def _asked(worker: Worker) -> str:
    return worker.result_of(lambda: "answer").result(60)


def test_an_action_that_breaks_takes_neither_its_neighbours_nor_the_thread_along(
    capsys: pytest.CaptureFixture[str],
):
    worker = Worker(_Work())  # type: ignore[arg-type]
    held = threading.Event()
    worker.do(lambda: held.wait(60))
    worker.do(_break)
    answer = worker.result_of(lambda: "answer")
    held.set()
    assert answer.result(60) == "answer"
    assert _asked(worker) == "answer"
    assert "RuntimeError: broken" in capsys.readouterr().err


def test_a_step_that_breaks_is_told_to_all_and_the_next_request_is_served():
    work = _Work()
    worker = Worker(work)  # type: ignore[arg-type]
    worker.do(lambda: work.steps.extend([lambda: None, _break, lambda: None]))
    assert _within_a_minute(lambda: _asked(worker)) == "answer"
    while work.is_busy:
        _asked(worker)
    assert [str(error) for error in work.told] == ["broken"]
    assert _asked(worker) == "answer"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_where_even_telling_breaks_the_next_request_has_another_thread():
    work = _Work()
    worker = Worker(work)  # type: ignore[arg-type]
    work.fail_all = lambda error: (work.steps.clear(), _break())  # type: ignore[assignment]
    worker.do(lambda: work.steps.append(_break))
    for thread in threading.enumerate():
        if thread.name == "groundup-engine":
            thread.join(60)
    assert _within_a_minute(lambda: _asked(worker)) == "answer"


def test_what_the_garbage_collector_ends_under_the_lock_waits_for_nobody(monkeypatch: pytest.MonkeyPatch):
    """A stream that nobody holds any more is closed wherever memory is asked for: while a thread is made, say."""
    work = _Work()
    worker = Worker(work)  # type: ignore[arg-type]
    made, cancelled = threading.Thread, []

    def collecting(**settings: object) -> threading.Thread:
        if settings.get("name") == "groundup-engine":
            worker.do(lambda: cancelled.append(threading.current_thread()))
        return made(**settings)  # type: ignore[arg-type]

    def ask() -> str:
        monkeypatch.setattr(threading, "Thread", collecting)
        answer = worker.result_of(lambda: "answer")
        monkeypatch.undo()
        return answer.result(60)

    assert _within_a_minute(ask) == "answer"
    _asked(worker)
    assert len(cancelled) == 1


def test_a_system_without_threads_is_told_and_the_next_request_is_served(monkeypatch: pytest.MonkeyPatch):
    worker = Worker(_Work())  # type: ignore[arg-type]

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done: list[str] = []
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        worker.do(lambda: done.append("what was refused"))
    monkeypatch.undo()
    assert _asked(worker) == "answer"
    assert done == []


def _in_a_fork(ask: Callable[[], bool]) -> bool:
    """Whether it is so in a child of this process, which has half a minute for it."""
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if ask() else 1)
    return os.waitpid(child, 0)[1] == 0


def test_a_process_that_forks_while_nothing_is_computed_has_two_engines():
    worker = Worker(_Work())  # type: ignore[arg-type]
    assert _asked(worker) == "answer"
    while worker._is_turning:
        pass
    assert _in_a_fork(lambda: _asked(worker) == "answer")
    assert _asked(worker) == "answer"


def test_a_process_that_forks_while_something_is_computed_is_told_in_its_child():
    worker = Worker(_Work())  # type: ignore[arg-type]
    held = threading.Event()
    worker.do(lambda: held.wait(60))

    def refused() -> bool:
        try:
            _asked(worker)
        except UserError as error:
            return "forked while its parent's engine was computing" in str(error)
        return False

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(_asked, worker)
        assert _in_a_fork(refused)
        held.set()
        assert answer.result(60) == "answer"
