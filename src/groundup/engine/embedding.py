"""Vectors of whole texts, from what leaves a model's layers.

Shape suffixes: b texts, t tokens, d model width.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from groundup.engine.prompts import left_padded
from groundup.model.language_model import LanguageModel

Pooling = Literal["mean", "last"]
POOLINGS = ("mean", "last")


@torch.no_grad()
def embed(model: LanguageModel, texts: Sequence[Sequence[int]], pooling: Pooling) -> Tensor:
    """(b, d) on the CPU, in at least float32: the mean over the tokens of each text, or what leaves at its last one.

    The same for encoders and decoders; padding counts for nothing.
    """
    input_ids, mask_bt = left_padded(texts, model.device)
    padded = int(mask_bt.min()) == 0
    hidden_btd = model.encode(input_ids, mask_bt if padded else None)
    wide_btd = hidden_btd if hidden_btd.dtype == torch.float64 else hidden_btd.float()
    if pooling == "last":
        return wide_btd[:, -1].cpu()
    weights_bt1 = mask_bt[..., None].to(wide_btd.dtype)
    return ((wide_btd * weights_bt1).sum(1) / weights_bt1.sum(1)).cpu()
