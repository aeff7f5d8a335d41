"""Training batches as a pure function of (seed, row number): there is no loader state to save, restore or reshard.

A run is a sequence of *rows* of `context` target tokens each, numbered from 0 over all epochs. A step trains on so many
successive rows; which rank or micro-batch takes which of them changes nothing about the rows. A row's place in the data
comes from a keyed permutation of the epoch, computed per row and never written down.

Every *segment* (a document, or its continuation after a row boundary) starts with `<|begin_of_text|>` as input, sees
nothing of its neighbours, and counts its positions from 0.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]

# Target value that carries no loss; PyTorch's own default.
IGNORE = -100


@dataclass(frozen=True)
class Source:
    """What an encoder reads beside its decoder's rows, each (rows, places): tokens, place in the segment, its number.

    Padding has segment -1; a segment has the number that it has in the decoder's row.
    """

    input_ids: Int64s
    positions: Int64s
    segments: Int32s

    def arrays(self) -> tuple[Int64s, Int64s, Int32s]:
        """Tokens, positions, segments."""
        return self.input_ids, self.positions, self.segments

    def part(self, rows: slice) -> "Source":
        """Some of the rows."""
        return Source(self.input_ids[rows], self.positions[rows], self.segments[rows])


@dataclass(frozen=True)
class Rows:
    """Packed rows, each array (rows, context): inputs, the token to guess at each, place in its segment, its number.

    To be guessed is the next token or, where tokens are masked, the one that stood there.
    source: what an encoder-decoder's encoder reads, or None.
    """

    input_ids: Int64s
    targets: Int64s
    positions: Int64s
    segments: Int32s
    source: Source | None = None

    def target_count(self) -> int:
        """Targets that carry loss."""
        return int((self.targets != IGNORE).sum())

    def arrays(self) -> tuple[Int64s, Int64s, Int64s, Int32s]:
        """Inputs, targets, positions, segments."""
        return self.input_ids, self.targets, self.positions, self.segments

    def split(self, most: int) -> Iterator["Rows"]:
        """The same rows in order, `most` at a time."""
        for first in range(0, len(self.input_ids), most):
            part = slice(first, first + most)
            source = None if self.source is None else self.source.part(part)
            yield Rows(self.input_ids[part], self.targets[part], self.positions[part], self.segments[part], source)


class RowSource(Protocol):
    """Anything that can produce row number n of an endless run."""

    def rows(self, numbers: Int64s) -> Rows:
        """Those of these numbers, which may pass the end of an epoch."""
        ...

    @property
    def rows_per_epoch(self) -> int: ...


class TokenStream(Protocol):
    """What packing needs of token shards: one long array of tokens and where each document starts."""

    @property
    def offsets(self) -> Int64s: ...

    @property
    def total_tokens(self) -> int: ...

    def tokens(self, start: int, stop: int) -> Int64s:
        """Tokens start … stop - 1 of all, across the ends of documents."""
        ...


def rank_rows(first: int, rows_per_step: int, rank: int, ranks: int) -> Int64s:
    """What one of `ranks` trains on in a step from row `first` on: together the same for any number of ranks."""
    numbers = np.arange(first, first + rows_per_step, dtype=np.int64)
    return numbers[rank::ranks]


def row_to_end_whole(row: int, left: int, rows_per_epoch: int) -> int:
    """The row to go on from so that the last of `left` more rows ends an epoch, or `row` where all lie in one epoch.

    What is read a second time while the learning rate falls is learned by heart, at the cost of what is new
    (docs/log.md). So what a run reads beyond whole epochs is read first.
    """
    if row % rows_per_epoch + left <= rows_per_epoch:
        return row
    return row + -(row + left) % rows_per_epoch


class PackedDocuments:
    """Rows cut from token shards for pre-training.

    The stream of all documents is cut every `context` tokens; the first cut shifts from epoch to epoch, so that a token
    seen twice is seen with another past. Rows are visited in the order of the epoch's keyed permutation.
    """

    def __init__(self, stream: TokenStream, context: int, bos_id: int, seed: int) -> None:
        self.stream, self.context, self.bos_id, self.seed = stream, context, bos_id, seed
        # One row less than fits, so that every epoch's shift leaves the same number of rows.
        self._rows_per_epoch = max(1, stream.total_tokens // context - 1)
        if stream.total_tokens < 2 * context:
            raise ValueError(
                f"the training text has {stream.total_tokens:,} tokens, fewer than two rows of `context` {context}"
            )

    @property
    def rows_per_epoch(self) -> int:
        return self._rows_per_epoch

    def row_start(self, number: int) -> int:
        """Where in the stream the targets of row `number` begin."""
        epoch, index = divmod(int(number), self._rows_per_epoch)
        shift = keyed_integer(self.seed, f"shift {epoch}") % self.context
        return shift + self.context * permute(index, self._rows_per_epoch, keyed_integer(self.seed, f"order {epoch}"))

    def rows(self, numbers: Int64s) -> Rows:
        """Rows (len(numbers), context) by number from 0 on, for any number of epochs."""
        starts = np.array([self.row_start(number) for number in numbers], dtype=np.int64)
        targets = np.stack([self.stream.tokens(start, start + self.context) for start in starts.tolist()])
        return rows_at(starts, targets, self.stream.offsets, self.bos_id)


def rows_at(starts: Int64s, targets: Int64s, offsets: Int64s, bos_id: int) -> Rows:
    """Rows whose targets (rows, context) stand at `starts` of a stream with documents at `offsets`."""
    context = targets.shape[1]
    places = starts[:, None] + np.arange(context, dtype=np.int64)
    documents = np.searchsorted(offsets, places, side="right") - 1
    # A segment starts with its document or, for one that began in an earlier row, with the row.
    segment_starts = np.maximum(offsets[documents], starts[:, None])
    inputs = np.concatenate([np.full((len(starts), 1), bos_id, dtype=np.int64), targets[:, :-1]], axis=1)
    inputs[places == segment_starts] = bos_id
    segments = (documents - documents[:, :1]).astype(np.int32)
    return Rows(inputs, targets, places - segment_starts, segments)


def keyed_integer(seed: int, label: str) -> int:
    """A 63-bit integer that depends on seed and label alone, on every machine."""
    digest = hashlib.blake2b(f"{seed}/{label}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def permute(index: int, size: int, key: int) -> int:
    """Where `index` goes in a pseudo-random permutation of range(size), in constant memory.

    A four-round Feistel network over the next even number of bits, walked until the value falls inside (Black and
    Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    half = max(1, -(-(size - 1).bit_length() // 2))
    mask = (1 << half) - 1
    value = index
    while True:
        left, right = value >> half, value & mask
        for turn in range(4):
            left, right = right, left ^ (_mix(right + (turn << 32) ^ key) & mask)
        value = left << half | right
        if value < size:
            return value


def _mix(value: int) -> int:
    """SplitMix64's finaliser (Steele et al. 2014)."""
    value &= 0xFFFFFFFFFFFFFFFF
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)
