"""The one thread in which an engine's loop turns.

All state of the engine belongs to it. Others hand it actions, which it takes up between two steps; it begins when there
is something to do and ends when there is nothing left.
"""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from groundup.engine.loop import Loop
from groundup.errors import UserError

Result = TypeVar("Result")


class Worker:
    """The thread that owns a loop and its model. A program that ends waits for it, so that no product is cut off."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        # A stream that the garbage collector ends gives up its job, maybe in the midst of what is done under the lock.
        self._lock = threading.RLock()
        self._actions: list[Callable[[], None]] = []
        self._is_turning, self._process = False, os.getpid()

    def do(self, action: Callable[[], None]) -> None:
        """Have an action done between two steps. It must not raise.

        Raises UserError in the child of a process that forked while something was computed: threads are not copied.
        """
        if self._is_turning and self._process != os.getpid():
            raise UserError(
                "this process was forked while its parent's engine was computing, and without the engine's thread; "
                "make an engine of its own here, or fork when nothing is asked of the parent's"
            )
        with self._lock:
            self._actions.append(action)
            if not self._is_turning:
                self._process, self._is_turning = os.getpid(), True
                self._start()

    def result_of(self, work: Callable[[], Result]) -> "Future[Result]":
        """Have something done between two steps, and its result or error told, unless it is cancelled before."""
        future: Future[Result] = Future()

        def action() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except Exception as error:  # whoever waits for the result gets it
                future.set_exception(error)

        self.do(action)
        return future

    def _start(self) -> None:
        try:
            threading.Thread(target=self._turn, name="groundup-engine").start()
        except RuntimeError:  # the system has no thread left; it may have, when the next one asks
            self._is_turning = False
            self._actions.clear()
            raise

    def _turn(self) -> None:
        try:
            while (actions := self._next_actions()) is not None:
                for action in (*actions, self._step):
                    try:
                        action()
                    except Exception as error:  # a defect of ours
                        self._tell(error)
        except BaseException:
            self._is_turning = False  # who asks next has another thread
            raise

    def _step(self) -> None:
        if self._loop.is_busy:
            self._loop.step()

    def _tell(self, error: Exception) -> None:
        """Whoever waits is told, instead of waiting for ever; where nobody does, it is shown as threads' errors are."""
        if self._loop.is_busy:
            self._loop.fail_all(error)
        else:
            sys.excepthook(type(error), error, error.__traceback__)

    def _next_actions(self) -> list[Callable[[], None]] | None:
        """What is to be done before the next step, None if there is nothing to do at all."""
        with self._lock:
            actions, self._actions = self._actions, []
            # Looked at again, since what the garbage collector ends may have come by meanwhile.
            self._is_turning = bool(actions or self._actions or self._loop.is_busy)
            return actions if self._is_turning else None
