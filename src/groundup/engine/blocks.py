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
from typing import Any

import xxhash

from groundup.engine.copies import Copy
from groundup.engine.window_blocks import WindowBlocks

# Tokens of a block, where nothing else asks for more.
BLOCK_TOKENS = 16


class BlockPool:
    """A fixed number of blocks.

    count: blocks that sequences can hold, 0 … count - 1. host: further ones after them, in the host's memory, which
    nobody holds: what is known moves there when its block is taken, the least recently used making room.
    snapshots: recurrent states that are kept beside known blocks, at most. block_size: tokens of a block.
    windows: None where all layers remember what stands in a block for as long.
    """

    def __init__(
        self,
        count: int,
        snapshots: int = 64,
        host: int = 0,
        block_size: int = BLOCK_TOKENS,
        windows: WindowBlocks | None = None,
    ) -> None:
        if count < 1:
            raise ValueError(f"a pool needs at least one block, not {count}")
        if host < 0:
            raise ValueError(f"a pool has no block on the host or more, not {host}")
        self.count, self.host, self.block_size = count, host, block_size
        self.windows = windows
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

    def hold(self, blocks: Sequence[int], seen: slice = slice(0)) -> list[int]:
        """Hold blocks that are known or that somebody else holds once more; those on the host come back for it.

        seen: places of those that are in sight from now on, where there are blocks of windows.
        Returns where they are now. Raises IndexError if there is no room for those that come back.
        """
        windows, in_sight = self.windows, set(blocks[seen])
        for block in blocks:
            if block < self.count:
                self._free.pop(block, None)
                self._references[block] += 1
                if windows is not None and block in in_sight:
                    windows.watch(block)
            else:
                del self._spare[block]  # so that nothing is written there before it is read
                if windows is not None and block not in in_sight:
                    windows.forget(block)
        near = self._bring_back(blocks)
        if windows is not None:
            for block in in_sight & near.keys():
                windows.watch(near[block])
        return [near.get(block, block) for block in blocks]

    def release(self, block: int) -> None:
        """Let go of a block; when the last holder does, it may be taken, sooner if nothing known stands in it."""
        if self._references[block] < 1:
            raise ValueError(f"block {block} is released more often than held")
        self._references[block] -= 1
        if self._references[block] == 0:
            self._free[block] = None
            self._free.move_to_end(block, last=block in self._content)
            if self.windows is not None and block not in self._content:
                self.windows.forget(block)

    def is_held(self, block: int) -> bool:
        """Whether anybody holds it; never one on the host."""
        return block < self.count and self._references[block] > 0

    def chained_hash(self, before: bytes, tokens: Sequence[int]) -> bytes:
        """The hash of a whole block's tokens and of all before them; `before` is the hash so far, b"" at first."""
        return xxhash.xxh3_128_digest(before + array("q", tokens).tobytes(), seed=self._seed)

    def publish(self, block: int, content: bytes, tokens: Sequence[int]) -> None:
        """Make a whole block known by its hash, for others to share; where another already is, that one stays.

        But for one on the host, since this one is nearer, and one of which less is remembered.
        """
        other = self._known.get(content)
        if other is not None:
            has_less = self.windows is not None and self.windows.has(block) > self.windows.has(other)
            if other < self.count and not has_less:
                return
            self._supersede(other)
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

    def _supersede(self, block: int) -> None:
        """Another is known in the place of this block, whose turn to be taken comes first."""
        del self._content[block]
        order = self._spare if block >= self.count else self._free
        if block in order:
            order.move_to_end(block, last=False)
            if self.windows is not None:
                self.windows.forget(block)

    def _bring_back(self, blocks: Sequence[int]) -> dict[int, int]:
        """Where those on the host are now, each held once."""
        far = [block for block in blocks if block >= self.count]
        near = {block: self.take() for block in far}
        for block in far:
            self._move(block, near[block])
            self._spare[block] = None
            self._spare.move_to_end(block, last=False)
        return near

    def _move(self, source: int, target: int) -> None:
        self._content[target] = self._content.pop(source)
        self._known[self._content[target][0]] = target
        self.copy(source, target)
        if self.windows is not None:
            self.windows.move(source, target)

    def _forget(self, block: int) -> None:
        if block in self._content:
            content, _ = self._content.pop(block)
            del self._known[content]
            self._states.pop(content, None)
            if self.windows is not None:
                self.windows.forget(block)


def blocks_for(tokens: int, block_size: int = BLOCK_TOKENS) -> int:
    """How many blocks so many tokens fill."""
    return -(-tokens // block_size)
