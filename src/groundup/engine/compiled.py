"""A scheduled step, computed by the kernels: the layers of a quantized model as one program.

Every token of a step passes through the program at once, whatever text it belongs to: nothing is padded, and a text's
numbers do not depend on the others. What the program cannot express is left to `runner.py`; `is_compilable` tells.

Shape suffixes: m tokens, d model width, s sequences, p positions, f frequencies.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from groundup.engine.blocks import BLOCK_TOKENS, Copy
from groundup.engine.kernels import KeyValueBlocks, library
from groundup.engine.kernels.program import Program
from groundup.engine.layer_program import Adapt, LayerWriter, is_writable, write_norm
from groundup.engine.paged import at_once
from groundup.engine.runner import StepRunner, depends_on_the_longest
from groundup.engine.sequence import Chunk, Step
from groundup.engine.step_tables import step_ids, step_tables
from groundup.model.language_model import LanguageModel
from groundup.model.lora import Adapter
from groundup.model.positions import rope_tables
from groundup.model.rotary import Rope
from groundup.model.stack import Block

CacheType = Literal["float32", "bfloat16", "int8"]
CACHE_TYPES: dict[CacheType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}


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
            f"`cache_type` {wanted!r} is for quantized models that the kernels run; this one keeps keys in {own}"
        )
    return own


class CompiledRunner(StepRunner):
    """A quantized decoder whose layers are a program, and the blocks in which its sequences lie.

    blocks: all there are, since those of the host lie in the same memory. most_tokens: of one step.
    dtype: of keys and values, one of `CACHE_TYPES`.
    """

    def __init__(self, model: LanguageModel, blocks: int, most_tokens: int, dtype: torch.dtype) -> None:
        super().__init__(model)
        self._blocks, self._most_tokens = blocks, most_tokens
        self._key_values = [
            KeyValueBlocks.empty(blocks, spec.kv_heads, spec.head_dim, BLOCK_TOKENS, dtype)
            for spec in (layer.attention for layer in model.config.layers)
        ]
        self._plain = self._write(None)
        # The same with a stop behind each linear map, written when an adapter is first used.
        self._adaptable: _Written | None = None
        self._adapters_of_step: list[tuple[Adapter, Tensor]] = []

    @torch.no_grad()
    def run(self, step: Step) -> list[tuple[Chunk, Tensor]]:
        self._copy(step.copies)
        tables, written = step_tables(step.chunks, BLOCK_TOKENS), self._written_for(step.chunks)
        tokens = len(tables.positions_m)
        ids_m = torch.from_numpy(step_ids(step.chunks))
        positions_m = torch.from_numpy(tables.positions_m.astype(np.int64))
        written.enters_md[:tokens] = self.model.embed(ids_m[None], positions_m[None])[0]
        written.program.run(tables)
        hidden_md = self.model.leave(written.leaves_md[:tokens])
        return list(zip(step.chunks, hidden_md.split([chunk.length for chunk in step.chunks]), strict=True))

    def _copy(self, copies: list[Copy]) -> None:
        for group in at_once(copies, self._blocks):
            sources, targets = map(list, zip(*group, strict=True))
            for one in self._key_values:
                one.copy(sources, targets)

    def _written_for(self, chunks: list[Chunk]) -> "_Written":
        adapters = [chunk.sequence.adapter for chunk in chunks]
        present = dict.fromkeys(adapter for adapter in adapters if adapter is not None)
        if not present:
            self._adapters_of_step = []  # one that is dropped is not kept in memory by the last step that had it
            return self._plain
        number_m = np.repeat(np.arange(len(chunks)), [chunk.length for chunk in chunks])
        self._adapters_of_step = [
            (one, torch.from_numpy(np.flatnonzero(np.array([adapter is one for adapter in adapters])[number_m])))
            for one in present
        ]
        if self._adaptable is None:
            self._adaptable = self._write(self._adapt)
        return self._adaptable

    def _adapt(self, name: str, x_mk: Tensor, out_mn: Tensor) -> None:
        for adapter, rows in self._adapters_of_step:
            change = adapter.changes.get(name)
            if change is not None:
                out_mn.index_add_(0, rows, change.of(x_mk[rows]).to(out_mn.dtype))

    def _write(self, adapt: Adapt | None) -> "_Written":
        program, model = Program(self._most_tokens), self.model
        x_md = program.buffer("x", model.width)
        tables: dict[tuple[Rope, int], tuple[Tensor, Tensor]] = {}
        for number, (layer, key_values) in enumerate(zip(model.layers, self._key_values, strict=True)):
            assert isinstance(layer, Block)
            spec = layer.spec.attention
            if spec.rope is not None and (spec.rope, spec.head_dim) not in tables:
                rows = min(model.config.max_positions, self._blocks * BLOCK_TOKENS)
                tables[spec.rope, spec.head_dim] = _turning_tables(spec.rope, spec.head_dim, rows)
            turning = None if spec.rope is None else tables[spec.rope, spec.head_dim]
            LayerWriter(program, layer, f"layers.{number}", turning, key_values, adapt).write(x_md)
        leaves_md = x_md if model.final_norm is None else program.buffer("hidden", model.width)
        write_norm(program, model.final_norm, x_md, leaves_md)
        return _Written(program, x_md, leaves_md)


class _Written(NamedTuple):
    """The layers as a program, and the buffers of what enters and of what leaves them."""

    program: Program
    enters_md: Tensor
    leaves_md: Tensor


def is_compilable(model: LanguageModel) -> bool:
    """Whether the kernels are there and express all that is between the embedding and the head."""
    config = model.config
    if library.path() is None or model.device.type != "cpu":
        return False
    if config.residual_mix or config.induction is not None or config.ngram_buckets or config.relative_positions:
        return False
    return not depends_on_the_longest(model) and all(
        isinstance(layer, Block) and is_writable(layer) for layer in model.layers
    )


def _turning_tables(rope: Rope, head_dim: int, positions: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine, (p, f)."""
    tables = rope_tables(rope, head_dim, torch.arange(positions)[None], torch.float32)
    return tables.cosine[0, :, 0].contiguous(), tables.sine[0, :, 0].contiguous()
