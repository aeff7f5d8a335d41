"""Which documents are held out for evaluation, by a keyed hash of their group."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from groundup.errors import UserError

# Another key gives another split; it is part of what a corpus is, so it is no setting.
_KEY = 20260101


def choose_heldout(groups: Sequence[str], sizes: Sequence[int], fraction: float) -> npt.NDArray[np.bool_]:
    """Which documents are held out: whole groups, in the order of a keyed hash of their names, up to `fraction`.

    A group that would overshoot stays in train, and so does one larger than half the share: evaluation should not hang
    on a single module.
    Where all documents are of one group (the parts of one book), each document counts as its own.
    groups, sizes: of each document; sizes in bytes. At least one group is held out.
    Raises UserError if there is only one document.
    """
    if len(groups) < 2:
        raise UserError("only one document is left, so none can be held out to measure on; give at least two")
    if len(set(groups)) == 1:
        groups = [f"{group}#{index}" for index, group in enumerate(groups)]
    group_sizes: dict[str, int] = {}
    for group, size in zip(groups, sizes, strict=True):
        group_sizes[group] = group_sizes.get(group, 0) + size
    target = fraction * sum(sizes)
    chosen: set[str] = set()
    taken = 0
    for group in sorted(group_sizes, key=_order):
        if group_sizes[group] <= target / 2 and taken + group_sizes[group] <= target:
            chosen.add(group)
            taken += group_sizes[group]
    if not chosen:
        chosen.add(min(group_sizes, key=lambda group: (group_sizes[group], _order(group))))
    return np.array([group in chosen for group in groups], np.bool_)


def _order(group: str) -> tuple[int, str]:
    return xxhash.xxh3_64_intdigest(group.encode("utf-8", "surrogatepass"), seed=_KEY), group
