"""Rows with parts of their text hidden, for models that learn to guess them: masked tokens (BERT), spans (T5).

What is hidden in a row is a pure function of (seed, row number, place), as the row itself is; in another epoch other
parts of the same text are hidden. The chance behind it is the raw output of Philox (Salmon et al. 2011), equal on every
machine.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from groundup.tokens.batches import IGNORE, Int64s, Rows, RowSource, Source, keyed_integer

UInt64s = npt.NDArray[np.uint64]

# Rows of the next token and their numbers → rows of what is hidden.
Corruption = Callable[[Rows, Int64s], Rows]

# Of the masked tokens so many become the mask, so many a random one; the rest stand as they are (Devlin et al. 2019).
MASK_SHARE, RANDOM_SHARE = 0.8, 0.1
# Share of a text that is hidden in spans, and their mean length (Raffel et al. 2020, section 3.1.4).
SPAN_DENSITY, SPAN_LENGTH = 0.15, 3.0


class CorruptedRows:
    """The rows of `source` with parts hidden."""

    def __init__(self, source: RowSource, corruption: Corruption) -> None:
        self.source, self.corruption = source, corruption

    @property
    def rows_per_epoch(self) -> int:
        return self.source.rows_per_epoch

    def rows(self, numbers: Int64s) -> Rows:
        """What is hidden of a row depends on its number and the seed alone."""
        return self.corruption(self.source.rows(numbers), numbers)


@dataclass(frozen=True)
class MaskedTokens:
    """Masked language modelling (Devlin et al. 2019, section 3.1): inputs are guessed where they are hidden.

    In each row the share `fraction` of the inputs is chosen, at least one and never a `bos_id`.
    text_ids: what random tokens are drawn from.
    """

    fraction: float
    mask_id: int
    bos_id: int
    text_ids: Int64s
    seed: int

    def __call__(self, rows: Rows, numbers: Int64s) -> Rows:
        inputs, targets = rows.input_ids.copy(), np.full_like(rows.targets, IGNORE)
        for row, number in enumerate(numbers.tolist()):
            place_chance, kind_chance, token_chance = _chance(self.seed, f"mask {number}", 3, inputs.shape[1])
            open_places = np.flatnonzero(inputs[row] != self.bos_id)
            count = max(1, round(self.fraction * len(open_places)))
            chosen = open_places[np.argsort(place_chance[open_places], kind="stable")[:count]]
            targets[row, chosen] = inputs[row, chosen]
            kind = kind_chance[chosen] / 2.0**64
            inputs[row, chosen[kind < MASK_SHARE]] = self.mask_id
            replaced = chosen[(kind >= MASK_SHARE) & (kind < MASK_SHARE + RANDOM_SHARE)]
            inputs[row, replaced] = self.text_ids[token_chance[replaced] % len(self.text_ids)]
        return Rows(inputs, targets, rows.positions, rows.segments)


@dataclass(frozen=True)
class CorruptedSpans:
    """Span corruption (Raffel et al. 2020, section 3.1.4): the encoder reads a sentinel in place of each hidden span.

    The decoder has to write each sentinel and the span behind it, then `eos_id`. Every segment of a row is a text of
    its own, with sentinels counted anew; one of a single token is left whole and has no targets, and so have those, if
    any, whose targets do not fit into a row any more.
    """

    sentinel_ids: tuple[int, ...]
    bos_id: int
    eos_id: int
    pad_id: int
    seed: int

    def __call__(self, rows: Rows, numbers: Int64s) -> Rows:
        count, context = rows.targets.shape
        hidden = _empty(count, context, target_width(context, len(self.sentinel_ids)), self.pad_id)
        for row, number in enumerate(numbers.tolist()):
            chance = _chance(self.seed, f"spans {number}", 2, context)
            self._fill(hidden, row, rows.targets[row], rows.segments[row], chance)
        return hidden

    def _fill(self, out: Rows, row: int, text: Int64s, segments: npt.NDArray[np.int32], chance: UInt64s) -> None:
        """Lay the segments of a row's text side by side into what encoder and decoder get."""
        assert out.source is not None
        read = written = 0
        for segment in np.unique(segments):
            places = np.flatnonzero(segments == segment)
            # An end of text is seen by the encoder and never hidden: it is how the decoder's own text ends.
            body = places[:-1] if text[places[-1]] == self.eos_id else places
            source, target = hide_spans(text[body], self.sentinel_ids, chance[:, body])
            if written + len(target) + 1 > out.targets.shape[1]:
                source, target = text[body].tolist(), []
            source += text[places[len(body) :]].tolist()
            _lay(out.source.input_ids, out.source.positions, out.source.segments, row, read, source, segment)
            read += len(source)
            if target:
                out.targets[row, written : written + len(target) + 1] = [*target, self.eos_id]
                _lay(out.input_ids, out.positions, out.segments, row, written, [self.bos_id, *target], segment)
                written += len(target) + 1


def hide_spans(text: Int64s, sentinel_ids: tuple[int, ...], chance: UInt64s) -> tuple[list[int], list[int]]:
    """The text with a sentinel for each hidden span, and the spans, each behind its sentinel.

    Kept and hidden stretches alternate, a kept one first; each way to cut them is equally likely (as in T5's code). Of
    a text of less than two tokens nothing is hidden. chance: (2, tokens of the text).
    """
    if len(text) < 2:
        return text.tolist(), []
    hidden, spans = _sizes(len(text), len(sentinel_ids))
    kept_lengths = _cut(len(text) - hidden, spans, chance[0])
    hidden_lengths = _cut(hidden, spans, chance[1])
    source: list[int] = []
    target: list[int] = []
    start = 0
    for sentinel, kept, gone in zip(sentinel_ids, kept_lengths, hidden_lengths, strict=False):
        source += [*text[start : start + kept].tolist(), sentinel]
        target += [sentinel, *text[start + kept : start + kept + gone].tolist()]
        start += kept + gone
    return source, target


def target_width(context: int, sentinels: int) -> int:
    """Places of the decoder for a row of `context` tokens: what one text of them needs, and something for several."""
    hidden, spans = _sizes(context, sentinels)
    return hidden + spans + 1 + max(4, context // 32)


def _sizes(length: int, sentinels: int) -> tuple[int, int]:
    """How many tokens of a text are hidden, in how many spans."""
    hidden = min(max(1, round(length * SPAN_DENSITY)), length - 1)
    return hidden, min(max(1, round(hidden / SPAN_LENGTH)), length - hidden, sentinels)


def _cut(items: int, parts: int, chance: UInt64s) -> list[int]:
    """Lengths, of at least 1, of `parts` parts of `items` items."""
    cuts = np.sort(np.argsort(chance[: items - 1], kind="stable")[: parts - 1]) + 1
    lengths: list[int] = np.diff(cuts, prepend=0, append=items).tolist()
    return lengths


def _empty(rows: int, context: int, width: int, pad_id: int) -> Rows:
    def full(places: int, value: int) -> Int64s:
        return np.full((rows, places), value, dtype=np.int64)

    def apart(places: int) -> npt.NDArray[np.int32]:
        return np.full((rows, places), -1, dtype=np.int32)

    source = Source(full(context, pad_id), full(context, 0), apart(context))
    return Rows(full(width, pad_id), full(width, IGNORE), full(width, 0), apart(width), source)


def _lay(
    ids: Int64s,
    positions: Int64s,
    segments: npt.NDArray[np.int32],
    row: int,
    start: int,
    tokens: list[int],
    segment: np.int32,
) -> None:
    """Put a text of its own into a row from place `start` on."""
    part = slice(start, start + len(tokens))
    ids[row, part], positions[row, part], segments[row, part] = tokens, np.arange(len(tokens)), segment


def _chance(seed: int, label: str, *shape: int) -> UInt64s:
    """Even 64-bit numbers that depend on seed and label alone."""
    raw: UInt64s = np.random.Philox(key=keyed_integer(seed, label)).random_raw(math.prod(shape))
    return raw.reshape(shape)
