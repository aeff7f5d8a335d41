"""Keys and values in blocks on the model's device, and the cache through which its layers read them where they lie.

Blocks after those that sequences hold lie in the host's memory; one behind the device's belongs to nobody: texts that
only fill up a step write to it.

Shape suffixes: m new tokens of all texts, h heads, j kv heads, k head dimension, p blocks, b tokens of a block.
"""

import math
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from groundup.engine.cache_memory import memory_for
from groundup.engine.copies import Copy, at_once
from groundup.engine.model_matrices import activation_dtype
from groundup.engine.paged_attention import AttentionTables, attend_to_blocks
from groundup.engine.sight import windowed_layers
from groundup.model.context import Visibility
from groundup.model.language_model import LanguageModel
from groundup.model.specs import Attention


class DeviceStore:
    """What the layers of a model remember, in its own type.

    window_blocks: for layers that see a window, if these have their own.
    Raises ValueError where there is no memory for it.
    """

    def __init__(
        self,
        model: LanguageModel,
        blocks: int,
        host_blocks: int,
        block_size: int,
        window_blocks: int | None = None,
    ) -> None:
        self.block_size, self.padding_block = block_size, blocks
        self.window_padding_block = window_blocks or 0
        self.has_windows = window_blocks is not None
        self._windowed = set(windowed_layers(model)) if self.has_windows else set()
        dtype, device = activation_dtype(model), model.device
        shapes = [(block_size, layer.attention.kv_heads, layer.attention.head_dim) for layer in model.config.layers]

        def memory(setting: str, counts: Items[int], place: torch.device, pinned: bool) -> list[Tensor]:
            numbers = 2 * sum(count * math.prod(shape) for count, shape in zip(counts, shapes, strict=True))
            with memory_for(setting, max(counts) * block_size, numbers * dtype.itemsize, place):
                # Zeros: what nobody has written to is multiplied by zero where a text ends within a block, which makes
                # nothing of any number but of one that is none.
                return [
                    torch.zeros((2, count, *shape), dtype=dtype, device=place, pin_memory=pinned)
                    for count, shape in zip(counts, shapes, strict=True)
                ]

        is_far = device.type == "cuda" and host_blocks > 0
        self._others = [layer for layer in range(len(shapes)) if layer not in self._windowed]
        own = [self.window_padding_block if layer in self._windowed else blocks for layer in range(len(shapes))]
        self._device = memory("`cache_tokens`", [count + 1 for count in own], device, pinned=False)
        self._host = memory("`host_tokens`", [host_blocks] * len(shapes), torch.device("cpu"), pinned=is_far)

    def copy(self, copies: Items[Copy], window_copies: Items[Copy] = ()) -> None:
        """Copy blocks one after the other, before a step writes to them."""
        self._copy(copies, self.padding_block, self._others)
        self._copy(window_copies, self.window_padding_block, self._windowed)

    def cache(self, tables: AttentionTables, windowed: AttentionTables | None = None) -> "StepBlocks":
        """The model's cache for one step. windowed: for the layers that have blocks of windows."""
        layers = []
        for layer, (keys_pbjk, values_pbjk) in enumerate(self._device):
            own = windowed if windowed is not None and layer in self._windowed else tables
            layers.append(LayerBlocks(keys_pbjk, values_pbjk, own))
        return StepBlocks(layers, tables.most_keys)

    def _copy(self, copies: Items[Copy], blocks: int, layers: Iterable[int]) -> None:
        """Of layers that have so many blocks on the device."""
        for group in at_once(copies, blocks):
            (sources, froms), (targets, tos) = (
                (self._host, [block - blocks for block in side]) if side[0] >= blocks else (self._device, list(side))
                for side in zip(*group, strict=True)
            )
            for layer in layers:
                target = targets[layer]
                target[:, tos] = sources[layer][:, froms].to(target.device)


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
