"""Fine-tuning rows: whole conversations packed side by side, loss on the trained tokens only.

Conversations never see each other (each is a segment of its own), so which of them share a row changes nothing but the
amount of padding; they are packed once, tightly, and the rows are visited in each epoch's keyed order.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from groundup.tokens.batches import IGNORE, Int64s, Rows, keyed_integer, permute


class TokenisedConversation(NamedTuple):
    """Tokens of one rendered conversation, and which of them carry loss."""

    ids: list[int]
    trained: list[bool]


class PackedConversations:
    """Rows of `context` positions, each holding one or more whole conversations.

    Raises ValueError if there is nothing to train on or a conversation does not fit into a row.
    """

    def __init__(self, conversations: Sequence[TokenisedConversation], context: int, pad_id: int, seed: int) -> None:
        if not conversations:
            raise ValueError("there are no conversations to train on")
        self.conversations, self.context, self.pad_id, self.seed = conversations, context, pad_id, seed
        # The last token of a conversation is only ever a target.
        self.packing = pack([len(conversation.ids) - 1 for conversation in conversations], context)

    @property
    def rows_per_epoch(self) -> int:
        return len(self.packing)

    @property
    def trained_tokens(self) -> int:
        """Targets that carry loss, in one epoch."""
        return sum(sum(conversation.trained[1:]) for conversation in self.conversations)

    def rows(self, numbers: Int64s) -> Rows:
        """(len(numbers), context) by number, in another order in each epoch; padding has segment -1 and no loss."""
        shape = (len(numbers), self.context)
        rows = Rows(
            np.full(shape, self.pad_id, dtype=np.int64),
            np.full(shape, IGNORE, dtype=np.int64),
            np.zeros(shape, dtype=np.int64),
            np.full(shape, -1, dtype=np.int32),
        )
        for row, number in enumerate(numbers):
            epoch, index = divmod(int(number), self.rows_per_epoch)
            place = permute(index, self.rows_per_epoch, keyed_integer(self.seed, f"order {epoch}"))
            self._fill(rows, row, self.packing[place])
        return rows

    def _fill(self, rows: Rows, row: int, chosen: Sequence[int]) -> None:
        """Lay the chosen conversations side by side into one row."""
        start = 0
        for segment, index in enumerate(chosen):
            ids, trained = self.conversations[index]
            stop = start + len(ids) - 1
            rows.input_ids[row, start:stop] = ids[:-1]
            rows.targets[row, start:stop] = np.where(trained[1:], ids[1:], IGNORE)
            rows.positions[row, start:stop] = np.arange(stop - start)
            rows.segments[row, start:stop] = segment
            start = stop


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Indices of `lengths` in bins of `room`: best fit, longest first (Johnson 1973: at most 11/9 of the optimum + 4).

    Raises ValueError for a length that no bin can hold.
    """
    bins: list[list[int]] = []
    # (room left, bin), sorted, so that the tightest bin that still fits is found by bisection.
    open_bins: list[tuple[int, int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if lengths[index] > room:
            raise ValueError(f"a conversation of {lengths[index] + 1} tokens does not fit into {room} positions")
        found = bisect_left(open_bins, (lengths[index], -1))
        if found == len(open_bins):
            left, number = room, len(bins)
            bins.append([])
        else:
            left, number = open_bins.pop(found)
        bins[number].append(index)
        insort(open_bins, (left - lengths[index], number))
    return bins
