"""A model's step in few calls: what is written once, kernel by kernel, is run for any tokens up to its size.

Buffers have a name and a width, and room for as many tokens as there can be. Asking for one again gives the same one,
so that layers of one shape work in the same memory. A run checks what is new in it; all else was checked as it was
written (`program.py`).

Shape suffixes: m tokens, k channels.
"""

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from groundup.engine.kernels import jobs, library
from groundup.engine.kernels.checks import address, require_shape
from groundup.engine.kernels.low_rank import AdaptedMaps, AdaptedTokens
from groundup.engine.kernels.tables import Numbers, Tables


class Script:
    """Instructions on buffers of up to `tokens` tokens, and Python's own work between them, in the order of writing."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        # Positions that every table has rows for, and slots that are in all blocks, and in all of windows.
        self._positions: float = math.inf
        self._slots: float = math.inf
        self._window_slots: float = math.inf
        # What is done in turn: instructions that follow each other are one call of the library.
        self._parts: list[list[jobs.Instruction] | Callable[[int], object]] = []
        self._written: list[ctypes.Array[jobs.Instruction] | Callable[[int], object]] | None = None
        self._buffers: dict[tuple[str, int], Tensor] = {}
        self._has_numbers = False
        self._maps = AdaptedMaps()
        # What instructions point to lives as long as they do.
        self._kept: list[Any] = []

    def buffer(self, name: str, width: int) -> Tensor:
        """float32 (tokens, width)."""
        if (name, width) not in self._buffers:
            self._buffers[name, width] = torch.empty(self.tokens, width)
        return self._buffers[name, width]

    def buffers(self, count: int, width: int) -> Tensor:
        """float32 (count, tokens, width), new ones each time."""
        return torch.empty(count, self.tokens, width)

    def numbers(self, below: int, count: int = 1, least: int = 0) -> Numbers:
        """Room for so many numbers of each token, zeros at first."""
        self._has_numbers = True
        return Numbers(count, self.tokens, least, below)

    def call(self, function: Callable[[int], object]) -> None:
        """Have Python work on the buffers: what is told is how many tokens there are."""
        self._parts.append(function)
        self._written = None

    def run(self, tables: Tables, adapted: Sequence[AdaptedTokens] = ()) -> None:
        """Do all of it for the tokens that the tables are of; what goes in must stand in its buffer.

        adapted: the adapters of some tokens; places are those of this run.
        """
        if tables.tokens > self.tokens:
            raise ValueError(f"{tables.tokens} tokens do not fit a program for {self.tokens}")
        if tables.end_position > self._positions:
            raise ValueError(f"a token stands beyond the {self._positions} positions that there are tables for")
        if tables.end_slot > self._slots:
            raise ValueError(f"a token's keys lie beyond the {self._slots} slots that there are")
        if tables.end_window_slot == 0 and self._window_slots < math.inf:
            raise ValueError("there are no tables of the blocks of windows, which some layer has")
        if tables.end_window_slot > self._window_slots:
            raise ValueError(f"a token's keys lie beyond the {self._window_slots} slots that there are of windows")
        self._perform(adapted, tables.tokens, tables.sequences, tables.table_stride, *tables.pointers)

    def run_rows(self, rows: int, adapted: Sequence[AdaptedTokens] = ()) -> None:
        """Do all of it for so many rows, which belong to no text: for programs without rope, keys and values."""
        bounds = self._positions, self._slots, self._window_slots
        if rows > self.tokens or min(bounds) != math.inf or self._has_numbers:
            raise ValueError(f"{rows} rows do not fit a program for {self.tokens}, or it wants to know their places")
        self._perform(adapted, rows, 0, 0, *[None] * 7)

    def _perform(self, adapted: Sequence[AdaptedTokens], tokens: int, *about: int | None) -> None:
        """about: the next fields of a `ProgramJob`."""
        if self._written is None:
            self._written = [part if callable(part) else (jobs.Instruction * len(part))(*part) for part in self._parts]
        fields = self._maps.fields(adapted, tokens) if adapted else None
        more = (None, 0) if fields is None else (ctypes.addressof(fields), len(fields))
        for part in self._written:
            if callable(part):
                part(tokens)
            else:
                library.call("program", jobs.ProgramJob(ctypes.addressof(part), len(part), tokens, *about, *more))

    def _bound_slots(self, are_windowed: bool, slots: int) -> None:
        """Some layer has no more."""
        if are_windowed:
            self._window_slots = min(self._window_slots, slots)
        else:
            self._slots = min(self._slots, slots)

    def _append(self, job: Any, *kept: Any, count: int = 1) -> None:
        """The next instruction: a job, or an array of so many of a kind. kept: what it points to."""
        kind = job._type_ if isinstance(job, ctypes.Array) else type(job)
        operation = jobs.OPERATIONS.index(kind)
        instruction = jobs.Instruction(operation, ctypes.addressof(job), count)
        if self._parts and isinstance(self._parts[-1], list):
            self._parts[-1].append(instruction)
        else:
            self._parts.append([instruction])
        self._kept.append((job, kept))
        self._written = None

    def _require_rows(self, name: str, x_mk: Tensor, width: int | None = None) -> None:
        """That it is a buffer of this program: as many rows, contiguous float32."""
        require_shape(name, x_mk, (self.tokens, x_mk.shape[1] if width is None else width))
        address(name, x_mk)
