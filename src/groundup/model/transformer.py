"""The decoder: embedding, layers, head. No parallelism, no caching policy, no device code.

Shape suffixes: b batch, t time, s key time, d model width, k kv width, v vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model.attention import LayerCache, SelfAttention, Visibility
from groundup.model.config import LayerSpec, ModelConfig
from groundup.model.feedforward import DenseFeedForward
from groundup.model.induction import NgramHeads
from groundup.model.parts import Embedding, Linear, RMSNorm, rope_tables
from groundup.model.shortcuts import NgramEmbedding, ResidualMix, TokenValues


class Cache(Protocol):
    """What a decoder needs of a cache: its length in tokens, a part for each layer, and the tokens themselves."""

    @property
    def length(self) -> int: ...

    @property
    def layers(self) -> Sequence[LayerCache]: ...

    def take_ids(self, input_ids: Tensor) -> Tensor:
        """Keep `input_ids` (batch, time); returns all tokens so far, these included."""
        ...


class Shared(NamedTuple):
    """What all layers see alike: rotary tables, and who sees whom."""

    rope: tuple[Tensor, Tensor]
    visible: Visibility


class Offered(NamedTuple):
    """What is looked up for one layer: what it mixes into its residual, and its value table's rows, if it has one.

    Looked up outside the compiled layers, where the gradient of a look-up is summed in a fixed order.
    """

    mixed_in: tuple[Tensor, ...]
    value_rows_btk: Tensor | None


class Block(nn.Module):
    """One pre-norm layer."""

    def __init__(self, spec: LayerSpec, config: ModelConfig) -> None:
        super().__init__()
        self.mix = ResidualMix(config.mixed_terms) if config.residual_mix else None
        self.attention_norm = RMSNorm(spec.norm, config.width)
        self.attention = SelfAttention(spec.attention, config.width)
        self.token_values = TokenValues(spec.attention, config.vocab_size) if spec.value_embedding else None
        self.feed_forward_norm = RMSNorm(spec.norm, config.width)
        self.feed_forward = DenseFeedForward(spec.feed_forward, config.width)

    def forward(self, x_btd: Tensor, shared: Shared, offered: Offered, cache: LayerCache | None) -> Tensor:
        if self.mix is not None:
            x_btd = self.mix(x_btd, offered.mixed_in)
        h_btd = self.attention_norm(x_btd)
        extra = self.token_values(offered.value_rows_btk, h_btd) if self.token_values is not None else None
        x_btd = x_btd + self.attention(h_btd, shared.rope, shared.visible, cache, extra)
        return x_btd + self.feed_forward(self.feed_forward_norm(x_btd))


class Decoder(nn.Module):
    """A decoder-only language model, built from a `ModelConfig`.

    compute_dtype: type of the activations and, cast on use, of the matrices; None means the weights' own.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None
        self.embedding = Embedding(config.vocab_size, config.width)
        self.embedding_norm = RMSNorm(config.embedding_norm, config.width) if config.embedding_norm else None
        self.ngrams = NgramEmbedding(config.ngram_buckets, config.width) if config.ngram_buckets else None
        spec = config.induction
        self.induction = (
            NgramHeads(spec, len(config.layers), config.vocab_size, config.width) if spec is not None else None
        )
        self.layers = nn.ModuleList(Block(spec, config) for spec in config.layers)
        self.final_norm = RMSNorm(config.final_norm, config.width)
        self.head = None if config.tied_head else Linear(config.width, config.vocab_size)

    @property
    def head_weight(self) -> Tensor:
        """(vocab, width): the output matrix, which is the embedding itself where the two are tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, cache: Cache | None = None) -> Tensor:
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
        self, input_ids: Tensor, positions: Tensor, segments: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """The final activations (batch, time, width), from which `logits` follow.

        positions: (batch, time) int64, the place of each token in its own document.
        segments: (batch, keys) int32, see `attention.py`; None where each row is one document.
        """
        dtype = self.compute_dtype or self.embedding.weight.dtype
        x_btd = self.embedding(input_ids, dtype)
        if self.embedding_norm is not None:
            x_btd = self.embedding_norm(x_btd)
        shared = Shared(
            rope_tables(self.config.rope, self.config.layers[0].attention.head_dim, positions, dtype),
            Visibility(None if segments is None else segments[:, -input_ids.shape[1] :], segments),
        )
        # A copy, or the first layer, whose input it is, would be compiled apart from the others.
        first = [x_btd.clone()]
        found = None
        if self.ngrams is not None or self.induction is not None:
            stream = input_ids if cache is None else cache.take_ids(input_ids)
            if self.ngrams is not None:
                first.append(self.ngrams(stream, positions, dtype))
            if self.induction is not None:
                found = self.induction(stream, segments, input_ids.shape[1])
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Block)
            mixed_in = (*first, found.offer(index, dtype)) if found is not None else tuple(first)
            values = None if layer.token_values is None else layer.token_values.table(input_ids, dtype)
            x_btd = layer(x_btd, shared, Offered(mixed_in, values), None if cache is None else cache.layers[index])
        hidden_btd: Tensor = self.final_norm(x_btd)
        return hidden_btd if found is None else found.point(hidden_btd, self.head_weight)

    def logits(self, hidden_btd: Tensor) -> Tensor:
        """(batch, time, vocab) in at least float32, softcapped where the family does so (Gemma 2, section 2)."""
        logits_btv = F.linear(hidden_btd, self.head_weight.to(hidden_btd.dtype))
        wide_btv = logits_btv if logits_btv.dtype == torch.float64 else logits_btv.float()
        return softcap(wide_btv, self.config.logit_softcap)


def softcap(logits: Tensor, cap: float | None) -> Tensor:
    """cap · tanh(logits / cap), or the logits themselves where there is no cap."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def token_positions(input_ids: Tensor, attention_mask: Tensor | None, cached: int = 0) -> Tensor:
    """Positions (batch, time) counted from each row's first real token, after `cached` earlier ones; padding gets 0."""
    time = input_ids.shape[1]
    if attention_mask is None:
        return torch.arange(cached, cached + time, device=input_ids.device).expand(input_ids.shape)
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -time:]
