"""The decoder: embedding, layers, head. No parallelism, no caching policy, no device code.

Shape suffixes: b batch, t time, d model width, v vocabulary.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model.attention import LayerCache, SelfAttention, Visibility
from groundup.model.config import LayerSpec, ModelConfig
from groundup.model.feedforward import DenseFeedForward
from groundup.model.parts import Linear, RMSNorm, rope_tables


class Cache(Protocol):
    """What a decoder needs of a cache: its length in tokens and a part for each layer."""

    @property
    def length(self) -> int: ...

    @property
    def layers(self) -> Sequence[LayerCache]: ...


class Block(nn.Module):
    """One pre-norm layer."""

    def __init__(self, spec: LayerSpec, width: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(spec.norm, width)
        self.attention = SelfAttention(spec.attention, width)
        self.feed_forward_norm = RMSNorm(spec.norm, width)
        self.feed_forward = DenseFeedForward(spec.feed_forward, width)

    def forward(
        self, x_btd: Tensor, rope: tuple[Tensor, Tensor], visible: Visibility, cache: LayerCache | None
    ) -> Tensor:
        x_btd = x_btd + self.attention(self.attention_norm(x_btd), rope, visible, cache)
        return x_btd + self.feed_forward(self.feed_forward_norm(x_btd))


class Decoder(nn.Module):
    """A decoder-only language model, built from a `ModelConfig`.

    compute_dtype: type of the activations and, cast on use, of the matrices; None means the weights' own.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.width))
        self.embedding_norm = RMSNorm(config.embedding_norm, config.width) if config.embedding_norm else None
        self.layers = nn.ModuleList(Block(spec, config.width) for spec in config.layers)
        self.final_norm = RMSNorm(config.final_norm, config.width)
        self.head = None if config.tied_head else Linear(config.width, config.vocab_size)

    @property
    def head_weight(self) -> Tensor:
        """(vocab, width): the output matrix, which is the embedding itself where the two are tied."""
        return self.embedding if self.head is None else self.head.weight

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Logits (batch, time, vocab) of the token after each position.

        input_ids: (batch, time) int64.
        attention_mask: (batch, keys) with 1 for tokens and 0 for left padding; `keys` counts cached tokens too.
        cache: holds the tokens that precede `input_ids`, and takes these up.
        """
        segments = None if attention_mask is None else attention_mask.to(torch.int32) - 1
        positions = token_positions(input_ids, attention_mask, 0 if cache is None else cache.length)
        hidden_btd = self.hidden(input_ids, positions, segments, cache)
        return self.logits(hidden_btd)

    def hidden(
        self,
        input_ids: Tensor,
        positions: Tensor,
        segments: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """The final normed activations (batch, time, width), from which `logits` follow.

        positions: (batch, time) int64, the place of each token in its own document.
        segments: (batch, keys) int32, see `attention.py`; None where each row is one document.
        """
        x_btd = F.embedding(input_ids, self.embedding).to(self.compute_dtype or self.embedding.dtype)
        if self.embedding_norm is not None:
            x_btd = self.embedding_norm(x_btd)
        rope = rope_tables(self.config.rope, self.config.layers[0].attention.head_dim, positions, x_btd.dtype)
        visible = Visibility(None if segments is None else segments[:, -input_ids.shape[1] :], segments)
        for index, layer in enumerate(self.layers):
            x_btd = layer(x_btd, rope, visible, None if cache is None else cache.layers[index])
        return self.final_norm(x_btd)

    def logits(self, hidden_btd: Tensor) -> Tensor:
        """(batch, time, vocab) in at least float32, softcapped where the family does so (Gemma 2, section 2)."""
        logits_btv = F.linear(hidden_btd, self.head_weight.to(hidden_btd.dtype))
        return softcap(
            logits_btv if logits_btv.dtype == torch.float64 else logits_btv.float(), self.config.logit_softcap
        )


def softcap(logits: Tensor, cap: float | None) -> Tensor:
    """cap · tanh(logits / cap), or the logits themselves where there is no cap."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def token_positions(input_ids: Tensor, attention_mask: Tensor | None, cached: int = 0) -> Tensor:
    """Positions (batch, time) counted from each row's first real token, after `cached` earlier ones; padding gets 0."""
    time = input_ids.shape[1]
    if attention_mask is None:
        return torch.arange(cached, cached + time, device=input_ids.device).expand(input_ids.shape)
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -time:]
