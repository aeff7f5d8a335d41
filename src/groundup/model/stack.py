"""Layers one above the other: what decoders, encoders and the towers of other senses have in common.

Shape suffixes: b batch, t time, s key time, h heads, k kv width, d model width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from groundup.model.attention import CrossAttention, SelfAttention
from groundup.model.config import ModelConfig, StackConfig
from groundup.model.context import Cache, LayerCache, Memory, Shared, Visibility
from groundup.model.delta import GatedDelta
from groundup.model.delta_specs import GatedDeltaNet, ShortConvolution
from groundup.model.experts import MixtureOfExperts, Routing, leave_uncompiled
from groundup.model.feedforward import DenseFeedForward
from groundup.model.latent import LatentSelfAttention
from groundup.model.mamba import MambaMixer
from groundup.model.mamba2 import Mamba2Mixer
from groundup.model.parts import Normalise
from groundup.model.positions import RelativeBias, RopeTables, rope_tables
from groundup.model.recurrent_specs import Mamba, Mamba2
from groundup.model.rotary import Rope
from groundup.model.short_convolution import GatedConvolution
from groundup.model.shortcuts import ResidualMix, TokenValues
from groundup.model.specs import Attention, Experts, FeedForward, LatentAttention, LayerSpec, Mixer, Norm

Rotation = tuple[Rope, int]


class Offered(NamedTuple):
    """What is looked up for one layer: what it mixes into its residual, and its value table's rows, if it has one.

    Looked up outside the compiled layers, where the gradient of a look-up is summed in a fixed order.
    """

    mixed_in: tuple[Tensor, ...] = ()
    value_rows_btk: Tensor | None = None


class Block(nn.Module):
    """One layer; norms that its placement does not have are identities."""

    def __init__(self, spec: LayerSpec, config: StackConfig) -> None:
        super().__init__()
        width, placement = config.width, spec.placement
        fed = spec.feed_forward is not None

        def norm(*placements: str, wanted: bool = True) -> nn.Module:
            return Normalise(spec.norm, width) if wanted and placement in placements else nn.Identity()

        mixed_terms = config.mixed_terms if isinstance(config, ModelConfig) and config.residual_mix else 0
        vocab_size = config.vocab_size if isinstance(config, ModelConfig) else 0
        self.spec = spec
        self.mix = ResidualMix(mixed_terms) if mixed_terms else None
        self.mixer_norm = norm("pre", "sandwich", "parallel", "parallel_two_norms", wanted=spec.mixer_norm)
        self.mixer = _mixer(spec.mixer, width)
        self.token_values = TokenValues(spec.attention, vocab_size) if spec.value_embedding else None
        self.mixer_output_norm = norm("sandwich", "output")
        self.mixer_sum_norm = norm("post")
        self.cross_norm = norm("pre", wanted=spec.cross is not None)
        self.cross = None if spec.cross is None else CrossAttention(spec.cross, width)
        self.cross_sum_norm = norm("post", wanted=spec.cross is not None)
        self.feed_forward_norm = norm("pre", "sandwich", "parallel_two_norms", wanted=fed)
        self.feed_forward = None if spec.feed_forward is None else _feed_forward(spec.feed_forward, width)
        self.feed_forward_output_norm = norm("sandwich", "output")
        self.feed_forward_sum_norm = norm("post")

    def compile(self, *args: Any, **options: Any) -> None:
        """As for any module, but for its experts."""
        leave_uncompiled()
        super().compile(*args, **options)

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
            fed_btd, routing = self._feed(fed_btd, shared, cache)
            return x_btd + mixed_btd + fed_btd, routing
        x_btd = self.mixer_sum_norm(x_btd + mixed_btd)
        if self.cross is not None:
            x_btd = self.cross_sum_norm(x_btd + self.cross(self.cross_norm(x_btd), shared, cache))
        if self.feed_forward is None:
            return x_btd, None
        fed_btd, routing = self._feed(self.feed_forward_norm(x_btd), shared, cache)
        return self.feed_forward_sum_norm(x_btd + self.feed_forward_output_norm(fed_btd)), routing

    def _feed(self, x_btd: Tensor, shared: Shared, cache: LayerCache | None) -> tuple[Tensor, Routing | None]:
        if isinstance(self.feed_forward, MixtureOfExperts):
            fed: tuple[Tensor, Routing] = self.feed_forward(x_btd, shared.visible, cache)
            return fed
        assert self.feed_forward is not None
        return self.feed_forward(x_btd), None


class Stack(nn.Module):
    """The layers and the norm after them; what comes in below is the matter of those that build on it.

    compute_dtype: type of the activations and, cast on use, of the matrices; None means the weights' own.
    """

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.width = config.width
        self.compute_dtype: torch.dtype | None = None
        relative = config.relative_positions
        self.layers = nn.ModuleList(Block(spec, config) for spec in config.layers)
        self.final_norm = normalise(config.final_norm, config.width)
        self.relative = None if relative is None else RelativeBias(relative, config.layers[0].attention)

    def run(
        self,
        x_btd: Tensor,
        positions: Tensor,
        segments: Tensor | None = None,
        *,
        cache: Cache | None = None,
        memory: Memory | None = None,
        offer: Callable[[int], Offered] | None = None,
        routings: list[Routing] | None = None,
        depth: int | None = None,
        entering: list[Tensor] | None = None,
    ) -> Tensor:
        """What leaves the stack, (batch, time, width).

        positions: (batch, time) int64, the place of each token in its own document.
        segments: (batch, keys) int32, see `context.py`; None where each row is one document.
        cache: has taken up the tokens of x already.
        offer: what a layer, by its number, is offered beside its input.
        routings: takes up where the tokens went in each layer that has experts, first layer first.
        depth: how many layers to pass through, without the norm after the last; None for all, and the norm.
        entering: takes up what enters each layer, first layer first.
        """
        time = x_btd.shape[1]
        visible = Visibility(None if segments is None else segments[:, -time:], segments)
        tables = self._rope_tables(positions, x_btd.dtype)
        memory_bsd = None if memory is None else memory.hidden_bsd
        memory_visible = Visibility(None, None) if memory is None else memory.visible(visible.segments_bt, time)
        bias_hts = None
        if self.relative is not None:
            bias_hts = self.relative(time, time if cache is None else cache.length)
        for index, layer in enumerate(self.layers[:depth]):
            assert isinstance(layer, Block)
            rope = _rotation(layer.spec.mixer)
            shared = Shared(None if rope is None else tables[rope], visible, bias_hts, memory_bsd, memory_visible)
            offered = Offered() if offer is None else offer(index)
            if entering is not None:
                entering.append(x_btd)
            x_btd, routing = layer(x_btd, shared, offered, None if cache is None else cache.layers[index])
            if routings is not None and routing is not None:
                routings.append(routing)
        return self.final_norm(x_btd) if depth is None and self.final_norm is not None else x_btd

    def _rope_tables(self, positions: Tensor, dtype: torch.dtype) -> dict[Rotation, RopeTables]:
        """One pair of tables for each kind of rotation among the layers."""
        kinds = {_rotation(layer.spec.mixer) for layer in self.layers if isinstance(layer, Block)}
        return {kind: rope_tables(*kind, positions, dtype) for kind in kinds if kind is not None}


def normalise(norm: Norm | None, width: int) -> Normalise | None:
    """The module of a norm that may be absent."""
    return None if norm is None else Normalise(norm, width)


def _rotation(mixer: Mixer) -> Rotation | None:
    """The rotary positions of a layer, and the size of the heads they turn."""
    if not isinstance(mixer, Attention | LatentAttention) or mixer.rope is None:
        return None
    return mixer.rope, mixer.head_dim


def _feed_forward(spec: FeedForward | Experts, width: int) -> DenseFeedForward | MixtureOfExperts:
    return MixtureOfExperts(spec, width) if isinstance(spec, Experts) else DenseFeedForward(spec, width)


def _mixer(spec: Mixer, width: int) -> nn.Module:
    match spec:
        case Attention():
            return SelfAttention(spec, width)
        case LatentAttention():
            return LatentSelfAttention(spec, width)
        case Mamba():
            return MambaMixer(spec, width)
        case Mamba2():
            return Mamba2Mixer(spec, width)
        case GatedDeltaNet():
            return GatedDelta(spec, width)
        case ShortConvolution():
            return GatedConvolution(spec, width)
