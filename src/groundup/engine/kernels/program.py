"""A model's step in few calls: a program is written once, kernel by kernel, and run for any tokens up to its size.

Buffers have a name and a width, and room for as many tokens as the program is written for. Asking for one again gives
the same one, so that layers of one shape work in the same memory. Everything is checked as it is written; a run checks
what is new in it.

Shape suffixes: m tokens, k channels, s sequences, p positions, f frequencies.
"""

import ctypes
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from groundup.engine.kernels import (
    ACTIVATIONS,
    Activations,
    KeyValueBlocks,
    jobs,
    library,
    matrix_fields,
)
from groundup.engine.kernels.checks import address, require_shape
from groundup.model.specs import Activation
from groundup.quantize.matrix import QuantizedMatrix

# Products that one instruction can share out: see program.h.
MOST_LINEARS = 8


class StepTables(NamedTuple):
    """What a run is about.

    positions_m: int32, the place of each token in its text. slots_m: int64, where its keys and values go.
    block_table: int32 (s, most blocks). query_starts: int32 (s + 1). key_counts_s: int32. See `kernels.attend`.
    """

    positions_m: npt.NDArray[np.int32]
    slots_m: npt.NDArray[np.int64]
    block_table: npt.NDArray[np.int32]
    query_starts: npt.NDArray[np.int32]
    key_counts_s: npt.NDArray[np.int32]


class Product(NamedTuple):
    """out = x Wᵀ + bias + residual; the residual may be `out` itself."""

    matrix: QuantizedMatrix
    bias_n: Tensor | None
    out_mn: Tensor
    residual_mn: Tensor | None = None


class Program:
    """Instructions for up to `tokens` tokens, in the order in which its methods are called."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        # Positions that every table has rows for, and slots that are in all blocks.
        self._positions: float = math.inf
        self._slots: float = math.inf
        # What is done in turn: instructions that follow each other are one call of the library.
        self._parts: list[list[jobs.Instruction] | Callable[[int], None]] = []
        self._written: list[ctypes.Array[jobs.Instruction] | Callable[[int], None]] | None = None
        self._buffers: dict[tuple[str, int], Tensor] = {}
        self._quantized: dict[int, Activations] = {}
        # What instructions point to lives as long as they do.
        self._kept: list[Any] = []

    def buffer(self, name: str, width: int) -> Tensor:
        """float32 (tokens, width)."""
        if (name, width) not in self._buffers:
            self._buffers[name, width] = torch.empty(self.tokens, width)
        return self._buffers[name, width]

    def quantize(self, x_mk: Tensor) -> Activations:
        """The tokens as int8; the next call with as many channels writes over them."""
        self._require_rows("x", x_mk)
        columns = x_mk.shape[1]
        if columns not in self._quantized:
            self._quantized[columns] = Activations.empty(self.tokens, columns)
        made = self._quantized[columns]
        self._append(jobs.QuantizeJob(x_mk.data_ptr(), columns, columns, made.fields()), x_mk, made)
        return made

    def linear(self, x: Activations, *products: Product) -> None:
        """Products of the same activations, shared out among the threads as one."""
        if not 1 <= len(products) <= MOST_LINEARS:
            raise ValueError(f"an instruction holds 1 to {MOST_LINEARS} products, not {len(products)}")
        for each in products:
            if x.columns != each.matrix.columns:
                raise ValueError(f"a matrix of {each.matrix.columns} columns cannot be multiplied by {x.columns}")
            for name, rows in (("out", each.out_mn), ("residual", each.residual_mn)):
                if rows is not None:
                    self._require_rows(name, rows, each.matrix.rows)
            if each.bias_n is not None:
                require_shape("bias", each.bias_n, (each.matrix.rows,))
        fields = [
            jobs.LinearJob(
                matrix_fields(each.matrix),
                x.fields(),
                address("bias", each.bias_n),
                address("residual", each.residual_mn),
                each.out_mn.data_ptr(),
                each.matrix.rows,
            )
            for each in products
        ]
        self._append((jobs.LinearJob * len(fields))(*fields), x, products, count=len(fields))

    def norm(
        self,
        x_mk: Tensor,
        out_mk: Tensor,
        weight_k: Tensor | None,
        bias_k: Tensor | None,
        eps: float,
        *,
        pieces: int = 1,
        centred: bool = False,
        plus_one: bool = False,
    ) -> None:
        """Each of the equal `pieces` of a token's channels by itself, all with the same weight; `out` may be `x`."""
        self._require_rows("x", x_mk)
        self._require_rows("out", out_mk, x_mk.shape[1])
        width, left = divmod(x_mk.shape[1], pieces)
        if left:
            raise ValueError(f"{x_mk.shape[1]} channels have no {pieces} equal pieces")
        for name, each in (("weight", weight_k), ("bias", bias_k)):
            if each is not None:
                require_shape(name, each, (width,))
        pointers = x_mk.data_ptr(), out_mk.data_ptr(), address("weight", weight_k), address("bias", bias_k)
        job = jobs.NormJob(*pointers, pieces, width, width, width, eps, centred, plus_one)
        self._append(job, x_mk, out_mk, weight_k, bias_k)

    def rope(self, x_mk: Tensor, heads: int, cosine_pf: Tensor, sine_pf: Tensor, *, interleaved: bool) -> None:
        """Turn the leading dimensions of each head, in place; see `kernels.rope`."""
        self._require_rows("x", x_mk)
        width, dims = x_mk.shape[1], 2 * cosine_pf.shape[1]
        require_shape("sine", sine_pf, tuple(cosine_pf.shape))
        if width % heads or dims > width // heads:
            raise ValueError(f"tables for {dims} dimensions cannot turn {heads} heads of {width} channels")
        pointers = x_mk.data_ptr(), address("cosine", cosine_pf), address("sine", sine_pf), None
        job = jobs.RopeJob(*pointers, 0, heads, width // heads, dims, width, interleaved)
        self._positions = min(self._positions, len(cosine_pf))
        self._append(job, x_mk, cosine_pf, sine_pf)

    def activate(self, gate_mk: Tensor, up_mk: Tensor | None, out_mk: Tensor, activation: Activation) -> None:
        """out = activation(gate), times `up` if given; `out` may be one of them."""
        self._require_rows("gate", gate_mk)
        width = gate_mk.shape[1]
        for name, each in (("up", up_mk), ("out", out_mk)):
            if each is not None:
                self._require_rows(name, each, width)
        pointers = gate_mk.data_ptr(), address("up", up_mk), out_mk.data_ptr()
        job = jobs.ActivateJob(*pointers, 0, width, width, width, width, ACTIVATIONS.index(activation))
        self._append(job, gate_mk, up_mk, out_mk)

    def add(self, x_mk: Tensor, y_mk: Tensor) -> None:
        """x += y."""
        self._require_rows("x", x_mk)
        self._require_rows("y", y_mk, x_mk.shape[1])
        self._append(jobs.AddJob(x_mk.data_ptr(), y_mk.data_ptr(), x_mk.shape[1]), x_mk, y_mk)

    def store(self, blocks: KeyValueBlocks, keys_mk: Tensor, values_mk: Tensor) -> None:
        """Keep the tokens' keys and values."""
        width = blocks.keys.shape[1] * blocks.head_dim
        self._require_rows("keys", keys_mk, width)
        self._require_rows("values", values_mk, width)
        pointers = keys_mk.data_ptr(), values_mk.data_ptr(), None
        self._slots = min(self._slots, len(blocks.keys) * blocks.block_size)
        self._append(jobs.StoreJob(blocks.fields(), *pointers, 0, width, width), blocks, keys_mk, values_mk)

    def attend(
        self,
        queries_mk: Tensor,
        blocks: KeyValueBlocks,
        out_mk: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks_h: Tensor | None = None,
    ) -> None:
        """Causal attention to the keys that are kept; see `kernels.attend`."""
        self._require_rows("queries", queries_mk)
        width, kv_heads = queries_mk.shape[1], blocks.keys.shape[1]
        self._require_rows("out", out_mk, width)
        heads = width // blocks.head_dim
        if width % blocks.head_dim or heads % kv_heads:
            raise ValueError(f"{width} channels are no heads for {kv_heads} key heads of {blocks.head_dim} dimensions")
        if sinks_h is not None:
            require_shape("sinks", sinks_h, (heads,))
        pointers = queries_mk.data_ptr(), out_mk.data_ptr(), None, None, None, address("sinks", sinks_h)
        sizes = 0, heads, width, width, 0, window or 0
        job = jobs.AttentionJob(blocks.fields(), *pointers, *sizes, scale, softcap or 0.0)
        self._append(job, queries_mk, blocks, out_mk, sinks_h)

    def call(self, function: Callable[[int], None]) -> None:
        """Have Python work on the buffers: what is told is how many tokens there are."""
        self._parts.append(function)
        self._written = None

    def run(self, tables: StepTables) -> None:
        """Do all of it for the tokens that the tables are of; what goes in must stand in its buffer."""
        tokens, sequences = len(tables.positions_m), len(tables.key_counts_s)
        if tokens > self.tokens or not len(tables.slots_m) == tokens == tables.query_starts[-1]:
            raise ValueError(f"{tokens} tokens do not fit a program for {self.tokens}, or their tables")
        if tables.positions_m.max() >= self._positions:
            raise ValueError(f"a token stands beyond the {self._positions} positions that there are tables for")
        if tables.slots_m.max() >= self._slots:
            raise ValueError(f"a token's keys lie beyond the {self._slots} slots that there are")
        if self._written is None:
            self._written = [part if callable(part) else (jobs.Instruction * len(part))(*part) for part in self._parts]
        pointers = [each.ctypes.data for each in tables]
        for part in self._written:
            if callable(part):
                part(tokens)
            else:
                sizes = len(part), tokens, sequences, tables.block_table.shape[1]
                library.call("program", jobs.ProgramJob(ctypes.addressof(part), *sizes, *pointers))

    def _append(self, job: Any, *kept: Any, count: int = 1) -> None:
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
