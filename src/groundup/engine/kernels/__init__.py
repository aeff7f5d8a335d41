"""The CPU kernels on tensors: products, norms, rotary positions, activations, attention to blocks of keys.

Every function checks types, shapes and bounds, since the library checks nothing, and computes in float32. A token's
result depends neither on the tokens around it nor on the number of threads, to the bit.

Shape suffixes: m tokens, n output channels, k input channels, h heads, d head dimension, s sequences.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from groundup.engine.kernels import jobs, library
from groundup.engine.kernels.checks import address, require_shape, require_within, round_up, rows_address
from groundup.engine.kernels.matrices import (
    Activations,
    FloatActivations,
    IntegerActivations,
    Matrix,
    RoundedActivations,
    activations_for,
    matrix_fields,
    require_fitting,
)
from groundup.model.specs import Activation

# What the library takes steps of, and its bounds: see jobs.h.
STRIP, MOST_HEAD_DIM, MOST_STREAMS = 16, 512, 64
ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu_squared", "tanh")


@dataclass(frozen=True)
class KeyValueBlocks:
    """Keys (blocks, kv_heads, head_dim, block_size) and values (…, block_size, head_dim padded to 16).

    In bfloat16 numbers that are summed over stand in pairs: keys (…, head_dim / 2, block_size, 2 dimensions), with a
    zero beside the last one of an odd number, and values (…, block_size / 2, head_dim padded to 16, 2 tokens).
    key_scales, value_scales: (blocks, kv_heads, block_size) float32 where they are int8, else empty.
    are_windowed: whether programs find them by the tables for blocks of windows.
    """

    head_dim: int
    keys: Tensor
    values: Tensor
    key_scales: Tensor
    value_scales: Tensor
    are_windowed: bool = False

    @classmethod
    def empty(
        cls,
        blocks: int,
        kv_heads: int,
        head_dim: int,
        block_size: int,
        dtype: torch.dtype = torch.float32,
        are_windowed: bool = False,
    ) -> "KeyValueBlocks":
        """Room for `blocks` blocks of `block_size` tokens, float32, bfloat16 or int8."""
        if block_size < 1 or block_size % STRIP:
            raise ValueError(f"a block must hold a multiple of {STRIP} tokens, not {block_size}")
        if not 1 <= head_dim <= MOST_HEAD_DIM:
            raise ValueError(f"heads must have 1 to {MOST_HEAD_DIM} dimensions, not {head_dim}")
        if dtype not in (torch.float32, torch.bfloat16, torch.int8):
            raise ValueError(f"keys and values are kept in float32, bfloat16 or int8, not {dtype}")
        padded = round_up(head_dim, STRIP)
        if dtype == torch.bfloat16:
            keys = torch.empty(blocks, kv_heads, (head_dim + 1) // 2, block_size, 2, dtype=dtype)
            values = torch.empty(blocks, kv_heads, block_size // 2, padded, 2, dtype=dtype)
        else:
            keys = torch.empty(blocks, kv_heads, head_dim, block_size, dtype=dtype)
            values = torch.empty(blocks, kv_heads, block_size, padded, dtype=dtype)
        scaled = (blocks, kv_heads, block_size) if dtype == torch.int8 else (0,)
        return cls(head_dim, keys, values, torch.empty(scaled), torch.empty(scaled), are_windowed)

    @property
    def block_size(self) -> int:
        return self.keys.shape[3]

    def fields(self) -> jobs.KeyValueBlocksFields:
        pointers = (each.data_ptr() for each in (self.keys, self.values, self.key_scales, self.value_scales))
        sizes = self.keys.shape[1], self.head_dim, self.block_size
        return jobs.KeyValueBlocksFields(*pointers, *sizes, 8 * self.keys.itemsize)

    def copy(self, sources: list[int], targets: list[int]) -> None:
        """Copy whole blocks; all are read before any is written."""
        for each in (self.keys, self.values, self.key_scales, self.value_scales):
            if each.numel():
                each[targets] = each[sources]

    def store(self, keys_mhd: Tensor, values_mhd: Tensor, slots_m: Tensor) -> None:
        """Keep keys and values of tokens; slot = block · block_size + place in the block, int64."""
        shape = (len(slots_m), self.keys.shape[1], self.head_dim)
        require_shape("keys", keys_mhd, shape)
        require_shape("values", values_mhd, shape)
        require_within("slots", slots_m, len(self.keys) * self.block_size)
        pointers = (
            rows_address("keys", keys_mhd),
            rows_address("values", values_mhd),
            address("slots", slots_m, torch.int64),
        )
        strides = keys_mhd.stride(0), values_mhd.stride(0)
        library.call("store", jobs.StoreJob(self.fields(), *pointers, len(slots_m), *strides, False))


def gather(matrix: Matrix, ids_m: Tensor) -> Tensor:
    """Rows of the matrix by number (int64), as float32: (m, columns)."""
    require_within("ids", ids_m, matrix.rows)
    out_mk = torch.empty(len(ids_m), matrix.columns)
    pointers = address("ids", ids_m, torch.int64), len(ids_m), out_mk.data_ptr()
    library.call("gather", jobs.GatherJob(matrix_fields(matrix), *pointers, matrix.columns))
    return out_mk


def quantize(x_mk: Tensor) -> IntegerActivations:
    """Tokens of float32 as int8; see `quantize_activations`, whose values these are."""
    made = IntegerActivations.empty(*x_mk.shape)
    library.call("quantize", jobs.QuantizeJob(*_rows_of(x_mk), made.fields()))
    return made


def activations_of(x_mk: Tensor, matrix: Matrix) -> Activations:
    """Tokens of float32 as this matrix is multiplied by them."""
    kind = activations_for(matrix)
    if kind is IntegerActivations:
        return quantize(x_mk)
    pointer, stride, columns = _rows_of(x_mk)
    if kind is FloatActivations:
        return FloatActivations(len(x_mk), columns, stride, x_mk)
    made = RoundedActivations.empty(len(x_mk), columns)
    library.call("round", jobs.RoundJob(pointer, stride, columns, made.fields()))
    return made


def _rows_of(x_mk: Tensor) -> tuple[int, int, int]:
    """Address, stride and width."""
    return rows_address("x", x_mk), x_mk.stride(0), x_mk.shape[1]


def linear(x: Activations, matrix: Matrix, bias_n: Tensor | None = None) -> Tensor:
    """x Wᵀ (+ b) as (m, n) float32. x: as `activations_of` makes them for such a matrix."""
    require_fitting(x, matrix)
    if bias_n is not None:
        require_shape("bias", bias_n, (matrix.rows,))
    out_mn = torch.empty(x.rows, matrix.rows)
    pointers = address("bias", bias_n), None, out_mn.data_ptr()
    library.call("linear", jobs.LinearJob(matrix_fields(matrix), x.fields(), *pointers, matrix.rows))
    return out_mn


def product(x_mk: Tensor, matrix: Matrix, bias_n: Tensor | None = None) -> Tensor:
    """The same of tokens of float32."""
    return linear(activations_of(x_mk, matrix), matrix, bias_n)


def rms_norm(x_mk: Tensor, weight_k: Tensor | None, eps: float, plus_one: bool = False) -> Tensor:
    """Each row divided by its root mean square, times the weight, or one plus it."""
    return _norm(x_mk, weight_k, None, eps, centred=False, plus_one=plus_one)


def layer_norm(x_mk: Tensor, weight_k: Tensor | None, bias_k: Tensor | None, eps: float) -> Tensor:
    """Each row less its mean, divided by its standard deviation, times the weight, plus the bias."""
    return _norm(x_mk, weight_k, bias_k, eps, centred=True, plus_one=False)


def _norm(
    x_mk: Tensor, weight_k: Tensor | None, bias_k: Tensor | None, eps: float, *, centred: bool, plus_one: bool
) -> Tensor:
    pointer, (rows, width) = rows_address("x", x_mk), x_mk.shape
    for name, each in (("weight", weight_k), ("bias", bias_k)):
        if each is not None:
            require_shape(name, each, (width,))
    out_mk = torch.empty(rows, width)
    pointers = pointer, out_mk.data_ptr(), address("weight", weight_k), address("bias", bias_k)
    library.call("norm", jobs.NormJob(*pointers, rows, width, x_mk.stride(0), width, 1, eps, centred, plus_one))
    return out_mk


def rope(x_mhd: Tensor, cosine: Tensor, sine: Tensor, positions_m: Tensor, *, interleaved: bool) -> None:
    """Turn the leading dimensions of each head in place.

    cosine, sine: (positions, turned dimensions / 2); positions_m: int32. Pairs are neighbours, or halves apart.
    """
    pointer, (rows, heads, head_dim) = rows_address("x", x_mhd), x_mhd.shape
    require_shape("sine", sine, tuple(cosine.shape))
    require_shape("positions", positions_m, (rows,))
    require_within("positions", positions_m, len(cosine))
    dims = 2 * cosine.shape[1]
    if dims > head_dim:
        raise ValueError(f"tables for {dims} dimensions cannot turn heads of {head_dim}")
    tables = address("cosine", cosine), address("sine", sine), address("positions", positions_m, torch.int32)
    library.call("rope", jobs.RopeJob(pointer, *tables, rows, heads, head_dim, dims, x_mhd.stride(0), interleaved))


def activate(
    gate_mk: Tensor,
    up_mk: Tensor | None,
    activation: Activation,
    *,
    sharpness: float = 1.0,
    limit: float | None = None,
    up_offset: float = 0.0,
) -> Tensor:
    """activation(gate), times `up` if given, (m, k). sharpness, limit, up_offset: see `FeedForward`."""
    rows, width = gate_mk.shape
    if up_mk is not None:
        require_shape("up", up_mk, (rows, width))
    out_mk = torch.empty(rows, width)
    pointers = rows_address("gate", gate_mk), None if up_mk is None else rows_address("up", up_mk), out_mk.data_ptr()
    strides = gate_mk.stride(0), 0 if up_mk is None else up_mk.stride(0), width
    shape = ACTIVATIONS.index(activation), sharpness, math.inf if limit is None else limit, up_offset
    library.call("activate", jobs.ActivateJob(*pointers, rows, width, *strides, *shape))
    return out_mk


def add(x: Tensor, y: Tensor) -> None:
    """x += y, in place."""
    require_shape("y", y, tuple(x.shape))
    library.call("add", jobs.AddJob(address("x", x), address("y", y), x.numel()))


def attend(
    queries_mhd: Tensor,
    blocks: KeyValueBlocks,
    block_table: Tensor,
    query_starts: Tensor,
    key_counts_s: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks_h: Tensor | None = None,
) -> Tensor:
    """softmax(scale · q kᵀ) v, causal: the tokens of a sequence are the last of its keys, which are stored already.

    queries_mhd: tokens of all sequences behind each other; those of sequence s are query_starts[s] … [s + 1] - 1.
    block_table: the blocks of each sequence in order, int32 (s, most blocks); query_starts: int32 (s + 1).
    key_counts_s: keys of each sequence, int32, the new ones included.
    window: keys that a query sees, itself included; blocks before it are not read. softcap, sinks_h: see `Attention`.
    """
    pointer, (rows, heads, head_dim) = rows_address("queries", queries_mhd), queries_mhd.shape
    kv_heads, sequences = blocks.keys.shape[1], len(key_counts_s)
    if head_dim != blocks.head_dim or heads % kv_heads:
        raise ValueError(
            f"{heads} heads of {head_dim} dimensions cannot attend to {kv_heads} key heads of {blocks.head_dim}"
        )
    if window is not None and window < 1:
        raise ValueError(f"an attention window must be at least 1, not {window}")
    if sinks_h is not None:
        require_shape("sinks", sinks_h, (heads,))
    _require_tables(blocks, block_table, query_starts, key_counts_s, rows, window)
    out_mhd = torch.empty(rows, heads, head_dim)
    tables = [
        address("block_table", block_table, torch.int32),
        address("query_starts", query_starts, torch.int32),
        address("key_counts", key_counts_s, torch.int32),
    ]
    sizes = sequences, heads, queries_mhd.stride(0), heads * head_dim, block_table.shape[1], window or 0, False
    job = jobs.AttentionJob(
        blocks.fields(), pointer, out_mhd.data_ptr(), *tables, address("sinks", sinks_h), *sizes, scale, softcap or 0.0
    )
    library.call("attend", job)
    return out_mhd


def _require_tables(
    blocks: KeyValueBlocks, table: Tensor, starts: Tensor, counts_s: Tensor, rows: int, window: int | None
) -> None:
    """That every block which will be read is there."""
    sequences = len(counts_s)
    if table.ndim != 2 or len(table) != sequences or starts.shape != (sequences + 1,):
        raise ValueError(f"tables of {len(table)} and {len(starts) - 1} sequences do not fit {sequences} key counts")
    tokens_s = starts.diff()
    if int(starts[0]) != 0 or int(starts[-1]) != rows or bool((tokens_s < 0).any()):
        raise ValueError(f"`query_starts` must rise from 0 to the number of tokens, {rows}")
    if bool((counts_s < tokens_s).any()) or bool((counts_s > table.shape[1] * blocks.block_size).any()):
        raise ValueError("every sequence needs at least as many keys as queries, and a block for each of them")
    last_s = (counts_s + blocks.block_size - 1) // blocks.block_size
    first_s = torch.zeros_like(counts_s) if window is None else (counts_s - tokens_s + 1 - window).clamp(min=0)
    index = torch.arange(table.shape[1])
    read = (index >= (first_s // blocks.block_size)[:, None]) & (index < last_s[:, None]) & (tokens_s > 0)[:, None]
    require_within("block_table", table[read], len(blocks.keys))
