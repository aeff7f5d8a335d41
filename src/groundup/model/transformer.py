"""The decoder: embedding, layers, head. No parallelism, no caching policy, no device code.

Shape suffixes: b batch, t time, s key time, d model width, k kv width, v vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model.attention import LayerCache, SelfAttention, Shared, Visibility
from groundup.model.config import Attention, Experts, FeedForward, LatentAttention, LayerSpec, ModelConfig, Norm
from groundup.model.experts import MixtureOfExperts, Routing
from groundup.model.feedforward import DenseFeedForward
from groundup.model.induction import NgramHeads
from groundup.model.latent import LatentSelfAttention
from groundup.model.parts import Embedding, Linear, Normalise
from groundup.model.positions import RopeTables, rope_tables
from groundup.model.rotary import Rope
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


class Offered(NamedTuple):
    """What is looked up for one layer: what it mixes into its residual, and its value table's rows, if it has one.

    Looked up outside the compiled layers, where the gradient of a look-up is summed in a fixed order.
    """

    mixed_in: tuple[Tensor, ...]
    value_rows_btk: Tensor | None


class Block(nn.Module):
    """One layer; norms that its placement does not have are identities."""

    def __init__(self, spec: LayerSpec, config: ModelConfig) -> None:
        super().__init__()
        width, placement = config.width, spec.placement

        def norm(*placements: str) -> nn.Module:
            return Normalise(spec.norm, width) if placement in placements else nn.Identity()

        self.spec = spec
        self.mix = ResidualMix(config.mixed_terms) if config.residual_mix else None
        self.mixer_norm = norm("pre", "sandwich", "parallel", "parallel_two_norms")
        self.mixer = _mixer(spec.mixer, width)
        self.token_values = TokenValues(spec.attention, config.vocab_size) if spec.value_embedding else None
        self.mixer_output_norm = norm("sandwich", "output")
        self.mixer_sum_norm = norm("post")
        self.feed_forward_norm = norm("pre", "sandwich", "parallel_two_norms")
        self.feed_forward = _feed_forward(spec.feed_forward, width)
        self.feed_forward_output_norm = norm("sandwich", "output")
        self.feed_forward_sum_norm = norm("post")

    def forward(
        self, x_btd: Tensor, shared: Shared, offered: Offered, cache: LayerCache | None
    ) -> tuple[Tensor, Routing | None]:
        """The layer's output and, if it has experts, where its tokens went."""
        if self.mix is not None:
            x_btd = self.mix(x_btd, offered.mixed_in)
        h_btd = self.mixer_norm(x_btd)
        extra = (self.token_values(offered.value_rows_btk, h_btd),) if self.token_values is not None else ()
        mixed_btd = self.mixer_output_norm(self.mixer(h_btd, shared, cache, *extra))
        if self.spec.placement.startswith("parallel"):
            fed_btd = h_btd if self.spec.placement == "parallel" else self.feed_forward_norm(x_btd)
            fed_btd, routing = self._feed(fed_btd)
            return x_btd + mixed_btd + fed_btd, routing
        x_btd = self.mixer_sum_norm(x_btd + mixed_btd)
        fed_btd, routing = self._feed(self.feed_forward_norm(x_btd))
        return self.feed_forward_sum_norm(x_btd + self.feed_forward_output_norm(fed_btd)), routing

    def _feed(self, x_btd: Tensor) -> tuple[Tensor, Routing | None]:
        if isinstance(self.feed_forward, MixtureOfExperts):
            fed: tuple[Tensor, Routing] = self.feed_forward(x_btd)
            return fed
        return self.feed_forward(x_btd), None


class Decoder(nn.Module):
    """A decoder-only language model, built from a `ModelConfig`.

    compute_dtype: type of the activations and, cast on use, of the matrices; None means the weights' own.
    folder: where it was loaded from, or None; there lie its tokenizer and its generation settings.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None
        self.folder: Path | None = None
        width, table_width = config.width, config.table_width
        learned, spec = config.learned_positions, config.induction
        self.embedding = Embedding(config.vocab_size, table_width)
        self.embedding_in = Linear(table_width, width) if config.embedding_width else None
        self.positions = None if learned is None else Embedding(learned.rows + learned.offset, width)
        self.embedding_norm = _norm(config.embedding_norm, width)
        self.ngrams = NgramEmbedding(config.ngram_buckets, width) if config.ngram_buckets else None
        self.induction = None if spec is None else NgramHeads(spec, len(config.layers), config.vocab_size, width)
        self.layers = nn.ModuleList(Block(spec, config) for spec in config.layers)
        self.final_norm = _norm(config.final_norm, width)
        self.embedding_out = Linear(width, table_width) if config.embedding_width else None
        self.head = None if config.tied_head else Linear(table_width, config.vocab_size)
        self.head_bias = nn.Parameter(torch.empty(config.vocab_size)) if config.head_bias else None

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
        self,
        input_ids: Tensor,
        positions: Tensor,
        segments: Tensor | None = None,
        cache: Cache | None = None,
        routings: list[Routing] | None = None,
    ) -> Tensor:
        """The final activations (batch, time, width of the head), from which `logits` follow.

        positions: (batch, time) int64, the place of each token in its own document.
        segments: (batch, keys) int32, see `attention.py`; None where each row is one document.
        routings: takes up where the tokens went in each layer that has experts, first layer first.
        """
        x_btd = self._embed(input_ids, positions)
        dtype = x_btd.dtype
        tables = _all_rope_tables(self.config, positions, dtype)
        visible = Visibility(None if segments is None else segments[:, -input_ids.shape[1] :], segments)
        # A copy, or the first layer, whose input it is, would be compiled apart from the others.
        first = [x_btd.clone()] if self.config.residual_mix else []
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
            spec = layer.spec.mixer
            shared = Shared(tables[spec.rope, spec.head_dim] if spec.rope is not None else None, visible)
            layer_cache = None if cache is None else cache.layers[index]
            x_btd, routing = layer(x_btd, shared, Offered(mixed_in, values), layer_cache)
            if routings is not None and routing is not None:
                routings.append(routing)
        hidden_btd = x_btd if self.final_norm is None else self.final_norm(x_btd)
        if self.embedding_out is not None:
            hidden_btd = self.embedding_out(hidden_btd)
        if self.config.logit_scale is not None:
            hidden_btd = hidden_btd * self.config.logit_scale
        return hidden_btd if found is None else found.point(hidden_btd, self.head_weight)

    def logits(self, hidden_btd: Tensor) -> Tensor:
        """(batch, time, vocab) in at least float32, softcapped where the family does so (Gemma 2, section 2)."""
        bias = None if self.head_bias is None else self.head_bias.to(hidden_btd.dtype)
        logits_btv = F.linear(hidden_btd, self.head_weight.to(hidden_btd.dtype), bias)
        wide_btv = logits_btv if logits_btv.dtype == torch.float64 else logits_btv.float()
        return softcap(wide_btv, self.config.logit_softcap)

    def _embed(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        dtype = self.compute_dtype or self.embedding.weight.dtype
        x_btd: Tensor = self.embedding(input_ids, dtype)
        if self.embedding_in is not None:
            x_btd = self.embedding_in(x_btd)
        if self.config.embedding_scale is not None:
            # Rounded to the activations' type first, as Gemma does it.
            x_btd = x_btd * torch.tensor(self.config.embedding_scale, dtype=dtype, device=x_btd.device)
        if self.config.learned_positions is not None and self.positions is not None:
            x_btd = x_btd + self.positions(positions + self.config.learned_positions.offset, dtype)
        return x_btd if self.embedding_norm is None else self.embedding_norm(x_btd)


def _feed_forward(spec: FeedForward | Experts, width: int) -> DenseFeedForward | MixtureOfExperts:
    return MixtureOfExperts(spec, width) if isinstance(spec, Experts) else DenseFeedForward(spec, width)


def _mixer(spec: Attention | LatentAttention, width: int) -> nn.Module:
    return SelfAttention(spec, width) if isinstance(spec, Attention) else LatentSelfAttention(spec, width)


def _norm(norm: Norm | None, width: int) -> Normalise | None:
    return None if norm is None else Normalise(norm, width)


def _all_rope_tables(config: ModelConfig, positions: Tensor, dtype: torch.dtype) -> dict[tuple[Rope, int], RopeTables]:
    """One pair of tables for each kind of rotation among the layers."""
    kinds = {(layer.mixer.rope, layer.mixer.head_dim) for layer in config.layers}
    return {(rope, dim): rope_tables(rope, dim, positions, dtype) for rope, dim in kinds if rope is not None}


def softcap(logits: Tensor, cap: float | None) -> Tensor:
    """cap · tanh(logits / cap), or the logits themselves where there is no cap."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def token_positions(input_ids: Tensor, attention_mask: Tensor | None, cached: int = 0) -> Tensor:
    """Positions (batch, time) counted from each row's first real token, after `cached` earlier ones; padding gets 0."""
    time = input_ids.shape[1]
    if attention_mask is None:
        return torch.arange(cached, cached + time, device=input_ids.device).expand(input_ids.shape)
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -time:]
