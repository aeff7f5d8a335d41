"""The engine's loop: schedule, run, tell; and the one thread in which it turns.

All state of the engine belongs to that thread. Others hand it actions, which it takes up between two steps; it begins
when there is something to do and ends when there is nothing left.
"""

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from groundup.engine.jobs import Job, Scoring, Writing
from groundup.engine.runner import Runner
from groundup.engine.scheduler import Chunk, Scheduler
from groundup.engine.scheduler import Sequence as Text
from groundup.model.lora import Adapters


class Loop:
    """Jobs of one model. Not for several threads: see `Worker`."""

    def __init__(self, runner: Runner, scheduler: Scheduler) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._jobs: dict[Text, Job] = {}

    @property
    def is_busy(self) -> bool:
        return bool(self._jobs)

    @property
    def adapters(self) -> Adapters:
        return self._runner.adapters

    def begin(self, job: Job) -> None:
        """Take up a job."""
        if job.adapter is not None and job.adapter not in self.adapters:
            _tell(job, ValueError(f"adapter `{job.adapter.name}` was dropped before this text was begun"))
            return
        # All tokens of a text to score are computed, as their logits are wanted.
        reuses = isinstance(job, Writing)
        job.sequence = self._scheduler.add(job.prompt, job.most_tokens, reuses, job.adapter)
        self._jobs[job.sequence] = job

    def cancel(self, job: Job) -> None:
        """Give up a job, whatever its state; nothing more is told of it."""
        if isinstance(job, Writing) and job.sequence is None:
            for leader in self._jobs.values():
                if isinstance(leader, Writing) and job in leader.copies:
                    leader.copies.remove(job)
        elif isinstance(job, Writing) and job.copies and job.sequence in self._jobs:
            heir, *heir.copies = job.copies
            heir.sequence, self._jobs[job.sequence] = job.sequence, heir
        elif job.sequence in self._jobs:
            self._end(job)

    def drop_adapter(self, name: str) -> None:
        """Raises ValueError if there is none of this name, and while texts that have begun need it."""
        adapter = self.adapters.named(name)
        if users := sum(job.adapter is adapter for job in self._jobs.values()):
            raise ValueError(f"adapter `{name}` is in use by {users} texts; wait for their ends or cancel them")
        self.adapters.remove(adapter)

    def step(self) -> None:
        """Compute one step, and tell of it. What goes wrong for one job ends that one alone."""
        step = self._scheduler.schedule()
        try:
            outputs = self._runner.run(step)
        except Exception as error:  # the model itself fails, say for lack of memory: all that took part are told
            for chunk in step.chunks:
                self._fail(self._jobs[chunk.sequence], error)
            return
        self._scheduler.complete(step)
        for chunk, hidden_td in outputs:
            job = self._jobs[chunk.sequence]
            if isinstance(job, Scoring):
                self._score(job, chunk, hidden_td)
        self._write([(chunk, hidden_td) for chunk, hidden_td in outputs if self._is_writing(chunk)])

    def fail_all(self, error: Exception) -> None:
        """End every job with an error."""
        for job in list(self._jobs.values()):
            self._fail(job, error)

    def _is_writing(self, chunk: Chunk) -> bool:
        return chunk.is_last and isinstance(self._jobs.get(chunk.sequence), Writing)

    def _write(self, ready: Sequence[tuple[Chunk, Tensor]]) -> None:
        """The next tokens of texts whose tokens are all computed; their logits are one product."""
        if not ready:
            return
        logits_bv = self._runner.logits(torch.stack([hidden_td[-1] for _, hidden_td in ready]))
        for (chunk, _), logits_v in zip(ready, logits_bv, strict=True):
            leader = self._jobs[chunk.sequence]
            assert isinstance(leader, Writing)
            copies, leader.copies = leader.copies, []
            for number, copy in enumerate(copies, start=1):
                copy.sequence = self._scheduler.fork(chunk.sequence, number)
                self._jobs[copy.sequence] = copy
            for job in (leader, *copies):
                self._write_one(job, logits_v)

    def _write_one(self, job: Writing, logits_v: Tensor) -> None:
        assert job.sequence is not None
        try:
            ended = job.write(job.sequence, logits_v)
        except Exception as error:
            self._fail(job, error)
            return
        if ended:
            self._end(job)

    def _score(self, job: Scoring, chunk: Chunk, hidden_td: Tensor) -> None:
        next_ids = chunk.sequence.tokens[chunk.start + 1 : chunk.start + chunk.length + 1]
        # Those found before the text gave way to another, and was computed anew, are found again.
        job.found[chunk.start :] = self._runner.log_probabilities(hidden_td, next_ids)
        if chunk.is_last:
            job.tell(job.found)
            self._end(job)

    def _end(self, job: Job) -> None:
        assert job.sequence is not None
        del self._jobs[job.sequence]
        self._scheduler.remove(job.sequence)

    def _fail(self, job: Job, error: Exception) -> None:
        self._end(job)
        _tell(job, error)


def _tell(job: Job, error: Exception) -> None:
    """Tell of an error whoever waits for a job, or for a copy of it that has not begun."""
    for one in (job, *job.copies) if isinstance(job, Writing) else (job,):
        one.tell(error)


class Worker:
    """The thread that owns a loop and its model. A program that ends waits for it, so that no product is cut off."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._actions: list[Callable[[], None]] = []
        self._thread: threading.Thread | None = None

    def do(self, action: Callable[[], None]) -> None:
        """Have an action done between two steps. It must not raise."""
        with self._lock:
            self._actions.append(action)
            if self._thread is None:
                self._thread = threading.Thread(target=self._turn, name="groundup-engine")
                self._thread.start()

    def _turn(self) -> None:
        while (actions := self._next_actions()) is not None:
            try:
                for action in actions:
                    action()
                if self._loop.is_busy:
                    self._loop.step()
            except Exception as error:  # a defect of ours: whoever waits is told of it, instead of waiting for ever
                if not self._loop.is_busy:
                    raise
                self._loop.fail_all(error)

    def _next_actions(self) -> list[Callable[[], None]] | None:
        """What is to be done before the next step, None if there is nothing to do at all."""
        with self._lock:
            actions, self._actions = self._actions, []
            if actions or self._loop.is_busy:
                return actions
            self._thread = None
            return None
