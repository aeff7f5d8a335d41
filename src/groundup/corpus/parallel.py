"""A map over local processes that keeps order, holds little in memory and never outlives its parent."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def usable_cores() -> int:
    """Cores that this process may use (`taskset` and containers count)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`map(function, items)` on `workers` processes; with one worker, in this process.

    function: at the top level of a module, so that a fresh process can import it.
    Items are taken only as workers get free: a corpus larger than memory passes through. When the caller stops early,
    by Ctrl-C or an error, the workers end at once; when the caller is killed, they end with its pipes.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    # Fresh processes rather than forks: the caller may run threads, which a fork would leave in mid-air.
    context = multiprocessing.get_context("spawn")
    connections: list[Connection] = []
    processes = []
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, function), daemon=True)
            process.start()
            theirs.close()
            connections.append(ours)
            processes.append(process)
        # Each worker has one item at most, in turn, so results come back in order and no pipe can fill up both ways.
        busy: deque[Connection] = deque()
        idle = deque(connections)
        for item in items:
            if not idle:
                yield _receive(busy[0])
                idle.append(busy.popleft())
            connection = idle.popleft()
            connection.send(item)
            busy.append(connection)
        while busy:
            yield _receive(busy.popleft())
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            process.terminate()
            process.join()


def _receive(connection: Connection) -> Any:
    try:
        succeeded, value = connection.recv()
    except EOFError:
        raise RuntimeError("a worker process died; was it out of memory?") from None
    if not succeeded:
        raise value
    return value


def _serve(connection: Connection, function: Callable[[Item], Result]) -> None:
    # Ctrl-C reaches every process of the terminal; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        try:
            answer: tuple[bool, Any] = (True, function(item))
        except Exception as error:
            answer = (False, error)
        try:
            connection.send(answer)
        except BrokenPipeError:
            # Nobody waits for it any more.
            return
