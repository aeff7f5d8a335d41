"""Blocks that are to be copied before a step, and which of them can be at once."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Copy(NamedTuple):
    """What stands in one block is to be written into another before a step, after all copies that came earlier."""

    source: int
    target: int


def at_once(copies: Sequence[Copy], blocks: int) -> Iterator[list[Copy]]:
    """The same copies in groups of which none needs or replaces what another has written.

    blocks: how many lie in the first memory; those of a group all lead from one memory to one.
    """

    def ways(copy: Copy) -> tuple[bool, bool]:
        return copy.source >= blocks, copy.target >= blocks

    group: list[Copy] = []
    written: set[int] = set()
    for copy in copies:
        if group and (ways(copy) != ways(group[0]) or not written.isdisjoint(copy)):
            yield group
            group, written = [], set()
        group.append(copy)
        written.add(copy.target)
    if group:
        yield group
