"""Held-out loss: text cut into consecutive windows, each scored once, from itself alone."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from groundup.model.parts import widen
from groundup.tokens.batches import IGNORE, Int64s, Rows, RowSource, TokenStream, rows_at
from groundup.tokens.corruption import Corruption
from groundup.train.learner import TextModel, final_hidden, text_part

# Windows per forward pass, and tokens whose logits are held at a time. What so few need stays in the processor's cache;
# the logits of 16 windows are hundreds of megabytes, and took half of the time (docs/log.md).
ROWS, HEAD_TOKENS = 4, 512


class HeldoutStream(TokenStream, Protocol):
    """A token stream that knows how many bytes of text it stands for."""

    @property
    def total_bytes(self) -> int: ...


@dataclass(frozen=True)
class HeldoutLoss:
    """nats: summed loss over `tokens` targets, end-of-text tokens included; bytes: UTF-8 bytes of their text.

    bytes: None where not every token of the text is a target: it then has no loss per byte.
    unigram_nats: what the same targets would cost a model that knows how often each occurs among them and no more.
    """

    nats: float
    tokens: int
    bytes: int | None
    unigram_nats: float

    @property
    def bits_per_byte(self) -> float:
        if self.bytes is None:
            raise ValueError("a loss of hidden tokens has no bits per byte: the others were not guessed")
        return self.nats / math.log(2) / self.bytes

    @property
    def per_target(self) -> float:
        """Nats."""
        return self.nats / self.tokens

    @property
    def unigram_entropy(self) -> float:
        """Nats per target."""
        return self.unigram_nats / self.tokens


@torch.no_grad()
def heldout_loss(
    model: TextModel,
    stream: HeldoutStream,
    context: int,
    bos_id: int,
    windows: int | None = None,
    rows: int = ROWS,
    corruption: Corruption | None = None,
    advance: Callable[[float], None] = lambda windows: None,
) -> HeldoutLoss:
    """Loss over the whole stream, or over `windows` windows spread evenly over it.

    Without `corruption` every token is guessed once, from those before it in its window. With it, what it hides of each
    window is guessed; it depends on the window's number alone, so that it is the same each time.
    The bytes of a part of the stream are taken as its share of the tokens, which is exact for the whole.
    rows: windows per forward pass. advance: called after each of these with the number of its windows.
    """
    nats, tokens = 0.0, 0
    counts = np.zeros(text_part(model).config.vocab_size, dtype=np.int64)
    for packed in heldout_rows(stream, context, bos_id, windows, rows, corruption):
        nats += _summed_loss(model, packed)
        tokens += packed.target_count()
        advance(len(packed.input_ids))
        counts += np.bincount(packed.targets[packed.targets != IGNORE], minlength=len(counts))
    text_bytes = None if corruption is not None else max(1, round(stream.total_bytes * tokens / stream.total_tokens))
    return HeldoutLoss(nats, tokens, text_bytes, _unigram_nats(counts))


def heldout_rows(
    stream: HeldoutStream,
    context: int,
    bos_id: int,
    windows: int | None = None,
    rows: int = ROWS,
    corruption: Corruption | None = None,
) -> Iterator[Rows]:
    """The windows that `heldout_loss` scores, in batches of at most `rows`."""
    starts = np.arange(0, stream.total_tokens, context, dtype=np.int64)
    if windows is not None and windows < len(starts):
        starts = starts[np.linspace(0, len(starts) - 1, windows).astype(np.int64)]
    # The last window may be shorter; it goes alone so that the others stay rectangular.
    full = starts[starts + context <= stream.total_tokens]
    batches = [full[first : first + rows] for first in range(0, len(full), rows)]
    batches += [starts[len(full) :]] if len(full) < len(starts) else []
    for batch in batches:
        width = min(context, stream.total_tokens - int(batch[0]))
        targets = np.stack([stream.tokens(int(start), int(start) + width) for start in batch])
        packed = rows_at(batch, targets, stream.offsets, bos_id)
        yield packed if corruption is None else corruption(packed, batch // context)


@torch.no_grad()
def mean_target_loss(model: TextModel, source: RowSource, rows: int) -> float:
    """Mean loss in nats over the targets of the first `rows` rows of a source."""
    packed = source.rows(np.arange(min(rows, source.rows_per_epoch), dtype=np.int64))
    return _summed_loss(model, packed) / packed.target_count()


def _summed_loss(model: TextModel, rows: Rows) -> float:
    text = text_part(model)
    hidden_nd = final_hidden(model, rows).flatten(0, 1)
    targets_n = torch.from_numpy(rows.targets).to(model.device).flatten()
    nats = 0.0
    for hidden_cd, targets_c in zip(hidden_nd.split(HEAD_TOKENS), targets_n.split(HEAD_TOKENS), strict=True):
        logits_cv = widen(text.logits(hidden_cd[None])[0])
        nats += float(F.cross_entropy(logits_cv, targets_c, ignore_index=IGNORE, reduction="sum"))
    return nats


def _unigram_nats(counts: Int64s) -> float:
    seen = counts[counts > 0]
    return float(seen @ np.log(seen.sum() / seen))
