"""Blocks of a few tokens, in which keys and values lie: who holds which, what stands in them, which may be taken.

A block is a number here; the tensors behind it are in `paged.py`. Sequences that begin alike share blocks: whole blocks
are known by a hash of all tokens up to their end, and stay known after the last sequence has let go of them, until they
are needed for something else (the one least recently used first). What stood in one then moves to the host's memory,
where there is room for it, and comes back when a text that begins so needs it: one that had to give way, or a new one.
A block that two sequences share is never written to: the one that goes on writing takes a copy.

Sources: Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with PagedAttention"; chained
hashes as in vLLM's prefix cache.
"""

import secrets
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

# Tokens of a block, where nothing else asks for more.
BLOCK_TOKENS = 16


class Copy(NamedTuple):
    """What stands in one block is to be written into another before a step, after all copies that came earlier."""

    source: int
    target: int


class BlockPool:
    """A fixed number of blocks.

    count: blocks that sequences can hold, 0 … count - 1. host: further ones after them, in the host's memory, which
    nobody holds: what is known moves there when its block is taken, the least recently used making room.
    snapshots: recurrent states that are kept beside known blocks, at most. block_size: tokens of a block.
    """

    def __init__(self, count: int, snapshots: int = 64, host: int = 0, block_size: int = BLOCK_TOKENS) -> None:
        if count < 1:
            raise ValueError(f"a pool needs at least one block, not {count}")
        if host < 0:
            raise ValueError(f"a pool has no block on the host or more, not {host}")
        self.count, self.host, self.block_size = count, host, block_size
        self._snapshots = snapshots
        self._references = [0] * count
        # Those that nobody holds, in the order in which they are taken.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(count))
        # Blocks of the host in the order in which they are taken.
        self._spare: OrderedDict[int, None] = OrderedDict.fromkeys(range(count, count + host))
        self._known: dict[bytes, int] = {}
        self._content: dict[int, tuple[bytes, tuple[int, ...]]] = {}
        self._states: OrderedDict[bytes, Any] = OrderedDict()
        self._copies: list[Copy] = []
        # Nobody who does not know this can make up a text whose hash is that of another.
        self._seed = secrets.randbits(64)

    @property
    def tokens(self) -> int:
        """Tokens that sequences can hold together."""
        return self.count * self.block_size

    def blocks_for(self, tokens: int) -> int:
        """How many blocks so many tokens fill."""
        return blocks_for(tokens, self.block_size)

    @property
    def available(self) -> int:
        """Blocks that can be taken: nobody holds them, though they may be known."""
        return len(self._free)

    def is_shared(self, block: int) -> bool:
        """Whether more than one holds it, so that who writes to it needs a copy."""
        return self._references[block] > 1

    def take(self) -> int:
        """A block for new content, held once; what is known of it moves to the host or is forgotten.

        Raises IndexError if none is left.
        """
        if not self._free:
            raise IndexError(f"all {self.count} blocks are held")
        block, _ = self._free.popitem(last=False)
        if block in self._content and self._spare:
            spare, _ = self._spare.popitem(last=False)
            self._forget(spare)
            self._move(block, spare)
            self._spare[spare] = None
        self._forget(block)
        self._references[block] = 1
        return block

    def copy(self, source: int, target: int) -> None:
        """Have what stands in one block written into another before the next step."""
        self._copies.append(Copy(source, target))

    def take_copies(self) -> list[Copy]:
        """What is to be copied before the next step, in this order."""
        copies, self._copies = self._copies, []
        return copies

    def hold(self, blocks: Sequence[int]) -> list[int]:
        """Hold blocks that are known or that somebody else holds once more; those on the host come back for it.

        Returns where they are now. Raises IndexError if there is no room for those that come back.
        """
        for block in blocks:
            if block < self.count:
                self._free.pop(block, None)
                self._references[block] += 1
            else:
                del self._spare[block]  # so that nothing is written there before it is read
        return self._bring_back(blocks)

    def release(self, block: int) -> None:
        """Let go of a block; when the last holder does, it may be taken, sooner if nothing known stands in it."""
        if self._references[block] < 1:
            raise ValueError(f"block {block} is released more often than held")
        self._references[block] -= 1
        if self._references[block] == 0:
            self._free[block] = None
            self._free.move_to_end(block, last=block in self._content)

    def is_held(self, block: int) -> bool:
        """Whether anybody holds it; never one on the host."""
        return block < self.count and self._references[block] > 0

    def chained_hash(self, before: bytes, tokens: Sequence[int]) -> bytes:
        """The hash of a whole block's tokens and of all before them; `before` is the hash so far, b"" at first."""
        return xxhash.xxh3_128_digest(before + array("q", tokens).tobytes(), seed=self._seed)

    def publish(self, block: int, content: bytes, tokens: Sequence[int]) -> None:
        """Make a whole block known by its hash, for others to share; where another already is, that one stays.

        One on the host does not: this one is nearer.
        """
        other = self._known.get(content)
        if other is not None and other >= self.count:
            del self._content[other]
            self._spare.move_to_end(other, last=False)
        elif other is not None:
            return
        self._known[content] = block
        self._content[block] = content, tuple(tokens)

    def find(self, content: bytes, tokens: Sequence[int]) -> int | None:
        """The block with this hash and these tokens, or None."""
        block = self._known.get(content)
        return block if block is not None and self._content[block][1] == tuple(tokens) else None

    def remember(self, block: int, state: Any) -> None:
        """Keep the recurrent state after the last token of a known block; the least recently used one goes for it."""
        if block in self._content:
            content, _ = self._content[block]
            self._states[content] = state
            self._states.move_to_end(content)
            if len(self._states) > self._snapshots:
                self._states.popitem(last=False)

    def state_after(self, block: int) -> Any | None:
        """The recurrent state after the last token of a block, if it is remembered."""
        content, _ = self._content.get(block, (b"", ()))
        if content in self._states:
            self._states.move_to_end(content)
        return self._states.get(content)

    def _bring_back(self, blocks: Sequence[int]) -> list[int]:
        """The same blocks, with those on the host moved to others, each held once."""
        far = [block for block in blocks if block >= self.count]
        near = {block: self.take() for block in far}
        for block in far:
            self._move(block, near[block])
            self._spare[block] = None
            self._spare.move_to_end(block, last=False)
        return [near.get(block, block) for block in blocks]

    def _move(self, source: int, target: int) -> None:
        self._content[target] = self._content.pop(source)
        self._known[self._content[target][0]] = target
        self.copy(source, target)

    def _forget(self, block: int) -> None:
        if block in self._content:
            content, _ = self._content.pop(block)
            del self._known[content]
            self._states.pop(content, None)


class BlockTable:
    """The blocks of one sequence, in order; the first `dropped` have been given back, as nothing sees them any more."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self.blocks: list[int] = []
        self.dropped = 0
        self._numbers: npt.NDArray[np.int32] | None = None

    @property
    def room(self) -> int:
        """Tokens that fit, those in dropped blocks included."""
        return (self.dropped + len(self.blocks)) * self._pool.block_size

    @property
    def first_token(self) -> int:
        """Index of the first token that is still there."""
        return self.dropped * self._pool.block_size

    def numbers(self) -> npt.NDArray[np.int32]:
        """The blocks as an array, with zeros for those that were dropped; the same one until they change."""
        if self._numbers is None:
            self._numbers = np.array([0] * self.dropped + self.blocks, dtype=np.int32)
        return self._numbers

    def block_of(self, index: int) -> int:
        """The block that holds the tokens from index · block size on."""
        return self.blocks[index - self.dropped]

    def has_room(self, tokens: int, written: int) -> bool:
        """Whether `grow` has nothing to do."""
        if tokens > self.room:
            return False
        return not any(map(self._pool.is_shared, self.blocks[self._place_of(written) :]))

    def wanted(self, tokens: int, written: int) -> int:
        """Blocks that `grow` would take from the pool."""
        return max(0, self._pool.blocks_for(tokens) - self.dropped - len(self.blocks)) + len(self._shared_from(written))

    def grow(self, tokens: int, written: int) -> None:
        """Make room for `tokens` in all, `written` of which are there, in blocks that nobody else holds."""
        self._numbers = None
        for place in self._shared_from(written):
            old, self.blocks[place] = self.blocks[place], self._pool.take()
            if (self.dropped + place) * self._pool.block_size < written:
                self._pool.copy(old, self.blocks[place])
            self._pool.release(old)
        while self.room < tokens:
            self.blocks.append(self._pool.take())

    def adopt(self, blocks: Sequence[int]) -> None:
        """Begin with known blocks."""
        self.blocks, self._numbers = self._pool.hold(blocks), None

    def fork(self) -> "BlockTable":
        """Another table of the same blocks."""
        other = BlockTable(self._pool)
        other.adopt(self.blocks)
        other.dropped = self.dropped
        return other

    def drop_before(self, token: int) -> None:
        """Give back the blocks in which all tokens come before this one."""
        gone = min(token // self._pool.block_size - self.dropped, len(self.blocks))
        if gone > 0:
            self._release(self.blocks[:gone])
            self.blocks = self.blocks[gone:]
            self.dropped += gone
            self._numbers = None

    def shrink(self, tokens: int) -> None:
        """Give back the blocks behind those that `tokens` fill."""
        kept = self._pool.blocks_for(tokens) - self.dropped
        self._release(self.blocks[kept:])
        self.blocks, self._numbers = self.blocks[:kept], None

    def release(self) -> None:
        """Give everything back."""
        self._release(self.blocks)
        self.blocks, self.dropped, self._numbers = [], 0, None

    def _release(self, blocks: Sequence[int]) -> None:
        # The last ones are taken first: what comes later in a text is of less use to others.
        for block in reversed(blocks):
            self._pool.release(block)

    def _shared_from(self, written: int) -> list[int]:
        """Places of the blocks that are still to be written to, and held by others too."""
        places = range(self._place_of(written), len(self.blocks))
        return [place for place in places if self._pool.is_shared(self.blocks[place])]

    def _place_of(self, written: int) -> int:
        """Of the block that is written to next, where so many tokens are there."""
        return max(0, written // self._pool.block_size - self.dropped)


def blocks_for(tokens: int, block_size: int = BLOCK_TOKENS) -> int:
    """How many blocks so many tokens fill."""
    return -(-tokens // block_size)
