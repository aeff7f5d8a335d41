"""Classification: one label for each image or text."""

import torch
import torch.nn.functional as F
from torch import Tensor

from groundup.tokens.batches import IGNORE
from groundup.train.token_loss import TokenLoss


def classification_loss(logits_bc: Tensor, labels_b: Tensor) -> TokenLoss:
    """Cross-entropy of the labels, summed, with the number of rows it sums; a label IGNORE carries no loss.

    logits_bc: (batch, classes), any float dtype; the reduction runs in at least float32.
    labels_b: (batch,) int64.
    """
    wide_bc = logits_bc.to(torch.promote_types(logits_bc.dtype, torch.float32))
    total = F.cross_entropy(wide_bc, labels_b, ignore_index=IGNORE, reduction="sum")
    return TokenLoss(total, (labels_b != IGNORE).sum())
