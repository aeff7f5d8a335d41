"""A scheduled step, computed by the kernels: the layers of a quantised model as one program.

Every token of a step passes through the program at once, whatever text it belongs to: nothing is padded, and a text's
numbers do not depend on the others. What the program cannot express is left to `runner.py`; `is_compilable` tells.

Shape suffixes: m tokens, d model width, s sequences, p positions, f frequencies.
"""

from collections.abc import Callable
from itertools import chain
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from groundup.engine.blocks import BLOCK_TOKENS
from groundup.engine.kernels import MOST_HEAD_DIM, KeyValueBlocks, library
from groundup.engine.kernels.program import Product, Program, StepTables
from groundup.engine.runner import Runner, StepRunner, depends_on_the_longest
from groundup.engine.scheduler import Chunk, Step
from groundup.model.attention import SelfAttention
from groundup.model.experts import MixtureOfExperts
from groundup.model.feedforward import DenseFeedForward
from groundup.model.language_model import LanguageModel
from groundup.model.parts import Normalise
from groundup.model.positions import rope_tables
from groundup.model.rotary import Rope
from groundup.model.specs import Attention, Experts, FeedForward, LayerSpec
from groundup.model.stack import Block
from groundup.quantize.modules import QuantisedLinear

CacheType = Literal["float32", "bfloat16", "int8"]
CACHE_TYPES: dict[CacheType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}


def runner_of(model: LanguageModel, blocks: int, most_tokens: int, dtype: torch.dtype) -> StepRunner:
    """What computes the model's steps: the kernels if they can, else the model itself.

    dtype: of keys and values, one that `cache_dtype` gives.
    """
    return CompiledRunner(model, blocks, most_tokens, dtype) if is_compilable(model) else Runner(model, blocks)


def cache_dtype(model: LanguageModel, wanted: CacheType | None = None) -> torch.dtype:
    """The type in which keys and values are kept; by default the model's own, and bfloat16 where the kernels run it.

    Raises ValueError if the model cannot have the one that is wanted.
    """
    if wanted is not None and wanted not in CACHE_TYPES:
        raise ValueError(f"`cache_type` must be one of {', '.join(CACHE_TYPES)}, not {wanted!r}")
    if is_compilable(model):
        return CACHE_TYPES[wanted or "bfloat16"]
    own = model.compute_dtype or model.embedding.dtype
    if wanted is not None and CACHE_TYPES[wanted] != own:
        raise ValueError(
            f"`cache_type` {wanted!r} is for quantised models that the kernels run; this one keeps keys in {own}"
        )
    return own


class CompiledRunner(StepRunner):
    """A quantised decoder whose layers are a program, and the blocks in which its sequences lie.

    most_tokens: of one step. dtype: of keys and values, one of `CACHE_TYPES`.
    """

    def __init__(self, model: LanguageModel, blocks: int, most_tokens: int, dtype: torch.dtype) -> None:
        super().__init__(model)
        self._program = Program(most_tokens)
        self._x_md = self._program.buffer("x", model.width)
        self._hidden_md = self._program.buffer("hidden", model.width)
        self._key_values: list[KeyValueBlocks] = []
        tables: dict[tuple[Rope, int], tuple[Tensor, Tensor]] = {}
        for layer in model.layers:
            assert isinstance(layer, Block)
            spec = layer.spec.attention
            key_values = KeyValueBlocks.empty(blocks, spec.kv_heads, spec.head_dim, BLOCK_TOKENS, dtype)
            self._key_values.append(key_values)
            if spec.rope is not None and (spec.rope, spec.head_dim) not in tables:
                rows = min(model.config.max_positions, blocks * BLOCK_TOKENS)
                tables[spec.rope, spec.head_dim] = _turning_tables(spec.rope, spec.head_dim, rows)
            turning = None if spec.rope is None else tables[spec.rope, spec.head_dim]
            _LayerWriter(self._program, layer, turning, key_values).write(self._x_md)
        write_norm(self._program, model.final_norm, self._x_md, self._hidden_md)

    @torch.no_grad()
    def run(self, step: Step) -> list[tuple[Chunk, Tensor]]:
        self._copy(step)
        tables = step_tables(step.chunks)
        ids = chain.from_iterable(
            chunk.sequence.tokens[chunk.start : chunk.start + chunk.length] for chunk in step.chunks
        )
        ids_m = torch.from_numpy(np.fromiter(ids, dtype=np.int64, count=len(tables.positions_m)))
        positions_m = torch.from_numpy(tables.positions_m.astype(np.int64))
        self._x_md[: len(ids_m)] = self.model.embed(ids_m[None], positions_m[None])[0]
        self._program.run(tables)
        hidden_md = self.model.leave(self._hidden_md[: len(ids_m)])
        return list(zip(step.chunks, hidden_md.split([chunk.length for chunk in step.chunks]), strict=True))

    def _copy(self, step: Step) -> None:
        if step.copies:
            sources, targets = map(list, zip(*step.copies, strict=True))
            for one in self._key_values:
                one.copy(sources, targets)


def step_tables(chunks: list[Chunk]) -> StepTables:
    """Where the tokens of these chunks stand, one chunk behind the other."""
    starts_s = np.array([chunk.start for chunk in chunks], dtype=np.int32)
    lengths_s = np.array([chunk.length for chunk in chunks], dtype=np.int32)
    ends = [chunk.sequence.table.dropped + len(chunk.sequence.table.blocks) for chunk in chunks]
    block_table = np.zeros((len(chunks), max(ends)), dtype=np.int32)
    for row, chunk, end in zip(block_table, chunks, ends, strict=True):
        row[chunk.sequence.table.dropped : end] = chunk.sequence.table.blocks
    query_starts = np.zeros(len(chunks) + 1, dtype=np.int32)
    np.cumsum(lengths_s, out=query_starts[1:])
    sequence_m = np.repeat(np.arange(len(chunks)), lengths_s)
    positions_m = np.arange(query_starts[-1], dtype=np.int32) + (starts_s - query_starts[:-1])[sequence_m]
    blocks_m = block_table[sequence_m, positions_m // BLOCK_TOKENS].astype(np.int64)
    slots_m = blocks_m * BLOCK_TOKENS + positions_m % BLOCK_TOKENS
    return StepTables(positions_m, slots_m, block_table, query_starts, starts_s + lengths_s)


def is_compilable(model: LanguageModel) -> bool:
    """Whether the kernels are there and express all that is between the embedding and the head."""
    config = model.config
    if library.path() is None or model.device.type != "cpu":
        return False
    if config.residual_mix or config.induction is not None or config.ngram_buckets or config.relative_positions:
        return False
    return not depends_on_the_longest(model) and all(
        isinstance(layer, Block) and _is_layer_compilable(layer.spec) and _is_quantised(layer) for layer in model.layers
    )


def _is_layer_compilable(spec: LayerSpec) -> bool:
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


def _is_quantised(layer: Block) -> bool:
    parts = (layer.mixer, layer.feed_forward if isinstance(layer.feed_forward, DenseFeedForward) else None)
    linears = [one for part in parts if part is not None for one in part.children() if not isinstance(one, Normalise)]
    return all(isinstance(one, QuantisedLinear) for one in linears)


class _LayerWriter:
    """Writes one layer, as `Block.forward` has it. Sums are made where they stand: x becomes the layer's output."""

    def __init__(
        self, program: Program, layer: Block, turning: tuple[Tensor, Tensor] | None, key_values: KeyValueBlocks
    ) -> None:
        self._program, self._layer, self._turning, self._key_values = program, layer, turning, key_values

    def write(self, x_md: Tensor) -> None:
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
        into = (mixer.query, query_mk), (mixer.key, key_mk), (mixer.value, value_mk)
        program.linear(program.quantise(x_md), *(_product(linear, out_mk) for linear, out_mk in into))
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
        program.linear(program.quantise(query_mk), _product(mixer.output, out_md, residual_md))

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
        products = [_product(network.up, up_mf)]
        if network.gate is not None:
            gate_mf = program.buffer("gate", network.spec.width)
            products.append(_product(network.gate, gate_mf))
        program.linear(program.quantise(x_md), *products)
        first_mf, second_mf = (up_mf, None) if network.gate is None else (gate_mf, up_mf)
        program.activate(first_mf, second_mf, up_mf, network.spec.activation)
        program.linear(program.quantise(up_mf), _product(network.down, out_md, residual_md))

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


def _product(linear: nn.Module, out_mn: Tensor, residual_mn: Tensor | None = None) -> Product:
    assert isinstance(linear, QuantisedLinear)
    bias_n = None if linear.bias is None else linear.bias.detach().float()
    return Product(linear.matrix, bias_n, out_mn, residual_mn)


def _turning_tables(rope: Rope, head_dim: int, positions: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine, (p, f)."""
    tables = rope_tables(rope, head_dim, torch.arange(positions)[None], torch.float32)
    return tables.cosine[0, :, 0].contiguous(), tables.sine[0, :, 0].contiguous()
