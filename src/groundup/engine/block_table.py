"""The blocks of one text, in order.

Where the layers that see a window have blocks of their own (`window_blocks.py`), a text has those places in sight in
which one of its next tokens may look at anything: they are opened as tokens are about to be computed in them, and
closed when the window has left them behind.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from groundup.engine.blocks import BlockPool


class BlockTable:
    """The blocks of one sequence, in order; the first `dropped` have been given back, as nothing sees them any more.

    closed, opened: with blocks of windows, those from `closed` to before `opened` are in sight.
    """

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self.blocks: list[int] = []
        self.dropped = 0
        self.closed = self.opened = 0
        self._numbers: npt.NDArray[np.int32] | None = None
        self._window_numbers: npt.NDArray[np.int32] | None = None

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

    def window_numbers(self) -> npt.NDArray[np.int32]:
        """The blocks of windows likewise; those out of sight may be anybody's by now. They are to be there."""
        if self._window_numbers is None:
            assert self._pool.windows is not None
            self._window_numbers = self._pool.windows.numbers[self.numbers()]
        return self._window_numbers

    def window_block_of(self, index: int) -> int:
        """Of windows, the block that holds the tokens from index · block size on."""
        return int(self.window_numbers()[index])

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
        self._changed()
        for place in self._shared_from(written):
            old, self.blocks[place] = self.blocks[place], self._pool.take()
            is_written = (self.dropped + place) * self._pool.block_size < written
            if is_written:
                self._pool.copy(old, self.blocks[place])
            if self.closed <= place < self.opened:
                self._see_instead(old, self.blocks[place], is_written)
            self._pool.release(old)
        while self.room < tokens:
            self.blocks.append(self._pool.take())

    def adopt(self, blocks: Sequence[int]) -> None:
        """Begin with known blocks."""
        windows = self._pool.windows
        in_sight = 0 if windows is None else windows.in_sight
        self._hold(blocks, slice(max(0, len(blocks) - in_sight), len(blocks)))

    def fork(self) -> "BlockTable":
        """Another table of the same blocks."""
        other = BlockTable(self._pool)
        other._hold(self.blocks, slice(self.closed, self.opened))
        other.dropped = self.dropped
        return other

    def open(self, tokens: int) -> None:
        """With blocks of windows: the places of so many tokens in all are in sight from now on."""
        windows, until = self._pool.windows, self._pool.blocks_for(tokens)
        if windows is not None and until > self.opened:
            for block in self.blocks[self.opened : until]:
                windows.watch(block)
            self.opened = until
            self._window_numbers = None

    def close_behind(self, tokens: int) -> None:
        """With blocks of windows: so many tokens are there for good, and the next looks at no more than a window."""
        windows = self._pool.windows
        until = 0 if windows is None else (tokens - windows.window) // self._pool.block_size
        if windows is not None and until > self.closed:
            for block in self.blocks[self.closed : until]:
                windows.unwatch(block)
            self.closed = until

    def drop_before(self, token: int) -> None:
        """Give back the blocks in which all tokens come before this one."""
        gone = min(token // self._pool.block_size - self.dropped, len(self.blocks))
        if gone > 0:
            self._release(self.blocks[:gone])
            self.blocks = self.blocks[gone:]
            self.dropped += gone
            self._changed()

    def shrink(self, tokens: int) -> None:
        """Give back the blocks behind those that `tokens` fill."""
        kept = self._pool.blocks_for(tokens) - self.dropped
        self._give_up_sight(kept)
        self._release(self.blocks[kept:])
        self.blocks = self.blocks[:kept]
        self._changed()

    def release(self) -> None:
        """Give everything back."""
        self._give_up_sight(self.closed)
        self._release(self.blocks)
        self.blocks, self.dropped, self.closed, self.opened = [], 0, 0, 0
        self._changed()

    def _hold(self, blocks: Sequence[int], seen: slice) -> None:
        self.blocks = self._pool.hold(blocks, seen)
        if self._pool.windows is not None:
            self.closed, self.opened = seen.start, seen.stop
        self._changed()

    def _changed(self) -> None:
        self._numbers = self._window_numbers = None

    def _release(self, blocks: Sequence[int]) -> None:
        # The last ones are taken first: what comes later in a text is of less use to others.
        for block in reversed(blocks):
            self._pool.release(block)

    def _give_up_sight(self, place: int) -> None:
        """Of the blocks from there on."""
        if self._pool.windows is not None:
            for block in reversed(self.blocks[place : self.opened]):
                self._pool.windows.unwatch(block)
            self.opened = min(self.opened, place)

    def _see_instead(self, old: int, new: int, is_written: bool) -> None:
        """Have another block of windows in sight at a place where something may have been written."""
        windows = self._pool.windows
        assert windows is not None
        windows.watch(new)
        if is_written:
            windows.copy(old, new)
        windows.unwatch(old)

    def _shared_from(self, written: int) -> list[int]:
        """Places of the blocks that are still to be written to, and held by others too."""
        places = range(self._place_of(written), len(self.blocks))
        return [place for place in places if self._pool.is_shared(self.blocks[place])]

    def _place_of(self, written: int) -> int:
        """Of the block that is written to next, where so many tokens are there."""
        return max(0, written // self._pool.block_size - self.dropped)
