"""Held-out loss: text cut into consecutive windows, every token predicted once, from its window alone."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from groundup.model.language_model import LanguageModel
from groundup.tokens.batches import IGNORE, Rows, RowSource, TokenStream, rows_at


class HeldoutStream(TokenStream, Protocol):
    """A token stream that knows how many bytes of text it stands for."""

    @property
    def total_bytes(self) -> int: ...


@dataclass(frozen=True)
class HeldoutLoss:
    """nats: summed loss over `tokens` targets, end-of-text tokens included; bytes: UTF-8 bytes of their text."""

    nats: float
    tokens: int
    bytes: int

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes


@torch.no_grad()
def heldout_loss(
    model: LanguageModel, stream: HeldoutStream, context: int, bos_id: int, windows: int | None = None, rows: int = 16
) -> HeldoutLoss:
    """Loss over the whole stream, or over `windows` windows spread evenly over it.

    The bytes of a part of the stream are taken as its share of the tokens, which is exact for the whole.
    rows: windows per forward pass.
    """
    starts = np.arange(0, stream.total_tokens, context, dtype=np.int64)
    if windows is not None and windows < len(starts):
        starts = starts[np.linspace(0, len(starts) - 1, windows).astype(np.int64)]
    nats, tokens = 0.0, 0
    # The last window may be shorter; it goes alone so that the others stay rectangular.
    full = starts[starts + context <= stream.total_tokens]
    batches = [full[first : first + rows] for first in range(0, len(full), rows)]
    batches += [starts[len(full) :]] if len(full) < len(starts) else []
    for batch in batches:
        width = min(context, stream.total_tokens - int(batch[0]))
        targets = np.stack([stream.tokens(int(start), int(start) + width) for start in batch])
        packed = rows_at(batch, targets, stream.offsets, bos_id)
        nats += _summed_loss(model, packed)
        tokens += targets.size
    return HeldoutLoss(nats, tokens, max(1, round(stream.total_bytes * tokens / stream.total_tokens)))


@torch.no_grad()
def mean_target_loss(model: LanguageModel, source: RowSource, rows: int) -> float:
    """Mean loss in nats over the targets of the first `rows` rows of a source."""
    packed = source.rows(np.arange(min(rows, source.rows_per_epoch), dtype=np.int64))
    return _summed_loss(model, packed) / packed.target_count()


def _summed_loss(model: LanguageModel, rows: Rows) -> float:
    device = model.device
    input_ids, targets, positions, segments = (torch.from_numpy(array).to(device) for array in rows.arrays())
    logits = model.logits(model.hidden(input_ids, positions, segments))
    return float(F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum"))
