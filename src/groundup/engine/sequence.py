"""What the engine computes: sequences of tokens, and the chunks of them that make up a step.

There is one notion for everything: a sequence has tokens, and some of them have been computed. A prompt that has just
come, one whose beginning was found in the cache, a running text with its newest token, and a text that lost its blocks
and is computed anew differ only in how many are left. Which of them come next is up to `scheduler.py`.
"""

from collections.abc import Sequence as Items
from typing import Any, NamedTuple

from groundup.engine.block_table import BlockTable
from groundup.engine.blocks import BlockPool
from groundup.engine.copies import Copy
from groundup.engine.source import Source
from groundup.model.lora import Adapter


class Sequence:
    """A text that is computed.

    tokens: prompt and answer so far, and guesses; whoever owns the sequence appends to it.
    guessed: how many of the last tokens are guesses.
    computed: how many of them have their keys, values and states.
    cached: how many were found in the cache when it was first admitted, None before.
    state: of recurrent layers after these; the scheduler only hands it on.
    reuses: whether its beginning may come from the cache; not where the logits of all its tokens are wanted.
    order: sequences are served in this order: turn, arrival, fork.
    adapter: that it is computed with, if any; those with different ones share nothing.
    source: that it is written for, if the model has an encoder; those for different ones share nothing.
    """

    def __init__(
        self,
        tokens: Items[int],
        pool: BlockPool,
        order: tuple[int, int, int],
        reuses: bool = True,
        adapter: Adapter | None = None,
        source: Source | None = None,
    ) -> None:
        self.tokens = list(tokens)
        self.guessed = 0
        self.computed = 0
        self.cached: int | None = None
        self.state: Any | None = None
        self.reuses = reuses
        self.order = order
        self.adapter, self.source = adapter, source
        self.table = BlockTable(pool)
        self._pool = pool
        self._hashes: list[bytes] = []

    @property
    def pending(self) -> int:
        """Tokens that are still to be computed, guesses among them."""
        return len(self.tokens) - self.computed

    @property
    def certain(self) -> int:
        """Tokens that are no guesses."""
        return len(self.tokens) - self.guessed

    @property
    def unread(self) -> int:
        """Places of the source that the encoder has to read before anything else is computed."""
        return 0 if self.source is None or self.source.is_read else self.source.length

    @property
    def is_written(self) -> bool:
        """Whether one token more is all that has to be computed before the next can be chosen, or guessed."""
        length, computed = len(self.tokens), self.computed
        return length - self.guessed - 1 <= computed < length and (self.source is None or not self.unread)

    @property
    def guesses(self) -> list[int]:
        """The last tokens, which nobody has chosen yet."""
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
        """The tokens of its block number `index`; fewer than a block holds where it is the last."""
        size = self._pool.block_size
        return self.tokens[index * size : (index + 1) * size]

    def block_hash(self, index: int) -> bytes:
        """The hash of a whole block and all before it, adapter and source included."""
        while len(self._hashes) <= index:
            root = b"".join(one.key for one in (self.adapter, self.source) if one is not None)
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

    @property
    def seen(self) -> int:
        """What its last token may see: the sequence up to itself, and all of its source."""
        source = self.sequence.source
        return self.start + self.length + (0 if source is None else source.length)


class Step(NamedTuple):
    """copies: of blocks, one after the other before anything is computed.

    window_copies: of the blocks of windows, likewise.
    """

    chunks: list[Chunk]
    copies: list[Copy]
    window_copies: Items[Copy] = ()
