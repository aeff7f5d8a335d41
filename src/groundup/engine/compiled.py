"""A scheduled step, computed by the kernels: the layers of a quantized model as one program.

Every token of a step passes through the program at once, whatever text it belongs to: nothing is padded, and a text's
numbers do not depend on the others. What the program cannot express is left to `runner.py`; `is_compilable` tells.

Shape suffixes: m tokens, d model width, s sequences, p positions, f frequencies.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from groundup.engine.blocks import BLOCK_TOKENS, Copy
from groundup.engine.kernels import KeyValueBlocks, library
from groundup.engine.kernels.program import Program
from groundup.engine.layer_program import Adapt, LayerWriter, is_writable, key_value_shape
from groundup.engine.norm_program import write_norm
from groundup.engine.offered import Lookups, Offered, is_offerable
from groundup.engine.paged import at_once
from groundup.engine.runner import StepRunner, depends_on_the_longest
from groundup.engine.sequence import Chunk, Step
from groundup.engine.step_tables import step_ids, step_tables
from groundup.model.language_model import LanguageModel
from groundup.model.lora import Adapter
from groundup.model.positions import rope_tables
from groundup.model.rotary import Rope
from groundup.model.specs import Attention, LatentAttention
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
            KeyValueBlocks.empty(blocks, *key_value_shape(attention), BLOCK_TOKENS, dtype)
            for attention in (layer.mixer for layer in model.config.layers)
            if isinstance(attention, Attention | LatentAttention)
        ]
        self._lookups = Lookups(model)
        self._plain = self._write(None)
        # The same with a stop behind each linear map, written when an adapter is first used.
        self._adaptable: _Written | None = None
        self._adapters_of_step: Sequence[tuple[Adapter, Tensor | None]] = ()

    @torch.no_grad()
    def run(self, step: Step) -> list[tuple[Chunk, Tensor]]:
        self._copy(step.copies)
        adapters_m = [chunk.sequence.adapter for chunk in step.chunks for _ in range(chunk.length)]
        with self.adapters.applied(adapters_m, self.model.device) as self._adapters_of_step:
            hidden_md = self._through(step.chunks)
        return list(zip(step.chunks, hidden_md.split([chunk.length for chunk in step.chunks]), strict=True))

    def _through(self, chunks: list[Chunk]) -> Tensor:
        """The final activations of all tokens, each of them a row of one call for the adapters."""
        tables, written = step_tables(chunks, BLOCK_TOKENS), self._written_for_step()
        ids_m, positions_m = torch.from_numpy(step_ids(chunks)), torch.from_numpy(tables.positions_m).long()
        tokens = len(ids_m)
        entered_md = self.model.embed(ids_m[None], positions_m[None])[0]
        written.enters_md[:tokens] = entered_md
        ngrams_md, followers_nm = self._lookups.ngrams(chunks, positions_m), self._lookups.followers(chunks)
        written.offered.tell(ids_m, entered_md, ngrams_md, followers_nm)
        written.program.run(tables)
        return self.model.leave(written.leaves_md[:tokens])

    def _copy(self, copies: list[Copy]) -> None:
        for group in at_once(copies, self._blocks):
            sources, targets = map(list, zip(*group, strict=True))
            for one in self._key_values:
                one.copy(sources, targets)

    def _written_for_step(self) -> "_Written":
        if not self._adapters_of_step:
            return self._plain
        if self._adaptable is None:
            self._adaptable = self._write(self._adapt)
        return self._adaptable

    def _adapt(self, name: str, x_mk: Tensor, out_mn: Tensor) -> None:
        for adapter, rows in self._adapters_of_step:
            change = adapter.changes.get(name)
            if change is None:
                continue
            if rows is None:
                out_mn += change.of(x_mk)
            else:
                out_mn.index_add_(0, rows, change.of(x_mk[rows]).to(out_mn.dtype))

    def _write(self, adapt: Adapt | None) -> "_Written":
        program, model = Program(self._most_tokens), self.model
        x_md, offered = program.buffer("x", model.width), Offered(program, model)
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
            LayerWriter(program, layer, f"layers.{number}", turning, key_values, offered, adapt).write(x_md)
        leaves_md = x_md if model.final_norm is None else program.buffer("hidden", model.width)
        write_norm(program, model.final_norm, x_md, leaves_md)
        offered.point(leaves_md, model.head_matrix)
        return _Written(program, x_md, leaves_md, offered)


class _Written(NamedTuple):
    """The layers as a program, and the buffers of what enters and of what leaves them."""

    program: Program
    enters_md: Tensor
    leaves_md: Tensor
    offered: Offered


def is_compilable(model: LanguageModel) -> bool:
    """Whether the kernels are there and express all that is between the embedding and the head."""
    config = model.config
    if library.path() is None or model.device.type != "cpu":
        return False
    if config.relative_positions is not None or not is_offerable(model):
        return False
    return not depends_on_the_longest(model) and all(
        isinstance(layer, Block) and is_writable(layer) for layer in model.layers
    )


def _turning_tables(rope: Rope, head_dim: int, positions: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine, (p, f)."""
    tables = rope_tables(rope, head_dim, torch.arange(positions)[None], torch.float32)
    return tables.cosine[0, :, 0].contiguous(), tables.sine[0, :, 0].contiguous()
