"""Vectors of whole texts, from what leaves a model's layers.

Shape suffixes: b texts, t tokens, d model width.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from groundup.engine.prompts import left_padded
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.language_model import LanguageModel

Pooling = Literal["mean", "last"]
POOLINGS = ("mean", "last")
# Texts that are embedded together, at most.
EMBED_BATCH = 16


@torch.no_grad()
def embed(model: LanguageModel | EncoderDecoder, texts: Sequence[Sequence[int]], pooling: Pooling) -> Tensor:
    """(b, d) on the CPU, in at least float32: the mean over the tokens of each text, or what leaves at its last one.

    The same for encoders, also those before a decoder, and decoders; padding counts for nothing.
    """
    input_ids, mask_bt = left_padded(texts, model.device)
    padded = int(mask_bt.min()) == 0
    hidden_btd = _hidden(model, input_ids, mask_bt if padded else None)
    wide_btd = hidden_btd if hidden_btd.dtype == torch.float64 else hidden_btd.float()
    if pooling == "last":
        return wide_btd[:, -1].cpu()
    weights_bt1 = mask_bt[..., None].to(wide_btd.dtype)
    return ((wide_btd * weights_bt1).sum(1) / weights_bt1.sum(1)).cpu()


def _hidden(model: LanguageModel | EncoderDecoder, input_ids: Tensor, mask_bt: Tensor | None) -> Tensor:
    if isinstance(model, LanguageModel):
        return model.encode(input_ids, mask_bt)
    hidden_btd = model.read(input_ids, mask_bt).hidden_bsd
    assert hidden_btd is not None
    return hidden_btd


def batches_of(texts: Sequence[Sequence[int]], most_texts: int, most_tokens: int) -> list[list[int]]:
    """Places of the texts that are embedded together: those of about equal length, the shortest first.

    most_texts, most_tokens: of a batch, padding included. A text that has more tokens is a batch by itself.
    """
    batches: list[list[int]] = []
    for place in sorted(range(len(texts)), key=lambda place: len(texts[place])):
        padded = len(texts[place])  # no text of the batch is longer
        if batches and len(batches[-1]) < most_texts and (len(batches[-1]) + 1) * padded <= most_tokens:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


def in_order(vectors: Sequence[Tensor], batches: Sequence[Sequence[int]], width: int) -> Tensor:
    """(texts, width): the vectors of the batches, each at the place of its text."""
    if not vectors:
        return torch.empty(0, width)
    return torch.cat(list(vectors))[torch.tensor([index for batch in batches for index in batch]).argsort()]
