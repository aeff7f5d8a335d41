"""One layer as instructions of a program, and which layers can be.

Shape suffixes: m tokens, d model width, k channels, n outputs, f feed-forward width.
"""

from collections.abc import Callable

from torch import Tensor, nn

from groundup.engine.kernels import MOST_HEAD_DIM, KeyValueBlocks
from groundup.engine.kernels.program import Product, Program
from groundup.model.attention import SelfAttention
from groundup.model.experts import MixtureOfExperts
from groundup.model.feedforward import DenseFeedForward
from groundup.model.parts import Normalise
from groundup.model.specs import Attention, Experts, FeedForward, LayerSpec
from groundup.model.stack import Block
from groundup.quantize.modules import QuantizedLinear

# What adapters add to the output (m, n) of the linear map of this name, given its input (m, k).
Adapt = Callable[[str, Tensor, Tensor], None]


class LayerWriter:
    """Writes one layer, as `Block.forward` has it. Sums are made where they stand: x becomes the layer's output."""

    def __init__(
        self,
        program: Program,
        layer: Block,
        name: str,
        turning: tuple[Tensor, Tensor] | None,
        key_values: KeyValueBlocks,
        adapt: Adapt | None,
    ) -> None:
        self._program, self._layer, self._name = program, layer, name
        self._turning, self._key_values, self._adapt = turning, key_values, adapt

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
        program, mixer, spec = self._program, self._layer.mixer, self._layer.spec.attention
        assert isinstance(mixer, SelfAttention)
        query_mk = program.buffer("query", spec.heads * spec.head_dim)
        key_mk, value_mk = (program.buffer(name, spec.kv_heads * spec.head_dim) for name in ("key", "value"))
        self._linear(x_md, {"mixer.query": query_mk, "mixer.key": key_mk, "mixer.value": value_mk})
        self._heads(query_mk, spec.heads, mixer.query_norm)
        self._heads(key_mk, spec.kv_heads, mixer.key_norm)
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
        self._linear(query_mk, {"mixer.output": out_md}, residual_md)

    def _heads(self, x_mk: Tensor, heads: int, norm: Normalise | None) -> None:
        """Norm and turn queries or keys, where they stand."""
        spec, wanted = self._layer.spec.attention, self._layer.spec.attention.query_key_norm
        after_rope = wanted is not None and wanted.after_rope
        pieces = 1 if wanted is not None and wanted.over == "width" else heads
        if norm is not None and not after_rope:
            write_norm(self._program, norm, x_mk, x_mk, pieces)
        if spec.rope is not None and self._turning is not None:
            self._program.rope(x_mk, heads, *self._turning, interleaved=spec.rope.interleaved)
        if norm is not None and after_rope:
            write_norm(self._program, norm, x_mk, x_mk, pieces)

    def _feed_forward(self, x_md: Tensor, out_md: Tensor, residual_md: Tensor | None) -> None:
        program, network = self._program, self._layer.feed_forward
        if not isinstance(network, DenseFeedForward):
            self._call(network, x_md, out_md, residual_md)
            return
        up_mf = program.buffer("up", network.spec.width)
        outs = {"feed_forward.up": up_mf}
        if network.gate is not None:
            outs["feed_forward.gate"] = gate_mf = program.buffer("gate", network.spec.width)
        self._linear(x_md, outs)
        first_mf, second_mf = (up_mf, None) if network.gate is None else (gate_mf, up_mf)
        program.activate(first_mf, second_mf, up_mf, network.spec.activation)
        self._linear(up_mf, {"feed_forward.down": out_md}, residual_md)

    def _linear(self, x_mk: Tensor, outs: dict[str, Tensor], residual_mn: Tensor | None = None) -> None:
        """The linear maps of these names, all of x; what adapters add comes behind."""
        products = []
        for name, out_mn in outs.items():
            linear = self._layer.get_submodule(name)
            assert isinstance(linear, QuantizedLinear)
            bias_n = None if linear.bias is None else linear.bias.detach().float()
            products.append(Product(linear.matrix, bias_n, out_mn, residual_mn))
        self._program.linear(self._program.quantize(x_mk), *products)
        adapt = self._adapt
        if adapt is not None:

            def add(tokens: int) -> None:
                for name, out_mn in outs.items():
                    adapt(f"{self._name}.{name}", x_mk[:tokens], out_mn[:tokens])

            self._program.call(add)

    def _call(self, experts: nn.Module | None, x_md: Tensor, out_md: Tensor, residual_md: Tensor | None) -> None:
        """Have the model choose experts and compute them, whose matrices are the kernels' too."""
        assert isinstance(experts, MixtureOfExperts)

        def run(tokens: int) -> None:
            fed_md = experts(x_md[None, :tokens])[0][0]
            out_md[:tokens] = fed_md if residual_md is None else residual_md[:tokens] + fed_md

        self._program.call(run)


def write_norm(program: Program, norm: nn.Module | None, x_mk: Tensor, out_mk: Tensor, pieces: int = 1) -> None:
    """The norm, if it is one, of each of so many equal pieces of a token."""
    if isinstance(norm, Normalise):
        weight, bias = (None if one is None else one.detach().float() for one in (norm.weight, norm.bias))
        kinds = {"centred": norm.kind.startswith("layer"), "plus_one": norm.kind == "rms_plus_one"}
        program.norm(x_mk, out_mk, weight, bias, norm.eps, pieces=pieces, **kinds)


def is_writable(layer: Block) -> bool:
    """Whether a program can express the layer, whose matrices must be quantized."""
    return _is_expressible(layer.spec) and _is_quantized(layer)


def _is_expressible(spec: LayerSpec) -> bool:
    attention, network = spec.mixer, spec.feed_forward
    if not isinstance(attention, Attention) or network is None:
        return False
    if isinstance(network, Experts) and network.router.capacity is not None:
        return False
    if (
        spec.cross is not None
        or spec.value_embedding
        or (spec.placement.startswith("parallel") and not spec.mixer_norm)
    ):
        return False
    norm = attention.query_key_norm
    return (
        attention.causal
        and attention.head_dim <= MOST_HEAD_DIM
        and attention.alibi is None
        and attention.clip is None
        and not (attention.head_gate or attention.output_gate)
        and (norm is None or norm.over != "each_head")
        and (isinstance(network, Experts) or _is_plain(network))
    )


def _is_plain(network: FeedForward) -> bool:
    return network.sharpness == 1 and network.limit is None and not network.up_offset


def _is_quantized(layer: Block) -> bool:
    parts = (layer.mixer, layer.feed_forward if isinstance(layer.feed_forward, DenseFeedForward) else None)
    linears = [one for part in parts if part is not None for one in part.children() if not isinstance(one, Normalise)]
    return all(isinstance(one, QuantizedLinear) for one in linears)
