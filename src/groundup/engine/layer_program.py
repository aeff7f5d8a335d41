"""One layer as instructions of a program, and which layers can be.

Shape suffixes: m tokens, d model width, k channels, n outputs, f feed-forward width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from groundup.engine.expert_program import are_experts_readable, write_experts
from groundup.engine.kernels import MOST_HEAD_DIM, KeyValueBlocks
from groundup.engine.kernels.program import Product, Program
from groundup.engine.latent_program import padded_head_dim, write_latent
from groundup.engine.model_matrices import ModelMatrices, are_readable, bias_of
from groundup.engine.norm_program import write_norm
from groundup.engine.offered import Offered
from groundup.model.attention import SelfAttention
from groundup.model.experts import MixtureOfExperts
from groundup.model.feedforward import DenseFeedForward
from groundup.model.latent import LatentSelfAttention
from groundup.model.parts import Normalise
from groundup.model.specs import Attention, Experts, LatentAttention, LayerSpec
from groundup.model.stack import Block


class LayerWriter:
    """Writes one layer, as `Block.forward` has it. Sums are made where they stand: x becomes the layer's output."""

    def __init__(
        self,
        program: Program,
        matrices: ModelMatrices,
        layer: Block,
        name: str,
        turning: tuple[Tensor, Tensor] | None,
        key_values: KeyValueBlocks,
        offered: Offered,
    ) -> None:
        self._program, self._matrices, self._layer, self._name = program, matrices, layer, name
        self._turning, self._key_values, self._offered = turning, key_values, offered

    def write(self, x_md: Tensor) -> None:
        """Append the layer's instructions, for a buffer (tokens, width)."""
        layer, placement = self._layer, self._layer.spec.placement
        mixed_md = self._normed(layer.mixer_norm, x_md, "mixer input")
        if placement.startswith("parallel"):
            alike = placement == "parallel"
            fed_md = mixed_md if alike else self._normed(layer.feed_forward_norm, x_md, "feed-forward input")
            self._attention(mixed_md, x_md, x_md)
            self._feed_forward(fed_md, x_md, x_md)
            return
        self._add(self._attention, mixed_md, x_md, layer.mixer_output_norm)
        write_norm(self._program, layer.mixer_sum_norm, x_md, x_md)
        fed_md = self._normed(layer.feed_forward_norm, x_md, "feed-forward input")
        self._add(self._feed_forward, fed_md, x_md, layer.feed_forward_output_norm)
        write_norm(self._program, layer.feed_forward_sum_norm, x_md, x_md)

    def _normed(self, norm: nn.Module, x_md: Tensor, name: str) -> Tensor:
        """The norm of x in a buffer of its own, or x itself where there is none."""
        if not isinstance(norm, Normalise):
            return x_md
        out_md = self._program.buffer(name, x_md.shape[1])
        write_norm(self._program, norm, x_md, out_md)
        return out_md

    def _add(
        self, part: Callable[[Tensor, Tensor, Tensor | None], None], input_md: Tensor, x_md: Tensor, norm: nn.Module
    ) -> None:
        """x += norm(part(input))."""
        if not isinstance(norm, Normalise):
            part(input_md, x_md, x_md)
            return
        out_md = self._program.buffer("part", x_md.shape[1])
        part(input_md, out_md, None)
        write_norm(self._program, norm, out_md, out_md)
        self._program.add(x_md, out_md)

    def _attention(self, x_md: Tensor, out_md: Tensor, residual_md: Tensor | None) -> None:
        program, mixer = self._program, self._layer.mixer
        if isinstance(mixer, LatentSelfAttention):
            assert self._turning is not None
            ends = x_md, out_md, residual_md
            write_latent(program, mixer, self._turning, self._key_values, self._linear, *ends)
            return
        assert isinstance(mixer, SelfAttention)
        spec = mixer.spec
        query_mk = program.buffer("query", spec.heads * spec.head_dim)
        key_mk, value_mk = (program.buffer(name, spec.kv_heads * spec.head_dim) for name in ("key", "value"))
        self._linear(x_md, {"mixer.query": query_mk, "mixer.key": key_mk, "mixer.value": value_mk})
        self._heads(query_mk, spec.heads, mixer.query_norm)
        self._heads(key_mk, spec.kv_heads, mixer.key_norm)
        self._clip(value_mk)
        if self._layer.token_values is not None:
            self._offered.add_values(self._layer.token_values, x_md, value_mk)
        program.store(self._key_values, key_mk, value_mk)
        program.attend(
            query_mk,
            self._key_values,
            query_mk,
            scale=spec.scale or spec.head_dim**-0.5,
            window=spec.window,
            softcap=spec.softcap,
            sinks_h=None if mixer.sinks is None else mixer.sinks.detach().float(),
        )
        if mixer.head_gate is not None:
            program.gate(x_md, mixer.head_gate.detach().float(), query_mk, None, query_mk, factor=2.0)
        self._linear(query_mk, {"mixer.output": out_md}, residual_md)

    def _heads(self, x_mk: Tensor, heads: int, norm: Normalise | None) -> None:
        """Norm, clip and turn queries or keys, where they stand."""
        spec, wanted = self._layer.spec.attention, self._layer.spec.attention.query_key_norm
        over_width = wanted is not None and wanted.over == "width"
        after_rope = wanted is not None and wanted.after_rope
        if over_width:
            write_norm(self._program, norm, x_mk, x_mk)
        self._clip(x_mk)
        if not over_width and not after_rope:
            write_norm(self._program, norm, x_mk, x_mk, heads)
        if spec.rope is not None and self._turning is not None:
            self._program.rope(x_mk, heads, *self._turning, interleaved=spec.rope.interleaved)
        if after_rope:
            write_norm(self._program, norm, x_mk, x_mk, heads)

    def _clip(self, x_mk: Tensor) -> None:
        clip = self._layer.spec.attention.clip
        if clip is not None:
            self._program.call(lambda tokens: x_mk[:tokens].clamp_(-clip, clip))

    def _feed_forward(self, x_md: Tensor, out_md: Tensor, residual_md: Tensor | None) -> None:
        network = self._layer.feed_forward
        if isinstance(network, MixtureOfExperts):
            self._mixture(network, x_md, out_md, residual_md)
        elif network is not None:
            self._dense(network, "feed_forward", x_md, out_md, residual_md)

    def _dense(
        self, network: DenseFeedForward, name: str, x_md: Tensor, out_md: Tensor, residual_md: Tensor | None
    ) -> None:
        program, spec = self._program, network.spec
        up_mf = program.buffer("up", spec.width)
        gate_mf = None if network.gate is None else program.buffer("gate", spec.width)
        outs = {f"{name}.up": up_mf}
        if gate_mf is not None:
            outs[f"{name}.gate"] = gate_mf
        self._linear(x_md, outs)
        program.activate_as(spec, up_mf, gate_mf)
        self._linear(up_mf, {f"{name}.down": out_md}, residual_md)

    def _mixture(self, network: MixtureOfExperts, x_md: Tensor, out_md: Tensor, residual_md: Tensor | None) -> None:
        """Experts, and the network beside them, which reads x before `out` is written, as that may be x."""
        shared, gate = network.shared, network.shared_gate
        shared_md = self._program.buffer("shared", x_md.shape[1])
        if shared is not None:
            self._dense(shared, "feed_forward.shared", x_md, shared_md, None)
        if gate is not None:
            gate_m1 = self._program.buffer("shared gate", 1)
            self._linear(x_md, {"feed_forward.shared_gate": gate_m1}, wide=True)
            self._program.gate(gate_m1, torch.ones(1, 1), shared_md, None, shared_md, factor=1.0)
        logits_me = self._program.buffer("router", network.spec.router.experts)
        self._linear(x_md, {"feed_forward.router": logits_me}, wide=True)
        write_experts(self._program, self._matrices, network, logits_me, x_md, out_md, residual_md)
        if shared is not None:
            self._program.add(out_md, shared_md)

    def _linear(
        self, x_mk: Tensor, outs: dict[str, Tensor], residual_mn: Tensor | None = None, wide: bool = False
    ) -> None:
        """The linear maps of these names, all of x, with what adapters add to them. wide: multiplied in float32."""
        products = []
        for name, out_mn in outs.items():
            linear = self._layer.get_submodule(name)
            matrix = self._matrices.wide(linear) if wide else self._matrices.of(linear)
            products.append(Product(matrix, bias_of(linear), out_mn, residual_mn))
        self._program.linear(x_mk, *products)
        self._program.adapt(x_mk, {f"{self._name}.{name}": out_mn for name, out_mn in outs.items()})


def is_writable(layer: Block) -> bool:
    """Whether a program can express the layer, and the kernels read its matrices."""
    return _is_expressible(layer.spec) and _has_readable_matrices(layer)


def _is_expressible(spec: LayerSpec) -> bool:
    attention, network = spec.mixer, spec.feed_forward
    if not isinstance(attention, Attention | LatentAttention) or network is None:
        return False
    if isinstance(network, Experts) and network.router.capacity is not None:
        return False
    if spec.cross is not None or (spec.placement.startswith("parallel") and not spec.mixer_norm):
        return False
    if key_value_shape(attention)[1] > MOST_HEAD_DIM:
        return False
    if isinstance(attention, LatentAttention):
        return True
    return attention.causal and attention.alibi is None and not attention.output_gate


def key_value_shape(attention: Attention | LatentAttention) -> tuple[int, int]:
    """Heads of keys and values, and numbers of each."""
    if isinstance(attention, LatentAttention):
        return attention.heads, padded_head_dim(attention)
    return attention.kv_heads, attention.head_dim


def _has_readable_matrices(layer: Block) -> bool:
    network = layer.feed_forward
    dense = network.shared if isinstance(network, MixtureOfExperts) else network
    parts = [part for part in (layer.mixer, dense) if part is not None]
    linears = [one for part in parts for one in part.children() if not isinstance(one, Normalise)]
    return are_readable(linears) and (not isinstance(network, MixtureOfExperts) or are_experts_readable(network))
