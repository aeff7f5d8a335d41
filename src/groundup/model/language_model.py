"""The language model: embedding, layers, head. No parallelism, no caching policy, no device code.

Decoders, encoders and recurrent models are the same thing here; they differ in their layers alone. Shape suffixes: b
batch, t time, s key time, d model width, k kv width, v vocabulary.
"""

import torch
from torch import Tensor, nn

from groundup.model.config import HeadTransform, ModelConfig
from groundup.model.context import Cache, Memory
from groundup.model.experts import Routing
from groundup.model.induction import Found, NgramHeads
from groundup.model.parts import Embedding, Linear, Matrix, activate, widen
from groundup.model.shortcuts import NgramEmbedding
from groundup.model.stack import Block, Offered, Stack, normalise


class LanguageModel(Stack):
    """A model of token sequences, built from a `ModelConfig`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.config = config
        width, table_width = config.width, config.table_width
        learned, spec = config.learned_positions, config.induction
        self.embedding = Embedding(config.vocab_size, table_width)
        self.embedding_in = Linear(table_width, width) if config.embedding_width else None
        self.positions = None if learned is None else Embedding(learned.rows + learned.offset, width)
        self.token_types = Embedding(config.token_types, width) if config.token_types else None
        self.embedding_norm = normalise(config.embedding_norm, width)
        self.ngrams = NgramEmbedding(config.ngram_buckets, width) if config.ngram_buckets else None
        self.induction = None if spec is None else NgramHeads(spec, len(config.layers), config.vocab_size, width)
        self.embedding_out = Linear(width, table_width) if config.embedding_width else None
        self.transform = None if config.head_transform is None else Transform(config.head_transform, table_width)
        self.head = None if config.tied_head else Linear(table_width, config.vocab_size)
        self.head_bias = nn.Parameter(torch.empty(config.vocab_size)) if config.head_bias else None
        self.head_product = HeadProduct()

    @property
    def head_matrix(self) -> Matrix:
        """(vocab, width): the output matrix, which is the embedding itself where the two are tied."""
        return self.embedding if self.head is None else self.head

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to compare two copies with, the same each time."""
        length = min(16, self.config.max_positions)
        return ((torch.arange(length)[None] * 7919) % self.config.vocab_size,)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        token_type_ids: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Logits (batch, time, vocab): of the token after each position, or for encoders of the one at it.

        input_ids: (batch, time) int64.
        attention_mask: (batch, keys) with 1 for tokens and 0 for padding; `keys` counts cached tokens too.
        cache: holds the tokens that precede `input_ids`, and takes these up.
        token_type_ids: (batch, time), the kind of each token, where the model tells kinds apart; None: all 0.
        memory: an encoder's output, for layers with cross-attention.
        """
        positions = token_positions(input_ids, attention_mask, 0 if cache is None else cache.length)
        segments = mask_segments(attention_mask)
        embedded = None if token_type_ids is None else self.embed(input_ids, positions, token_type_ids)
        return self.logits(self.hidden(input_ids, positions, segments, cache, embedded=embedded, memory=memory))

    def hidden(
        self,
        input_ids: Tensor,
        positions: Tensor,
        segments: Tensor | None = None,
        cache: Cache | None = None,
        *,
        embedded: Tensor | None = None,
        memory: Memory | None = None,
        routings: list[Routing] | None = None,
    ) -> Tensor:
        """The final activations (batch, time, width of the head), from which `logits` follow.

        positions, segments, memory, routings: see `Stack.run`.
        embedded: what enters the layers, where that is not `embed(input_ids, positions)` itself.
        """
        out_btd, found = self._through(input_ids, positions, segments, cache, embedded, memory, routings)
        out_btd = self.leave(out_btd)
        return out_btd if found is None else found.point(out_btd, self.head_matrix)

    def leave(self, x_btd: Tensor) -> Tensor:
        """What leaves the layers, as the head wants it."""
        if self.embedding_out is not None:
            x_btd = self.embedding_out(x_btd)
        if self.transform is not None:
            x_btd = self.transform(x_btd)
        return x_btd if self.config.logit_scale is None else x_btd * self.config.logit_scale

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        """What leaves the layers, (batch, time, width), for uses other than the head. types: see `embed`."""
        positions = token_positions(input_ids, attention_mask)
        embedded = self.embed(input_ids, positions, types)
        return self._through(input_ids, positions, mask_segments(attention_mask), None, embedded, None, None)[0]

    def embed(self, input_ids: Tensor, positions: Tensor, types: Tensor | None = None) -> Tensor:
        """What enters the layers, (batch, time, width). types: kind of each token, (batch, time); None: all 0.

        Raises ValueError for types in a model that has no table of them.
        """
        if types is not None and self.token_types is None:
            raise ValueError(f"a {self.config.family} model of this configuration has no token types")
        dtype = self.compute_dtype or self.embedding.dtype
        x_btd: Tensor = self.embedding(input_ids, dtype)
        if self.embedding_in is not None:
            x_btd = self.embedding_in(x_btd)
        if self.config.embedding_scale is not None:
            # Rounded to the activations' type first, as Gemma does it; a number of the host, which no GPU waits for.
            x_btd = x_btd * torch.tensor(self.config.embedding_scale, dtype=dtype)
        if self.config.learned_positions is not None and self.positions is not None:
            x_btd = x_btd + self.positions(positions + self.config.learned_positions.offset, dtype)
        if self.token_types is not None:
            x_btd = x_btd + self.token_types(torch.zeros_like(input_ids) if types is None else types, dtype)
        return x_btd if self.embedding_norm is None else self.embedding_norm(x_btd)

    def logits(self, hidden_btd: Tensor) -> Tensor:
        """(batch, time, vocab), softcapped where the family does so (Gemma 2, section 2).

        In the type of `hidden_btd`, as published; in a wider one where the head is quantized or the logits are capped.
        """
        logits_btv: Tensor = self.head_product(hidden_btd, self.head_matrix, self.head_bias)
        return softcap(logits_btv, self.config.logit_softcap)

    def _through(
        self,
        input_ids: Tensor,
        positions: Tensor,
        segments: Tensor | None,
        cache: Cache | None,
        embedded: Tensor | None,
        memory: Memory | None,
        routings: list[Routing] | None,
    ) -> tuple[Tensor, Found | None]:
        """What leaves the layers, and what induction found."""
        x_btd = self.embed(input_ids, positions) if embedded is None else embedded
        dtype = x_btd.dtype
        stream = input_ids if cache is None else cache.take_ids(input_ids)
        # A copy, or the first layer, whose input it is, would be compiled apart from the others.
        first = [x_btd.clone()] if self.config.residual_mix else []
        if self.ngrams is not None:
            first.append(self.ngrams(stream, positions, dtype))
        found = None if self.induction is None else self.induction(stream, segments, input_ids.shape[1])

        def offer(index: int) -> Offered:
            layer = self.layers[index]
            assert isinstance(layer, Block)
            mixed_in = (*first, found.offer(index, dtype)) if found is not None else tuple(first)
            values = None if layer.token_values is None else layer.token_values.table(input_ids, dtype)
            return Offered(mixed_in, values)

        run = self.run(x_btd, positions, segments, cache=cache, memory=memory, offer=offer, routings=routings)
        return run, found


class HeadProduct(nn.Module):
    """The product with the output matrix; a module, so that adapters find it where that matrix is the embedding."""

    def forward(self, hidden_btd: Tensor, matrix: Matrix, bias_v: Tensor | None) -> Tensor:
        return matrix.product(hidden_btd, bias_v)


class Transform(nn.Module):
    """What an encoder's output passes through before the head (Devlin et al. 2019, code)."""

    def __init__(self, spec: HeadTransform, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.linear = Linear(width, width, spec.bias)
        self.norm = normalise(spec.norm, width)

    def forward(self, x_btd: Tensor) -> Tensor:
        activated_btd = activate(self.linear(x_btd), self.spec.activation)
        return activated_btd if self.norm is None else self.norm(activated_btd)


def softcap(logits: Tensor, cap: float | None) -> Tensor:
    """cap · tanh(logits / cap) in at least float32, or the logits themselves where there is no cap."""
    return logits if cap is None else cap * torch.tanh(widen(logits) / cap)


def token_positions(input_ids: Tensor, attention_mask: Tensor | None, cached: int = 0) -> Tensor:
    """Positions (batch, time) counted from each row's first real token, after `cached` earlier ones; padding gets 0."""
    time = input_ids.shape[1]
    if attention_mask is None:
        return torch.arange(cached, cached + time, device=input_ids.device).expand(input_ids.shape)
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -time:]


def mask_segments(attention_mask: Tensor | None) -> Tensor | None:
    """Segments (int32) of rows that are one document each: 0 for tokens, -1 for padding."""
    return None if attention_mask is None else attention_mask.to(torch.int32) - 1
