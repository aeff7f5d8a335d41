"""What adapters add to the maps of a program, in the layout that its kernels read.

Shape suffixes: i inputs, r rank, o outputs.
"""

import ctypes
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from groundup.engine.kernels import jobs
from groundup.engine.kernels.checks import address, require_shape, round_up
from groundup.model.lora import Adapter, LowRank, LowRankTable

# See jobs.h.
RANK_MULTIPLE, OUTPUT_MULTIPLE, PANEL = 4, 64, 16
# An adapter and the tokens of a run that have it: their places, int64, or None for all.
AdaptedTokens = tuple[Adapter, Tensor | None]


class MapShape(NamedTuple):
    """Of a linear map, or of a table with as many rows as there are inputs."""

    inputs: int
    outputs: int
    is_table: bool


class AdaptedMaps:
    """The maps of a program that adapters may change, by numbers, and the adapters that were packed for them."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        # Those of one input, which are adapted together.
        self._groups: list[Mapping[str, MapShape]] = []
        # Adapters that nobody has any more are forgotten.
        self._packed: WeakKeyDictionary[Adapter, _Packed] = WeakKeyDictionary()

    def add(self, maps: Mapping[str, MapShape]) -> list[int]:
        """Maps of one input; returns their numbers. Raises ValueError for one that has another shape elsewhere."""
        for group in self._groups:
            for name in group.keys() & maps.keys():
                if group[name] != maps[name]:
                    raise ValueError(f"map `{name}` has shape {tuple(group[name])}, not {tuple(maps[name])}")
        self._groups.append({name: shape for name, shape in maps.items() if name not in self._numbers})
        self._packed.clear()
        return [self._numbers.setdefault(name, len(self._numbers)) for name in maps]

    def fields(self, adapted: Sequence[AdaptedTokens], tokens: int) -> ctypes.Array[jobs.AdaptedTokensFields]:
        """Of a run for so many tokens. Raises ValueError for an adapter of other shapes than the maps."""
        fields = _array_type(len(adapted))()
        for field, (adapter, places) in zip(fields, adapted, strict=True):
            if adapter not in self._packed:
                self._packed[adapter] = _Packed(adapter, self._numbers, self._groups)
            field.changes = self._packed[adapter].address
            field.tokens = address("tokens", places, torch.int64)
            field.count = tokens if places is None else len(places)
        return fields


class _Packed:
    """What an adapter adds to each map, in one piece of memory, in the order in which it is read."""

    def __init__(self, adapter: Adapter, numbers: Mapping[str, int], groups: Sequence[Mapping[str, MapShape]]) -> None:
        self._fields = (jobs.LowRankFields * len(numbers))()
        self.address = ctypes.addressof(self._fields)
        ordered: list[tuple[jobs.LowRankFields, str, Tensor]] = []
        for group in groups:
            pairs = [
                (self._fields[numbers[name]], _packed(name, adapter.changes[name], shape))
                for name, shape in group.items()
                if name in adapter.changes
            ]
            ordered += [(fields, "down", down) for fields, (down, _) in pairs]
            ordered += [(fields, "up", up) for fields, (_, up) in pairs]
            for fields, (_, up) in pairs:
                fields.rank = up.shape[1]
        nothing = torch.empty(0, dtype=torch.uint8)
        self._memory = torch.cat([nothing, *(matrix.flatten().view(torch.uint8) for _, _, matrix in ordered)])
        place = self._memory.data_ptr()
        for fields, side, matrix in ordered:
            setattr(fields, side, place)
            setattr(fields, f"{side}_bits", 8 * matrix.itemsize)
            place += matrix.nbytes


def _packed(name: str, change: LowRank | LowRankTable, shape: MapShape) -> tuple[Tensor, Tensor]:
    """`down` and `up` as `LowRank` of jobs.h has them."""
    down_ri, up_or = (each.float() for each in change)
    require_shape(f"down of {name}", down_ri, (len(down_ri), shape.inputs))
    require_shape(f"up of {name}", up_or, (shape.outputs, len(down_ri)))
    down_ri = _padded(down_ri, RANK_MULTIPLE, PANEL)
    up_or = _padded(up_or, OUTPUT_MULTIPLE, RANK_MULTIPLE)
    up = up_or.unflatten(0, (-1, PANEL)).transpose(1, 2)
    if shape.is_table:
        return down_ri.T, _narrow(up)
    return _narrow(down_ri.unflatten(0, (-1, RANK_MULTIPLE)).unflatten(2, (-1, PANEL)).transpose(1, 2)), _narrow(up)


def _narrow(matrix: Tensor) -> Tensor:
    """In bfloat16 where that loses nothing, as of a file that has it so: one token waits for these bytes alone."""
    narrow = matrix.bfloat16()
    return narrow if torch.equal(narrow.float(), matrix) else matrix


def _padded(matrix: Tensor, rows_multiple: int, columns_multiple: int) -> Tensor:
    """With zeros behind."""
    rows, columns = matrix.shape
    more_rows, more_columns = round_up(rows, rows_multiple) - rows, round_up(columns, columns_multiple) - columns
    return F.pad(matrix, (0, more_columns, 0, more_rows))


@functools.cache
def _array_type(length: int) -> type[ctypes.Array[jobs.AdaptedTokensFields]]:
    """ctypes makes types anew each time that nobody holds them."""
    return jobs.AdaptedTokensFields * length
