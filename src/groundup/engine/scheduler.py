"""Which tokens of which sequences are computed in the next step.

There is one notion for everything: a sequence has tokens, and some of them have been computed. A prompt that has just
come, one whose beginning was found in the cache, a running text with its newest token, and a text that lost its blocks
and is computed anew differ only in how many are left.

A step takes a budget of tokens. Texts that are being written come first, one token each, so that none of them ever
waits for a prompt. What is left goes to guesses at what follows these, at most half of it if there are prompts, and to
prompts in chunks, the oldest first, and none so much that a short one behind it would have to wait. Guesses are the
last tokens of a sequence until somebody says which of them were right (`settle`); nobody gives way for them, and what
was computed of them is shared with nobody before.

Sequences are admitted in the order of their arrival, when all their tokens have room; should the pool run dry as texts
grow, the youngest gives its blocks back and is computed anew later: nothing is lost.
"""

from bisect import insort
from collections import deque
from collections.abc import Sequence as Items
from typing import Any, NamedTuple

from groundup.engine.blocks import BlockPool, BlockTable, Copy
from groundup.model.lora import Adapter


class Sequence:
    """A text that is computed.

    tokens: prompt and answer so far, and guesses; whoever owns the sequence appends to it.
    guessed: how many of the last tokens are guesses.
    computed: how many of them have their keys, values and states.
    cached: how many were found in the cache when it was first admitted, None before.
    state: of recurrent layers after these; the scheduler only hands it on.
    reuses: whether its beginning may come from the cache; not where the logits of all its tokens are wanted.
    order: sequences are served in this order.
    adapter: that it is computed with, if any; those with different ones share nothing.
    """

    def __init__(
        self,
        tokens: Items[int],
        pool: BlockPool,
        order: tuple[int, int],
        reuses: bool = True,
        adapter: Adapter | None = None,
    ) -> None:
        self.tokens = list(tokens)
        self.guessed = 0
        self.computed = 0
        self.cached: int | None = None
        self.state: Any | None = None
        self.reuses = reuses
        self.order = order
        self.adapter = adapter
        self.table = BlockTable(pool)
        self._pool = pool
        self._hashes: list[bytes] = []

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.computed

    @property
    def certain(self) -> int:
        """Tokens that are no guesses."""
        return len(self.tokens) - self.guessed

    @property
    def is_written(self) -> bool:
        """Whether one token more is all that has to be computed before the next can be chosen, or guessed."""
        return self.pending > 0 and self.computed >= self.certain - 1

    @property
    def guesses(self) -> list[int]:
        return self.tokens[self.certain :]

    def guess(self, tokens: Items[int]) -> None:
        """Append guesses at what follows."""
        self.tokens += tokens
        self.guessed += len(tokens)

    def keep(self, guesses: int) -> None:
        """Take back all guesses but the first; those count as guesses still."""
        del self.tokens[self.certain + guesses :]
        self.guessed = min(self.guessed, guesses)

    def block_tokens(self, index: int) -> list[int]:
        size = self._pool.block_size
        return self.tokens[index * size : (index + 1) * size]

    def block_hash(self, index: int) -> bytes:
        """The hash of a whole block and all before it, the adapter included."""
        while len(self._hashes) <= index:
            root = b"" if self.adapter is None else self.adapter.key
            before = self._hashes[-1] if self._hashes else root
            self._hashes.append(self._pool.chained_hash(before, self.block_tokens(len(self._hashes))))
        return self._hashes[index]


class Chunk(NamedTuple):
    """Tokens start … start + length - 1 of a sequence, to be computed in one step."""

    sequence: Sequence
    start: int
    length: int

    @property
    def is_last(self) -> bool:
        """Whether its last logits are those of the next token."""
        return self.start + self.length == len(self.sequence.tokens)


class Step(NamedTuple):
    """copies: of blocks, one after the other before anything is computed."""

    chunks: list[Chunk]
    copies: list[Copy]


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
        self._arrivals = self._forks = 0

    def add(
        self, tokens: Items[int], most_tokens: int, reuses: bool = True, adapter: Adapter | None = None
    ) -> Sequence:
        """A new sequence, which will have no more than `most_tokens` to compute.

        Raises ValueError if these do not fit into the pool even when it is empty.
        """
        if self.pool.blocks_for(most_tokens) > self.pool.count:
            raise ValueError(f"{most_tokens} tokens do not fit into the cache, which holds {self.pool.tokens}")
        sequence = Sequence(tokens, self.pool, (self._arrivals, 0), reuses, adapter)
        self._arrivals += 1
        self.waiting.append(sequence)
        return sequence

    def fork(self, parent: Sequence) -> Sequence:
        """Another sequence with the parent's tokens, of which nothing is computed again if both can run at a time.

        It is younger than all forks before it, and older than what arrived after the first of its line.
        """
        self._forks += 1
        child = Sequence(parent.tokens, self.pool, (parent.order[0], self._forks), parent.reuses, parent.adapter)
        child.cached = parent.cached
        if parent in self.running and len(self.running) < self._most_running:
            child.table, child.computed, child.state = parent.table.fork(), parent.computed, parent.state
            insort(self.running, child, key=lambda sequence: sequence.order)
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
        return Step(chunks, self.pool.take_copies())

    def _next(self) -> list[Chunk]:
        chunks: list[Chunk] = []
        preempted = False
        for sequence in [one for one in self.running if one.pending]:
            if sequence not in self.running:
                continue  # gave its blocks to an older one
            # A prompt has had its blocks since it was admitted, but it may have grown meanwhile.
            tokens = sequence.computed + 1 if sequence.is_written else len(sequence.tokens)
            while sequence.table.wanted(tokens, sequence.computed) > self.pool.available:
                preempted = True
                if self._preempt_youngest() is sequence:
                    break
            else:
                sequence.table.grow(tokens, sequence.computed)
                if sequence.is_written:
                    chunks.append(Chunk(sequence, sequence.computed, 1))
        if not preempted:
            self._admit()
        served = {chunk.sequence for chunk in chunks}
        prompts = [one for one in self.running if one.pending and one not in served]
        spare = self._budget - len(chunks)
        chunks = self._with_guesses(chunks, spare // 2 if prompts else spare)
        spare = self._budget - sum(chunk.length for chunk in chunks)
        return chunks + self._prompt_chunks(prompts, spare)

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
        start = sequence.certain
        sequence.keep(right)
        sequence.guessed = 0
        sequence.computed = min(sequence.computed, len(sequence.tokens))
        sequence.table.shrink(len(sequence.tokens))
        self._account(sequence, start)

    def _account(self, sequence: Sequence, start: int) -> None:
        """What follows from tokens from `start` on being computed."""
        if not self._whole_prompts:
            self._publish(sequence, start)
        if self._reach is not None:
            # One token stays in any case: by what is before it a layer tells that a token is not the first.
            certain = min(sequence.computed, sequence.certain)
            sequence.table.drop_before(certain - max(self._reach, 1))

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
            # Each running text may soon want another block.
            if taken + len(self.running) > self.pool.available:
                return
            self.waiting.popleft()
            sequence.table.adopt(found)
            sequence.computed = len(found) * self.pool.block_size
            if sequence.cached is None:  # not where it gave way before
                sequence.cached = sequence.computed
            sequence.state = state
            sequence.table.grow(len(sequence.tokens), sequence.computed)
            insort(self.running, sequence, key=lambda one: one.order)

    def _cached_beginning(self, sequence: Sequence) -> tuple[list[int], Any | None]:
        """Known blocks that the sequence begins with, and the state after them; one token is always left to compute."""
        found: list[int] = []
        while sequence.reuses and (len(found) + 1) * self.pool.block_size < len(sequence.tokens):
            block = self.pool.find(sequence.block_hash(len(found)), sequence.block_tokens(len(found)))
            if block is None:
                break
            found.append(block)
        if not self._recurrent:
            return found, None
        while found:
            state = self.pool.state_after(found[-1])
            if state is not None:
                return found, state
            found.pop()
        return [], None

    def _prompt_chunks(self, prompts: Items[Sequence], budget: int) -> list[Chunk]:
        """Chunks of prompts, oldest first: each takes at most half of what is left, all of it if it is the last."""
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
            budget = max(0, budget - count)
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
        place = sum(other.order < sequence.order for other in self.waiting)
        self.waiting.insert(place, sequence)


def _strip(sequence: Sequence) -> None:
    """Take from a sequence all but its tokens, guesses too."""
    sequence.keep(0)
    sequence.table.release()
    sequence.computed, sequence.state = 0, None


def _to_boundary(start: int, count: int, block_size: int) -> int:
    """The same number of tokens or fewer, so that a chunk ends with a block if it reaches the end of one.

    The state there can then be kept for others that begin alike.
    """
    end = (start + count) // block_size * block_size
    return end - start if end > start else count
