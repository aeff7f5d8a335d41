"""Keys and values in blocks on the model's device, and the cache through which its layers read them where they lie.

Blocks after those that sequences hold lie in the host's memory; one behind the device's belongs to nobody: texts that
only fill up a step write to it.

Shape suffixes: m new tokens of all texts, h heads, j kv heads, k head dimension, p blocks, b tokens of a block.
"""

import math
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from groundup.engine.blocks import Copy
from groundup.engine.cache_memory import memory_for
from groundup.engine.paged import at_once
from groundup.engine.paged_attention import AttentionTables, attend_to_blocks
from groundup.model.context import Visibility
from groundup.model.language_model import LanguageModel
from groundup.model.specs import Attention


class DeviceStore:
    """What the layers of a model remember, in its own type. Raises ValueError where there is no memory for it."""

    def __init__(self, model: LanguageModel, blocks: int, host_blocks: int, block_size: int) -> None:
        self.block_size, self.padding_block = block_size, blocks
        self._blocks = blocks
        dtype, device = model.compute_dtype or model.embedding.dtype, model.device

        shapes = [(block_size, layer.attention.kv_heads, layer.attention.head_dim) for layer in model.config.layers]

        def memory(setting: str, count: int, place: torch.device, pinned: bool) -> list[Tensor]:
            numbers = 2 * count * sum(map(math.prod, shapes))
            with memory_for(setting, count * block_size, numbers * dtype.itemsize, place):
                # Zeros: what nobody has written to is multiplied by zero where a text ends within a block, which makes
                # nothing of any number but of one that is none.
                return [
                    torch.zeros((2, count, *shape), dtype=dtype, device=place, pin_memory=pinned) for shape in shapes
                ]

        is_far = device.type == "cuda" and host_blocks > 0
        self._device = memory("`cache_tokens`", blocks + 1, device, pinned=False)
        self._host = memory("`host_tokens`", host_blocks, torch.device("cpu"), pinned=is_far)

    def copy(self, copies: Items[Copy]) -> None:
        """Copy blocks one after the other, before a step writes to them."""
        for group in at_once(copies, self._blocks):
            sources, froms = self._memories([copy.source for copy in group])
            targets, tos = self._memories([copy.target for copy in group])
            for source, target in zip(sources, targets, strict=True):
                target[:, tos] = source[:, froms].to(target.device)

    def cache(self, tables: AttentionTables) -> "StepBlocks":
        """The model's cache for one step."""
        return StepBlocks([LayerBlocks(memory[0], memory[1], tables) for memory in self._device], tables.most_keys)

    def _memories(self, blocks: Items[int]) -> tuple[list[Tensor], list[int]]:
        """The memories of all layers in which these blocks lie, and their places there."""
        on_host = blocks[0] >= self._blocks
        return self._host if on_host else self._device, [block - on_host * self._blocks for block in blocks]


@dataclass
class LayerBlocks:
    """One layer's part of a step in which all texts are one row: a `LayerCache`."""

    keys_pbjk: Tensor
    values_pbjk: Tensor
    tables: AttentionTables
    state: tuple[Tensor, ...] | None = None
    load: Tensor | None = None

    def attend(
        self,
        spec: Attention,
        q_bhtk: Tensor,
        k_bhtk: Tensor,
        v_bhtk: Tensor,
        visible: Visibility,
        sinks_h: Tensor | None = None,
        bias_hts: Tensor | None = None,
    ) -> Tensor:
        """Write the new keys and values into their slots; each text's queries see its blocks, whatever `visible` says.

        Raises ValueError where something is to be added to the scores.
        """
        if bias_hts is not None:
            raise ValueError("nothing can be added to the scores of attention to blocks")
        for memory, new_bhtk in ((self.keys_pbjk, k_bhtk), (self.values_pbjk, v_bhtk)):
            memory.flatten(0, 1).index_copy_(0, self.tables.slots_m, new_bhtk[0].transpose(0, 1))
        q_mhk = q_bhtk[0].transpose(0, 1)
        out_mhk = attend_to_blocks(spec, q_mhk, self.keys_pbjk, self.values_pbjk, self.tables, sinks_h)
        return out_mhk.transpose(0, 1)[None]

    def memory(self, compute: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """What is computed now: there is no source."""
        return compute()


@dataclass
class StepBlocks:
    """The model's `Cache` for one step. length: of the longest text, at least."""

    layers: list[LayerBlocks]
    length: int

    def take_ids(self, input_ids: Tensor) -> Tensor:
        """The new tokens alone: models that look at others are computed elsewhere."""
        return input_ids
