"""Which tokens of which sequences are computed in the next step.

A step takes a budget of tokens. Texts that are being written come first, one token each, so that none of them ever
waits for a prompt. What is left goes to guesses at what follows these, at most half of it if there are prompts, and to
prompts in chunks, the oldest first, and none so much that a short one behind it would have to wait. Guesses are the
last tokens of a sequence until somebody says which of them were right (`settle`); nobody gives way for them, and what
was computed of them is shared with nobody before.

Calls take turns: of each that waits one sequence is admitted, then of each the next, so that a question waits for a few
others and not for all of a thousand that were asked at once. A sequence keeps its turn, and who comes later gets none
that is over, so everybody's comes. It is admitted when all its tokens have room; should the pool run dry as texts grow,
the youngest, whose turn is the last, gives its blocks back and is computed anew later: nothing is lost.
"""

from bisect import insort
from collections import deque
from collections.abc import Sequence as Items
from typing import Any

from groundup.engine.blocks import BlockPool
from groundup.engine.sequence import Chunk, Sequence, Step
from groundup.engine.source import Source
from groundup.model.lora import Adapter


class Scheduler:
    """Sequences that wait and sequences that run.

    pool: what they share. budget: tokens of one step. most_running: sequences with blocks at a time.
    recurrent: a cached beginning is of use only with the state after it.
    whole_prompts: prompts are not cut into chunks, and nothing becomes known.
    reach: tokens before the next one that some layer can see; None: all.
    """

    def __init__(
        self,
        pool: BlockPool,
        budget: int,
        most_running: int,
        recurrent: bool = False,
        whole_prompts: bool = False,
        reach: int | None = None,
    ) -> None:
        if not 1 <= most_running <= budget:
            raise ValueError(f"a step of {budget} tokens cannot serve {most_running} running sequences")
        self.pool = pool
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._budget, self._most_running = budget, most_running
        self._recurrent, self._whole_prompts, self._reach = recurrent, whole_prompts, reach
        # The turn of the last one that was admitted, of those that were the latest so far.
        self._turn = 0
        self._arrivals = self._forks = 0

    def add(
        self,
        tokens: Items[int],
        most_tokens: int,
        reuses: bool = True,
        adapter: Adapter | None = None,
        source: Source | None = None,
        place: int = 0,
    ) -> Sequence:
        """A new sequence, which will have no more than `most_tokens` to compute.

        place: how many others of the same call have their turn before it.
        Raises ValueError if these, and its source, do not fit into the pool even when it is empty.
        """
        if self.pool.blocks_for(most_tokens) + (0 if source is None else source.blocks) > self.pool.count:
            raise ValueError(f"{most_tokens} tokens do not fit into the cache, which holds {self.pool.tokens}")
        order = self._turn + 1 + place, self._arrivals, 0
        self._arrivals += 1
        sequence = Sequence(tokens, self.pool, order, reuses, adapter, source)
        self._wait(sequence)
        return sequence

    def fork(self, parent: Sequence) -> Sequence:
        """Another sequence with the parent's tokens, of which nothing is computed again if both can run at a time.

        It is younger than all forks before it, and older than what comes after the first of its line.
        """
        self._forks += 1
        turn, arrival, _ = parent.order
        order = turn, arrival, self._forks
        child = Sequence(parent.tokens, self.pool, order, parent.reuses, parent.adapter, parent.source)
        child.cached = parent.cached
        if parent in self.running and len(self.running) < self._most_running:
            child.table, child.computed, child.state = parent.table.fork(), parent.computed, parent.state
            self._let_run(child)
        else:
            self._wait(child)
        return child

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, finished or not; its blocks are free at once."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        _strip(sequence)

    def schedule(self) -> Step:
        """The next step; no chunks if there is nothing to do."""
        chunks = self._next()
        while not chunks and self._idle_gives_way():
            chunks = self._next()
        windows = self.pool.windows
        if windows is not None:
            for sequence, start, length in chunks:
                sequence.table.open(start + length)
        return Step(chunks, self.pool.take_copies(), () if windows is None else windows.take_copies())

    def _next(self) -> list[Chunk]:
        before = len(self.running)
        chunks = self._tokens_of_running()
        if len(self.running) == before:  # else there is no room for more
            self._admit()
        prompts: list[Sequence] = []
        if len(chunks) < len(self.running):
            served = {chunk.sequence for chunk in chunks}
            prompts = [one for one in self.running if one.pending and one not in served]
        spare = self._budget - len(chunks)
        if any(chunk.sequence.guessed for chunk in chunks):
            chunks = self._with_guesses(chunks, spare // 2 if prompts else spare)
            spare = self._budget - sum(chunk.length for chunk in chunks)
        return chunks + self._prompt_chunks(prompts, spare) if prompts else chunks

    def _tokens_of_running(self) -> list[Chunk]:
        """The next token of each text that is being written; all that run get the blocks that they need."""
        chunks: list[Chunk] = []
        running = list(self.running)
        for sequence in running:
            gave_way = len(self.running) < len(running) and sequence not in self.running
            if gave_way or not sequence.pending:
                continue
            # A prompt has had its blocks since it was admitted, but it may have grown meanwhile.
            is_written = sequence.is_written
            tokens = sequence.computed + 1 if is_written else len(sequence.tokens)
            has_room = sequence.table.has_room(tokens, sequence.computed) or self._make_room(sequence, tokens)
            if has_room and is_written:
                chunks.append(Chunk(sequence, sequence.computed, 1))
        return chunks

    def _make_room(self, sequence: Sequence, tokens: int) -> bool:
        """Blocks for so many tokens, the youngest giving way; False if that is the sequence itself."""
        while sequence.table.wanted(tokens, sequence.computed) > self.pool.available:
            if self._preempt_youngest() is sequence:
                return False
        sequence.table.grow(tokens, sequence.computed)
        return True

    def _with_guesses(self, chunks: Items[Chunk], budget: int) -> list[Chunk]:
        """The chunks with the guesses behind them, as far as there is room; without it, they are taken back."""
        longer = []
        for sequence, start, length in chunks:
            guesses = sequence.pending - length
            table = sequence.table
            if guesses > budget or table.wanted(len(sequence.tokens), start) > self.pool.available:
                sequence.keep(sequence.guessed - guesses)
                guesses = 0
            table.grow(len(sequence.tokens), start)
            budget -= guesses
            longer.append(Chunk(sequence, start, length + guesses))
        return longer

    def complete(self, step: Step) -> None:
        """The step has been computed: whole blocks become known, those out of sight are given back."""
        for chunk in step.chunks:
            chunk.sequence.computed += chunk.length
            self._account(chunk.sequence, chunk.start)

    def settle(self, sequence: Sequence, right: int) -> None:
        """Of a sequence's guesses the first `right` were; they are tokens like others now, and the rest are gone."""
        if not sequence.guessed:
            return
        start = sequence.certain
        sequence.keep(right)
        sequence.guessed = 0
        sequence.computed = min(sequence.computed, len(sequence.tokens))
        sequence.table.shrink(len(sequence.tokens))
        self._account(sequence, start)

    def _account(self, sequence: Sequence, start: int) -> None:
        """What follows from tokens from `start` on being computed."""
        if not self._whole_prompts and sequence.computed // self.pool.block_size > start // self.pool.block_size:
            self._publish(sequence, start)
        if self._reach is not None or self.pool.windows is not None:
            certain = min(sequence.computed, sequence.certain)
            if self._reach is not None:
                # One token stays in any case: by what is before it a layer tells that a token is not the first.
                sequence.table.drop_before(certain - max(self._reach, 1))
            sequence.table.close_behind(certain)

    def _publish(self, sequence: Sequence, start: int) -> None:
        whole = min(sequence.computed, sequence.certain) // self.pool.block_size
        for index in range(start // self.pool.block_size, whole):
            block = sequence.table.block_of(index)
            self.pool.publish(block, sequence.block_hash(index), sequence.block_tokens(index))
        if self._recurrent and whole and sequence.computed == whole * self.pool.block_size:
            self._remember(sequence, whole - 1)

    def _remember(self, sequence: Sequence, index: int) -> None:
        known = self.pool.find(sequence.block_hash(index), sequence.block_tokens(index))
        if known is not None:
            self.pool.remember(known, sequence.state)

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self._most_running:
            sequence = self.waiting[0]
            found, state = self._cached_beginning(sequence)
            taken = self.pool.blocks_for(len(sequence.tokens)) - sum(self.pool.is_held(block) for block in found)
            taken += 0 if sequence.source is None else sequence.source.wanted
            # Each running text may soon want another block.
            if taken + len(self.running) > self.pool.available:
                return
            self.waiting.popleft()
            self._turn = max(self._turn, sequence.order[0])
            sequence.table.adopt(found)
            sequence.computed = len(found) * self.pool.block_size
            if sequence.cached is None:  # not where it gave way before
                sequence.cached = sequence.computed
            sequence.state = state
            sequence.table.grow(len(sequence.tokens), sequence.computed)
            self._let_run(sequence)

    def _let_run(self, sequence: Sequence) -> None:
        """Put a sequence among those that run; while it does, its source is held."""
        if sequence.source is not None:
            sequence.source.hold(sequence, self.pool)
        insort(self.running, sequence, key=_order)

    def _cached_beginning(self, sequence: Sequence) -> tuple[list[int], Any | None]:
        """Known blocks that the sequence begins with, and the state after them; one token is always left to compute."""
        found: list[int] = []
        while sequence.reuses and (len(found) + 1) * self.pool.block_size < len(sequence.tokens):
            block = self.pool.find(sequence.block_hash(len(found)), sequence.block_tokens(len(found)))
            if block is None:
                break
            found.append(block)
        windows = self.pool.windows
        for length in reversed(range(1, len(found) + 1) if windows is None else windows.usable(found)):
            state = self.pool.state_after(found[length - 1]) if self._recurrent else None
            if state is not None or not self._recurrent:
                return found[:length], state
        return [], None

    def _prompt_chunks(self, prompts: Items[Sequence], budget: int) -> list[Chunk]:
        """Chunks of prompts, oldest first: each takes at most half of what is left, all of it if it is the last.

        A source is read as a whole, and counts; so it may be more than is left, and is then the last.
        """
        chunks: list[Chunk] = []
        for index, sequence in enumerate(prompts):
            if budget == 0:
                break
            share = budget if index == len(prompts) - 1 else max(self.pool.block_size, budget // 2)
            count = min(sequence.pending, share, budget)
            if self._whole_prompts:
                count = sequence.pending
            elif self._recurrent:
                count = _to_boundary(sequence.computed, count, self.pool.block_size)
            chunks.append(Chunk(sequence, sequence.computed, count))
            budget = max(0, budget - count - sequence.unread)
        return chunks

    def _preempt_youngest(self) -> Sequence:
        youngest = self.running.pop()
        _strip(youngest)
        self._wait(youngest)
        return youngest

    def _idle_gives_way(self) -> bool:
        """Where all that run wait for others (beams do, for each other), the youngest lets an older one run."""
        can = bool(self.waiting and self.running) and self.running[-1].order > self.waiting[0].order
        if can:
            self._preempt_youngest()
        return can

    def _wait(self, sequence: Sequence) -> None:
        """Put a sequence among those that wait, by its order."""
        insort(self.waiting, sequence, key=_order)


def _order(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.order


def _strip(sequence: Sequence) -> None:
    """Take from a sequence all but its tokens, guesses too."""
    sequence.keep(0)
    sequence.table.release()
    if sequence.source is not None:
        sequence.source.let_go(sequence)
    sequence.computed, sequence.state = 0, None


def _to_boundary(start: int, count: int, block_size: int) -> int:
    """The same number of tokens or fewer, so that a chunk ends with a block if it reaches the end of one.

    The state there can then be kept for others that begin alike.
    """
    end = (start + count) // block_size * block_size
    return end - start if end > start else count
