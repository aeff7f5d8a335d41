"""Blocks for the layers that see a window only, in models whose other layers see everything.

To them a block of the pool is a place in texts. What they remember of it lies in a block of their own, of which there
are fewer: a place gets one when tokens are about to be computed there, and keeps it while some text has it in sight.
From then on it may be taken for another place, the one least recently in sight first. A text can begin with known
blocks if those that it has in sight still have theirs.

Every block on the host has one there.
"""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from groundup.engine.copies import Copy


class WindowBlocks:
    """A fixed number of them.

    count: 0 … count - 1, and behind them those of the host. blocks: of the pool, without the host's.
    window: tokens that are in sight of the next one, at most. in_sight: whole blocks that they fill, at most.
    numbers: int32, those of the pool's blocks; of a block that has none, any.
    """

    def __init__(self, count: int, blocks: int, window: int, block_size: int) -> None:
        if not 1 <= count <= blocks:
            raise ValueError(f"for {blocks} blocks there are 1 to {blocks} of windows, not {count}")
        self.count, self.window, self.in_sight = count, window, -(-window // block_size)
        self.numbers = np.zeros(blocks, dtype=np.int32)
        self._blocks = blocks
        self._own: dict[int, int] = {}
        self._watchers = [0] * blocks
        # Those that are out of sight and whose they are, in the order in which they are taken.
        self._free: OrderedDict[int, int | None] = OrderedDict.fromkeys(range(count))
        self._copies: list[Copy] = []

    @property
    def available(self) -> int:
        """Those that no text has in sight."""
        return len(self._free)

    def has(self, block: int) -> bool:
        """Whether what these layers remember of a block of the pool is there."""
        return block in self._own

    def usable(self, blocks: Sequence[int]) -> list[int]:
        """With how many of these blocks a text can begin: all that are in sight behind them are there. Rising."""
        lengths, there = [], 0
        for length, block in enumerate(blocks, start=1):
            there = there + 1 if self.has(block) else 0
            if there >= min(length, self.in_sight):
                lengths.append(length)
        return lengths

    def watch(self, block: int) -> None:
        """One text more has a block in sight. Raises IndexError if it needs one and none is left."""
        if block not in self._own:
            self._give(block)
        self._free.pop(self._own[block], None)
        self._watchers[block] += 1

    def unwatch(self, block: int) -> None:
        """One text less has it in sight."""
        if self._watchers[block] < 1:
            raise ValueError(f"no text has block {block} in sight")
        self._watchers[block] -= 1
        if self._watchers[block] == 0:
            self._free[self._own[block]] = block

    def forget(self, block: int) -> None:
        """What stood in a block that no text has in sight is of no use any more."""
        own = self._own.pop(block, self.count)
        if own < self.count:
            self._free[own] = None
            self._free.move_to_end(own, last=False)

    def copy(self, source: int, target: int) -> None:
        """Have what is remembered of one block of the pool written into another's; both have one."""
        self._copies.append(Copy(self._own[source], self._own[target]))

    def move(self, source: int, target: int) -> None:
        """What stood in one block of the pool stands in another, which no text has in sight; one of them is the host's.

        Raises IndexError if there is none for the other.
        """
        if source not in self._own:
            return
        if target < self._blocks:
            self._give(target)
            self._free[self._own[target]] = target
        else:
            self._own[target] = self.count + target - self._blocks
        self.copy(source, target)
        self.forget(source)

    def take_copies(self) -> list[Copy]:
        """What is to be copied before the next step, in this order."""
        copies, self._copies = self._copies, []
        return copies

    def _give(self, block: int) -> None:
        if not self._free:
            raise IndexError(f"all {self.count} blocks of windows are in sight")
        own, owner = self._free.popitem(last=False)
        if owner is not None:
            del self._own[owner]
        self._own[block] = own
        self.numbers[block] = own
