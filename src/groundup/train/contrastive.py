"""Contrastive objectives for texts and images: which of all pairs in a batch belong together.

Every pair's loss depends on all others of the global batch, on whatever rank they are, and yet neither the loss nor its
gradients depend on how the batch is split: all of it is embedded in micro-batches without a graph, the loss gives the
slope by each embedding, and each micro-batch is embedded once more to pass its slopes on (GradCache, Gao et al. 2021).

Shape suffixes: m pairs of one rank, n pairs of all ranks, r rows of a block, e numbers in an embedding.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from groundup.model.dual_encoder import DualEncoder
from groundup.train.parallel import Ranks
from groundup.train.token_loss import TokenLoss

# Of some texts against all images, or some images against all texts: logits (r, n) and the number, (r,), of each row's
# own partner; the loss summed over the rows.
PairLoss = Callable[[Tensor, Tensor], Tensor]

# CLIP never lets logits grow beyond a hundred times the cosine: Radford et al. 2021, section 2.5.
LARGEST_SCALE = 100.0


class Pairs(NamedTuple):
    """Texts and the images that they describe, row by row; see `DualEncoder.forward`."""

    input_ids: Tensor
    pixel_values: Tensor
    attention_mask: Tensor | None = None

    def split(self, size: int) -> list["Pairs"]:
        """The same in micro-batches of at most this many pairs."""
        count = len(self.input_ids)
        masks = [None] * math.ceil(count / size) if self.attention_mask is None else self.attention_mask.split(size)
        return [
            Pairs(*part) for part in zip(self.input_ids.split(size), self.pixel_values.split(size), masks, strict=True)
        ]


def softmax_loss(logits_rn: Tensor, partner_r: Tensor) -> Tensor:
    """Cross-entropy of each row's partner among all. Source: InfoNCE as in Radford et al. 2021, figure 3."""
    return F.cross_entropy(logits_rn, partner_r, reduction="sum")


def sigmoid_loss(logits_rn: Tensor, partner_r: Tensor) -> Tensor:
    """Each pair by itself: does it belong together? Source: Zhai et al. 2023 (SigLIP), algorithm 1."""
    belongs_rn = torch.arange(logits_rn.shape[1], device=logits_rn.device) == partner_r[:, None]
    return -F.logsigmoid(torch.where(belongs_rn, logits_rn, -logits_rn)).sum()


def contrastive_gradients(
    model: DualEncoder, pairs: Pairs, loss: PairLoss, micro_pairs: int, ranks: Ranks | None = None
) -> TokenLoss:
    """Add this rank's gradients of the mean loss per pair; returns the sum of losses and the number of all pairs.

    The loss is the mean of both directions, from texts to images and back. Gradients are to be summed over the ranks,
    as `Ranks.add_gradients` does.
    pairs: this rank's; every rank has equally many. micro_pairs: how many are embedded, and compared with all others,
    at a time.
    """
    ranks = ranks or Ranks()
    parts, own = pairs.split(micro_pairs), len(pairs.input_ids)
    with torch.set_grad_enabled(len(parts) == 1):  # a graph that is small enough is kept
        embedded = [_embed(model, part) for part in parts]
    texts_ne, images_ne = (
        ranks.gather(torch.cat(side).detach()).requires_grad_() for side in zip(*embedded, strict=True)
    )
    rows, count = slice(ranks.rank * own, (ranks.rank + 1) * own), len(texts_ne)
    total = torch.zeros((), dtype=torch.float64, device=texts_ne.device)
    for block_r in torch.arange(rows.start, rows.stop, device=texts_ne.device).split(micro_pairs):
        by_text = loss(model.compare(texts_ne[block_r], images_ne), block_r)
        by_image = loss(model.compare(images_ne[block_r], texts_ne), block_r)
        block_loss = (by_text + by_image) / 2
        (block_loss / count).backward()
        total += block_loss.detach().double()
    slopes_ne = [side_ne.grad for side_ne in (texts_ne, images_ne) if side_ne.grad is not None]
    slopes = [ranks.add(side_ne)[rows].split(micro_pairs) for side_ne in slopes_ne]
    for index, part in enumerate(parts):
        sides = embedded[0] if len(parts) == 1 else _embed(model, part)
        torch.autograd.backward(sides, [slope[index] for slope in slopes])
    return TokenLoss(ranks.add(total), torch.tensor(count))


@torch.no_grad()
def limit_scale(model: DualEncoder, largest: float = LARGEST_SCALE) -> None:
    """Keep the factor on the cosine at most at this; to be called after each optimizer step."""
    model.logit_scale.clamp_(max=math.log(largest))


def _embed(model: DualEncoder, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Vectors of the texts and of the images."""
    return model.embed_texts(pairs.input_ids, pairs.attention_mask), model.embed_images(pairs.pixel_values)
