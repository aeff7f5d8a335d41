"""The engine's loop: guess, schedule, run, tell. It turns in the one thread of `worker.py`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVarTuple

from torch import Tensor

from groundup.engine.beaming import Beaming
from groundup.engine.embedding import Pooling, embed
from groundup.engine.guessing import Speculation
from groundup.engine.jobs import Scoring, Writing
from groundup.engine.rows import Logits, RowReader
from groundup.engine.runner import StepRunner
from groundup.engine.scheduler import Scheduler
from groundup.engine.sequence import Chunk
from groundup.engine.sequence import Sequence as Text
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.language_model import LanguageModel
from groundup.model.lora import Adapter, Adapters

Job = Writing | Beaming | Scoring
Arguments = TypeVarTuple("Arguments")


class Loop:
    """Jobs of one model. Not for several threads: see `Worker`."""

    def __init__(self, runner: StepRunner, scheduler: Scheduler, speculation: Speculation | None = None) -> None:
        self._runner = runner
        self._speculation = speculation
        self._scheduler = scheduler
        self._reader = RowReader()
        self._jobs: dict[Text, Job] = {}

    @property
    def is_busy(self) -> bool:
        return bool(self._jobs)

    @property
    def adapters(self) -> Adapters:
        return self._runner.adapters

    def begin(self, job: Job, place: int = 0) -> None:
        """Take up a job. place: see `Scheduler.add`."""
        # All tokens of a text to score are computed, as their logits are wanted.
        reuses = not isinstance(job, Scoring)
        try:
            self._require_present(job.adapter)
            sequence = self._scheduler.add(job.prompt, job.most_tokens, reuses, job.adapter, job.source, place)
        except ValueError as error:
            job.fail(error)
            return
        job.begin(sequence)
        self._jobs[sequence] = job

    def cancel(self, job: Job) -> None:
        """Give up a job, whatever its state; nothing more is told of it."""
        if isinstance(job, Writing) and job.sequence is None:
            for leader in self._jobs.values():
                if isinstance(leader, Writing) and job in leader.copies:
                    leader.copies.remove(job)
        elif not any(self._jobs.get(sequence) is job for sequence in job.sequences):
            return  # it is at its end
        elif isinstance(job, Writing) and job.copies:
            heir, *heir.copies = job.copies
            for sequence in job.sequences:
                heir.begin(sequence)
                self._jobs[sequence] = heir
        else:
            self._end(job)

    def embed(
        self,
        model: LanguageModel | EncoderDecoder,
        texts: Sequence[Sequence[int]],
        pooling: Pooling,
        adapter: Adapter | None,
    ) -> Tensor:
        """See `embedding.embed`. Raises ValueError if the adapter has been dropped."""
        self._require_present(adapter)
        with self._runner.adapted([adapter] * len(texts)):
            return embed(model, texts, pooling)

    def drop_adapter(self, name: str) -> None:
        """Raises ValueError if there is none of this name, and while texts that have begun need it."""
        adapter = self.adapters.named(name)
        if users := sum(job.adapter is adapter for job in self._jobs.values()):
            raise ValueError(f"adapter `{name}` is in use by {users} texts; wait for their ends or cancel them")
        self.adapters.remove(adapter)

    def step(self) -> None:
        """Compute one step, and tell of it. What goes wrong for some jobs ends those alone."""
        self._guess()
        step = self._scheduler.schedule()
        try:
            hidden_md = self._runner.run(step)
        except Exception as error:  # the model itself fails, say for lack of memory: all that took part are told
            self._fail([self._jobs[chunk.sequence] for chunk in step.chunks], error)
            return
        self._scheduler.complete(step)
        ready: list[tuple[Writing | Beaming, Text]] = []
        # Where what leaves the model at their last tokens stands, and at the guesses behind them.
        wanted: list[int] = []
        end = 0
        for chunk in step.chunks:
            start, end = end, end + chunk.length
            job = self._jobs[chunk.sequence]
            if isinstance(job, Scoring):
                self._go_on(job, self._score, job, chunk, hidden_md[start:end])
            elif chunk.is_last:
                wanted += range(end - 1 - chunk.sequence.guessed, end)
                ready.append((job, chunk.sequence))
        if ready:
            self._write(ready, hidden_md if len(wanted) == end else hidden_md[wanted])

    def fail_all(self, error: Exception) -> None:
        """End every job with an error; all are told, even where what is broken cannot be put away."""
        jobs = set(self._jobs.values())
        for job in jobs:
            job.fail(error)
        for job in jobs:
            self._end(job)

    def _require_present(self, adapter: Adapter | None) -> None:
        if adapter is not None and adapter not in self.adapters:
            raise ValueError(f"adapter `{adapter.name}` was dropped before this text was begun")

    def _guess(self) -> None:
        """Guesses behind the texts whose next token comes in this step."""
        if self._speculation is not None:
            ready = [self._jobs[sequence] for sequence in self._scheduler.running if sequence.is_written]
            self._speculation.propose([job for job in ready if isinstance(job, Writing) and job.written > 0])

    def _write(self, ready: Sequence[tuple[Writing | Beaming, Text]], hidden_nd: Tensor) -> None:
        """The next tokens of texts whose tokens are all computed; their logits are one product.

        hidden_nd: of each text's last token, and of the guesses behind it.
        """
        try:
            rows = self._rows(ready, hidden_nd)
        except Exception as error:  # they are computed together, so it is nobody's own
            self._fail([job for job, _ in ready], error)
            return
        searches: dict[Beaming, None] = {}
        end = 0
        for job, sequence in ready:
            start, end = end, end + 1 + sequence.guessed
            logits = rows[start:end]
            if isinstance(job, Beaming):
                job.hear(sequence, logits[0])
                searches[job] = None
                continue
            copies = self._copies(job, sequence)
            self._go_on(job, self._write_one, job, logits)
            for copy in copies:
                self._go_on(copy, self._write_one, copy, logits)
        for search in searches:
            self._go_on(search, search.follow, partial(self._fork, search), self._drop)

    def _rows(self, ready: Sequence[tuple[Writing | Beaming, Text]], hidden_nd: Tensor) -> list[Logits]:
        """The logits that follow each text's last token and its guesses, one text behind the other."""
        adapters = [sequence.adapter for _, sequence in ready for _ in range(1 + sequence.guessed)]
        draws = [draw for job, sequence in ready for draw in job.draws(1 + sequence.guessed)]
        logits_nv = self._runner.logits(hidden_nd, adapters)
        return self._reader.read(logits_nv, draws, self._runner.peaks)

    def _write_one(self, job: Writing, logits: Sequence[Logits]) -> bool:
        """The next tokens of one text, among them the guesses that were right; returns whether it ends."""
        sequence = job.sequence
        assert sequence is not None
        guesses = sequence.guesses
        tokens, ended = job.write(logits, guesses, sequence.cached or 0)
        if guesses:
            self._scheduler.settle(sequence, right=len(tokens) - 1)
            if self._speculation is not None:
                self._speculation.learn(job, len(guesses), len(tokens) - 1)
        sequence.tokens.append(tokens[-1])
        return ended

    def _copies(self, leader: Writing, sequence: Text) -> list[Writing]:
        """Those that wait for the prompt, which begin now."""
        if not leader.copies:
            return []
        copies, leader.copies = leader.copies, []
        for copy in copies:
            copy.begin(self._fork(copy, sequence))
        return copies

    def _go_on(self, job: Job, go_on: Callable[[*Arguments], bool], *arguments: *Arguments) -> None:
        """Have a job take its next step; it ends if that says so, or fails."""
        try:
            ended = go_on(*arguments)
        except Exception as error:
            self._fail([job], error)
            return
        if ended:
            self._end(job)

    def _score(self, job: Scoring, chunk: Chunk, hidden_td: Tensor) -> bool:
        """Score the tokens behind those of a chunk; returns whether they were the last."""
        next_ids = chunk.sequence.tokens[chunk.start + 1 : chunk.start + chunk.length + 1]
        # Those found before the text gave way to another, and was computed anew, are found again.
        job.found[chunk.start :] = self._runner.score(hidden_td, next_ids, chunk.sequence.adapter, job.top)
        if chunk.is_last:
            job.tell(job.found)
        return chunk.is_last

    def _fork(self, job: Job, sequence: Text) -> Text:
        """Another sequence with the same tokens, for this job."""
        fork = self._scheduler.fork(sequence)
        self._jobs[fork] = job
        return fork

    def _drop(self, sequence: Text) -> None:
        del self._jobs[sequence]
        self._scheduler.remove(sequence)

    def _end(self, job: Job) -> None:
        if self._speculation is not None and isinstance(job, Writing):
            self._speculation.forget(job)
        sequences = job.sequences
        if isinstance(job, Beaming):  # it may have failed between a fork and its book-keeping, and not know of all
            sequences = [sequence for sequence, owner in self._jobs.items() if owner is job]
        for sequence in sequences:
            self._drop(sequence)

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        for job in dict.fromkeys(jobs):
            self._end(job)
            job.fail(error)
