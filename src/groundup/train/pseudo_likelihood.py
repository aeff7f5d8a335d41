"""Pseudo-likelihood: how well a model that reads both ways guesses each token from all the others.

Every token is masked in turn and its log-probability taken (Salazar et al. 2020, "Masked Language Model Scoring"). The
sum is no log-probability of the text, since each term has seen what the others are of: as bits per byte it is lower
than what any compressor could reach, and compares with other pseudo-likelihoods alone.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from groundup.errors import UserError
from groundup.model.language_model import LanguageModel, mask_segments, token_positions
from groundup.model.parts import widen
from groundup.tokens.tokenizer import Tokenizer
from groundup.train.heldout import HeldoutStream

# Tokens guessed at the end of a training run: each costs a window of its own.
SAMPLED_TOKENS = 1000


@dataclass(frozen=True)
class PseudoLoss:
    """Loss in nats of masked tokens, spread evenly over a text.

    nats: summed over the `tokens` that were masked; deviation: standard deviation of one token's nats.
    total_tokens, total_bytes: of the whole text, without the tokens that end its documents.
    """

    nats: float
    deviation: float
    tokens: int
    total_tokens: int
    total_bytes: int

    @property
    def pseudo_bits_per_byte(self) -> float:
        return self._bits_per_byte(self.nats / self.tokens)

    @property
    def standard_error(self) -> float:
        """Of the pseudo bits per byte, which is none where every token was masked."""
        unseen = 1 - self.tokens / self.total_tokens
        return self._bits_per_byte(self.deviation / self.tokens**0.5 * unseen**0.5)

    def _bits_per_byte(self, nats_per_token: float) -> float:
        return nats_per_token * self.total_tokens / math.log(2) / self.total_bytes


@torch.no_grad()
def pseudo_log_likelihood(
    model: LanguageModel,
    input_ids: Tensor,
    mask_id: int,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    scored: Tensor | None = None,
    rows: int = 16,
) -> Tensor:
    """Log-probability in nats of each scored token given all others of its row, (batch, time) float64; else 0.

    input_ids, attention_mask, token_type_ids: as for `LanguageModel.forward`.
    mask_id: token that stands for what is to be guessed.
    scored: bool (batch, time), which tokens to mask; None: all but padding.
    rows: masked copies per forward pass.
    Raises ValueError for a model that looks back alone: it would guess without the token before it.
    """
    if model.config.causal:
        raise ValueError("a pseudo-likelihood is for models that read both ways; others have a likelihood")
    if scored is None:
        scored = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    found_bt = torch.zeros(input_ids.shape, dtype=torch.float64, device=input_ids.device)
    for places in scored.nonzero().split(rows):
        row_n, column_n = places.unbind(1)
        copy_n = torch.arange(len(places), device=input_ids.device)
        masked_nt = input_ids[row_n]
        masked_nt[copy_n, column_n] = mask_id
        mask_nt = None if attention_mask is None else attention_mask[row_n]
        positions_nt = token_positions(masked_nt, mask_nt)
        embedded = model.embed(masked_nt, positions_nt, None if token_type_ids is None else token_type_ids[row_n])
        hidden_ntd = model.hidden(masked_nt, positions_nt, mask_segments(mask_nt), embedded=embedded)
        log_p_nv = widen(model.logits(hidden_ntd[copy_n, column_n])).log_softmax(-1)
        found_bt[row_n, column_n] = log_p_nv[copy_n, input_ids[row_n, column_n]].double()
    return found_bt


def heldout_pseudo_loss(
    model: LanguageModel,
    stream: HeldoutStream,
    context: int,
    bos_id: int,
    mask_id: int,
    sample: int | None = None,
    rows: int = 16,
) -> PseudoLoss:
    """Pseudo-likelihood of every token of a stream's texts, or of `sample` of them, spread evenly over it.

    Documents are cut into pieces of `context` - 1 tokens, which are read after `bos_id`, each by itself; a token is
    guessed from the rest of its piece. The end-of-text token that closes each document is neither read nor guessed:
    learning to guess masked tokens, a model never sees one. Raises ValueError if there is no text.
    """
    if context < 2:
        raise ValueError(f"a token is guessed from others: `context` must be at least 2, not {context}")
    places = np.delete(np.arange(stream.total_tokens, dtype=np.int64), stream.offsets[1:] - 1)
    if (text_tokens := len(places)) == 0:
        raise ValueError("a pseudo-likelihood needs a text of at least one token")
    if sample is not None and sample < text_tokens:
        places = places[np.linspace(0, text_tokens - 1, sample).astype(np.int64)]
    documents = np.searchsorted(stream.offsets, places, side="right") - 1
    begins, ends = stream.offsets[documents], stream.offsets[documents + 1] - 1
    starts = begins + (places - begins) // (context - 1) * (context - 1)
    pieces, first = np.unique(starts, return_index=True)
    lengths = np.minimum(pieces + context - 1, ends[first]) - pieces
    nats: list[npt.NDArray[np.float64]] = []
    by_length = np.argsort(lengths, kind="stable")  # so that little is padded
    for batch in (by_length[at : at + rows] for at in range(0, len(by_length), rows)):
        width = 1 + int(lengths[batch].max())
        ids, real, scored = (np.full((len(batch), width), fill, dtype=np.int64) for fill in (bos_id, 0, 0))
        for row, piece in enumerate(batch):
            start, length = int(pieces[piece]), int(lengths[piece])
            ids[row, 1 : 1 + length] = stream.tokens(start, start + length)
            real[row, : 1 + length] = 1
            scored[row, 1 + places[starts == start] - start] = 1
        inputs, mask, wanted = (torch.from_numpy(array).to(model.device) for array in (ids, real, scored))
        found = pseudo_log_likelihood(model, inputs, mask_id, mask, scored=wanted, rows=rows)
        nats.append(-found[wanted.bool()].cpu().numpy())
    each = np.concatenate(nats)
    return PseudoLoss(float(each.sum()), float(each.std()), len(each), text_tokens, stream.total_bytes)


def pseudo_figures(model: nn.Module, stream: HeldoutStream, context: int, words: Tokenizer) -> dict[str, Any]:
    """What the summary of a training run says of a model that reads both ways; nothing of any other.

    `heldout_sampled_pseudo_bits_per_byte`, and `heldout_sampled_tokens`, on which it rests.
    """
    if not isinstance(model, LanguageModel) or model.config.causal:
        return {}
    loss = heldout_pseudo_loss(model, stream, context, words.bos_id, mask_token(words), SAMPLED_TOKENS)
    return {"heldout_sampled_pseudo_bits_per_byte": loss.pseudo_bits_per_byte, "heldout_sampled_tokens": loss.tokens}


def mask_token(words: Tokenizer) -> int:
    """The tokenizer's token for what is to be guessed. Raises UserError if it has none."""
    if words.mask_id is None:
        raise UserError("a model that fills gaps needs a mask token, which this tokenizer does not have")
    return words.mask_id
