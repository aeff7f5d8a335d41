"""A scheduled step, computed by the kernels: the layers of a model as one program.

Every token of a step passes through the program at once, whatever text it belongs to: nothing is padded, and a text's
numbers do not depend on the others. What the program cannot express is left to `runner.py`; `is_compilable` tells.

Shape suffixes: m tokens, d model width, s sequences, p positions, f frequencies.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from groundup.engine.blocks import BLOCK_TOKENS, blocks_for
from groundup.engine.cache_memory import memory_for
from groundup.engine.copies import Copy, at_once
from groundup.engine.head_program import HeadRunner
from groundup.engine.kernels import KeyValueBlocks, library
from groundup.engine.kernels.low_rank import AdaptedTokens
from groundup.engine.kernels.matrices import FLOATING
from groundup.engine.kernels.program import Product, Program
from groundup.engine.layer_program import LayerWriter, is_writable, key_value_shape
from groundup.engine.model_matrices import ModelMatrices, activation_dtype, are_readable, bias_of
from groundup.engine.norm_program import write_norm
from groundup.engine.offered import Lookups, Offered, is_offerable
from groundup.engine.runner import StepRunner, depends_on_the_longest
from groundup.engine.sequence import Chunk, Step
from groundup.engine.sight import windowed_layers
from groundup.engine.step_tables import StepMemory, step_ids
from groundup.engine.twin import computed_in
from groundup.model.language_model import LanguageModel
from groundup.model.lora import Adapter
from groundup.model.positions import rope_tables
from groundup.model.rotary import Rope
from groundup.model.specs import Attention, LatentAttention
from groundup.model.stack import Block
from groundup.quantize.convert import quantized_format

CacheType = Literal["float32", "bfloat16", "int8"]
CACHE_TYPES: dict[CacheType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}


def cache_dtype(model: LanguageModel, wanted: CacheType | None = None) -> torch.dtype:
    """The type in which keys and values are kept; by default the model's own, for quantized ones bfloat16.

    Raises ValueError if the model cannot have the one that is wanted.
    """
    if wanted is not None and wanted not in tuple(CACHE_TYPES):
        raise ValueError(f"`cache_type` must be one of {', '.join(CACHE_TYPES)}, not {wanted!r}")
    if is_compilable(model):
        own = activation_dtype(model)
        narrow = quantized_format(model) is not None or own == torch.bfloat16
        return CACHE_TYPES[wanted or ("bfloat16" if narrow else "float32")]
    own = computed_in(model)
    if wanted is not None and CACHE_TYPES[wanted] != own:
        raise ValueError(f"`cache_type` {wanted!r} is for models that the kernels run; this one keeps keys in {own}")
    return own


class CompiledRunner(StepRunner):
    """A decoder whose layers are a program, and the blocks in which its sequences lie.

    The model's floating weights are read where they lie, so that they must not change while texts are computed.

    blocks: all there are, since those of the host lie in the same memory. most_tokens: of one step.
    dtype: of keys and values, one of `CACHE_TYPES`. window_blocks: likewise for layers that see a window, if these have
    their own.
    """

    def __init__(
        self,
        model: LanguageModel,
        blocks: int,
        most_tokens: int,
        dtype: torch.dtype,
        window_blocks: int | None = None,
    ) -> None:
        super().__init__(model)
        self._blocks = blocks
        self._key_values = _empty_blocks(model, blocks, dtype, window_blocks)
        self._lookups = Lookups(model)
        longest = min(blocks, blocks_for(model.config.max_positions))
        self._memory = StepMemory(most_tokens, longest, BLOCK_TOKENS, windowed=window_blocks is not None)
        self._program = Program(most_tokens)
        self._matrices = ModelMatrices(model)
        self._offered = Offered(self._program, self._matrices, model)
        leaves_md = self._write()
        # What leaves the layers in a step of so many tokens. Made once: after the weights have passed through the
        # processor's caches, a slice of a tensor takes 40 µs.
        self._leaves = [leaves_md[:tokens] for tokens in range(most_tokens + 1)]
        self._head = HeadRunner(model, self._matrices, leaves_md)

    def run(self, step: Step) -> Tensor:
        self._copy(step.copies, are_windowed=False)
        self._copy(step.window_copies, are_windowed=True)
        adapters_m: list[Adapter | None] = []
        if any(chunk.sequence.adapter for chunk in step.chunks):
            adapters_m = [chunk.sequence.adapter for chunk in step.chunks for _ in range(chunk.length)]
        with self._applied(adapters_m) as adapted:
            return self._through(step.chunks, adapted)

    def logits(self, hidden_nd: Tensor, adapters: Sequence[Adapter | None]) -> Tensor:
        return self._head_logits(hidden_nd, adapters)

    def _head_logits(self, hidden_nd: Tensor, adapters: Sequence[Adapter | None]) -> Tensor:
        rows, most = len(adapters), self._head.most_rows
        if rows > most:
            firsts = range(0, rows, most)
            parts = [(hidden_nd[first : first + most], adapters[first : first + most]) for first in firsts]
            logits_nv = torch.cat([self._head_logits(*part).clone() for part in parts])
            self.peaks = None
            return logits_nv
        with self._applied(adapters) as adapted:
            self.peaks = self._head.peaks(adapted)
            # The layers leave the same tensor in each step of as many tokens.
            return self._head.logits(None if hidden_nd is self._leaves[rows] else hidden_nd, rows, adapted)

    def _applied(self, adapters_m: Sequence[Adapter | None]) -> AbstractContextManager[Sequence[AdaptedTokens]]:
        """Within it, what Python computes is adapted; programs are to be told what it yields."""
        return self.adapters.applied(adapters_m, self.model.device) if any(adapters_m) else nullcontext(())

    def _through(self, chunks: list[Chunk], adapted: Sequence[AdaptedTokens]) -> Tensor:
        """The final activations of all tokens, each of them a row of one call for the adapters."""
        ids, memory = step_ids(chunks), self._memory
        memory.fill(chunks)
        ngrams_md = self._lookups.ngrams(chunks, memory.positions_m)
        self._offered.tell(ids, memory.positions_m, ngrams_md, self._lookups.followers(chunks))
        self._program.run(memory, adapted)
        return self._leaves[len(ids)]

    def _copy(self, copies: Sequence[Copy], are_windowed: bool) -> None:
        for group in at_once(copies, self._blocks):
            sources, targets = map(list, zip(*group, strict=True))
            for one in self._key_values:
                if one.are_windowed == are_windowed:
                    one.copy(sources, targets)

    def _write(self) -> Tensor:
        """Write the layers; returns the buffer of what leaves them."""
        program, offered, model = self._program, self._offered, self.model
        x_md = program.buffer("x", model.width)
        offered.enter(x_md)
        tables: dict[tuple[Rope, int], tuple[Tensor, Tensor]] = {}
        for number, (layer, key_values) in enumerate(zip(model.layers, self._key_values, strict=True)):
            assert isinstance(layer, Block)
            spec = layer.spec.mixer
            assert isinstance(spec, Attention | LatentAttention)
            if spec.rope is not None and (spec.rope, spec.head_dim) not in tables:
                rows = min(model.config.max_positions, self._blocks * BLOCK_TOKENS)
                tables[spec.rope, spec.head_dim] = _turning_tables(spec.rope, spec.head_dim, rows)
            turning = None if spec.rope is None else tables[spec.rope, spec.head_dim]
            offered.mix(layer, number, x_md)
            LayerWriter(program, self._matrices, layer, f"layers.{number}", turning, key_values, offered).write(x_md)
        leaves_md = x_md if model.final_norm is None else program.buffer("hidden", model.width)
        write_norm(program, model.final_norm, x_md, leaves_md)
        leaves_md = self._leave(leaves_md)
        offered.point(leaves_md, model.head_matrix)
        return leaves_md

    def _leave(self, x_md: Tensor) -> Tensor:
        """Append `LanguageModel.leave`; returns the buffer of what the head is given."""
        program, narrowed, scale = self._program, self.model.embedding_out, self.model.config.logit_scale
        if narrowed is not None:
            out_md = program.buffer("narrowed", self.model.config.table_width)
            program.linear(x_md, Product(self._matrices.of(narrowed), bias_of(narrowed), out_md))
            program.adapt(x_md, {"embedding_out": out_md})
            x_md = out_md
        if scale is not None:
            program.call(lambda tokens: x_md[:tokens].mul_(scale))
        return x_md


def _empty_blocks(
    model: LanguageModel, blocks: int, dtype: torch.dtype, window_blocks: int | None
) -> list[KeyValueBlocks]:
    """Room for keys and values of each layer. Raises ValueError where there is no memory for it."""
    mixers = [layer.mixer for layer in model.config.layers]
    shapes = [key_value_shape(mixer) for mixer in mixers if isinstance(mixer, Attention | LatentAttention)]
    counts, windowed = [blocks] * len(shapes), set[int]()
    if window_blocks is not None:
        windowed = set(windowed_layers(model))
        counts = [window_blocks if layer in windowed else blocks for layer in range(len(shapes))]
    numbers = sum(count * heads * head_dim for count, (heads, head_dim) in zip(counts, shapes, strict=True))
    size_bytes = 2 * BLOCK_TOKENS * dtype.itemsize * numbers
    with memory_for("`cache_tokens` and `host_tokens`", blocks * BLOCK_TOKENS, size_bytes, model.device):
        return [
            KeyValueBlocks.empty(count, *shape, BLOCK_TOKENS, dtype, are_windowed=layer in windowed)
            for layer, (count, shape) in enumerate(zip(counts, shapes, strict=True))
        ]


def is_compilable(model: LanguageModel) -> bool:
    """Whether the kernels are there and express all that is between the embedding and the head."""
    if library.path() is None or model.device.type != "cpu" or activation_dtype(model) not in FLOATING:
        return False
    if model.config.relative_positions is not None or not is_offerable(model):
        return False
    if not are_readable([model.head_matrix, model.embedding_out]):
        return False
    return not depends_on_the_longest(model) and all(
        isinstance(layer, Block) and is_writable(layer) for layer in model.layers
    )


def _turning_tables(rope: Rope, head_dim: int, positions: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine, (p, f)."""
    tables = rope_tables(rope, head_dim, torch.arange(positions)[None], torch.float32)
    return tables.cosine[0, :, 0].contiguous(), tables.sine[0, :, 0].contiguous()
