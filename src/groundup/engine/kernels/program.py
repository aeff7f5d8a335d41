"""The instructions of a program, each a kernel and what it works on; `script.py` keeps their order and runs them.

Everything is checked as it is written.

Shape suffixes: m tokens, k channels, p positions, f frequencies.
"""

import ctypes
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from groundup.engine.kernels import ACTIVATIONS, MOST_STREAMS, KeyValueBlocks, jobs
from groundup.engine.kernels.checks import address, require_shape
from groundup.engine.kernels.choices import peaks_fields
from groundup.engine.kernels.low_rank import MapShape
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
from groundup.engine.kernels.script import Script
from groundup.engine.kernels.tables import Numbers
from groundup.model.specs import Activation, FeedForward

# Products that one instruction can share out: see program.h.
MOST_LINEARS = 8


class Product(NamedTuple):
    """out = x Wᵀ + bias + residual; the residual may be `out` itself.

    peaks: of the outputs where they are logits, for `Choices.choose`; see `peaks_of`.
    """

    matrix: Matrix
    bias_n: Tensor | None
    out_mn: Tensor
    residual_mn: Tensor | None = None
    peaks: Tensor | None = None


class Program(Script):
    """Instructions for up to `tokens` tokens, in the order in which its methods are called."""

    def __init__(self, tokens: int) -> None:
        super().__init__(tokens)
        self._made: dict[tuple[type[Activations], int, int], Activations] = {}

    def linear(self, x_mk: Tensor, *products: Product) -> None:
        """Products of the same x, none of whose outputs may be x, shared out among the threads as one."""
        self._require_rows("x", x_mk)
        for each in products:
            for name, rows in (("out", each.out_mn), ("residual", each.residual_mn)):
                if rows is not None:
                    self._require_rows(name, rows, each.matrix.rows)
            if each.out_mn.data_ptr() == x_mk.data_ptr():
                raise ValueError("a product's `out` cannot be what is multiplied")
        for kind in dict.fromkeys(activations_for(each.matrix) for each in products):
            alike = [each for each in products if activations_for(each.matrix) is kind]
            if len(alike) > MOST_LINEARS:
                raise ValueError(f"an instruction holds 1 to {MOST_LINEARS} products, not {len(alike)}")
            x = self._prepared(x_mk, kind)
            fields = [_linear_job(x, each) for each in alike]
            self._append((jobs.LinearJob * len(fields))(*fields), x, alike, count=len(fields))

    def _prepared(self, x_mk: Tensor, kind: type[Activations], pieces: int = 1) -> Activations:
        """Each of the equal pieces of a token as activations of a kind; the next call with as many channels writes over
        them, unless they are x itself."""
        columns, left = divmod(x_mk.shape[1], pieces)
        if left:
            raise ValueError(f"{x_mk.shape[1]} channels have no {pieces} equal pieces")
        rows = self.tokens * pieces
        if kind is FloatActivations:
            return FloatActivations(rows, columns, columns, x_mk)
        assert issubclass(kind, IntegerActivations | RoundedActivations)
        if (kind, columns, pieces) not in self._made:
            self._made[kind, columns, pieces] = kind.empty(rows, columns)
        made = self._made[kind, columns, pieces]
        fields = made.fields()
        fields.rows = pieces
        job = jobs.QuantizeJob if kind is IntegerActivations else jobs.RoundJob
        self._append(job(x_mk.data_ptr(), columns, columns, fields), x_mk, made)
        return made

    def adapt(self, x_mk: Tensor, outs: Mapping[str, Tensor]) -> None:
        """To what linear maps of these names make of x, (m, outputs), add what the tokens' adapters do."""
        self._require_rows("x", x_mk)
        for name, out_mn in outs.items():
            self._require_rows(name, out_mn, out_mn.shape[1])
        shapes = {name: MapShape(x_mk.shape[1], out_mn.shape[1], is_table=False) for name, out_mn in outs.items()}
        fields = [
            jobs.AdaptJob(x_mk.data_ptr(), None, outs[name].data_ptr(), *shapes[name][:2], number)
            for name, number in zip(outs, self._maps.add(shapes), strict=True)
        ]
        self._append((jobs.AdaptJob * len(fields))(*fields), x_mk, outs, count=len(fields))

    def adapt_table(self, name: str, ids: Numbers, out_mk: Tensor) -> None:
        """To vectors of the table of this name, add what the tokens' adapters have for them."""
        self._require_rows("out", out_mk)
        ids_nm, shape = ids.values_nm, MapShape(ids.below, out_mk.shape[1], is_table=True)
        require_shape("ids", ids_nm, (1, self.tokens))
        (number,) = self._maps.add({name: shape})
        self._append(jobs.AdaptJob(None, ids_nm.data_ptr(), out_mk.data_ptr(), *shape[:2], number), ids, out_mk)

    def grouped(self, x: Tensor, starts: Tensor, *products: Sequence[Product]) -> None:
        """In each list of products, the first is of the rows starts[0] … starts[1] - 1 of x, and so on.

        x: (tokens, pieces · columns of the matrices), as rows of these columns. All matrices are of one type.
        starts: int64, rising from 0 to no more than the rows of x: whoever fills it in between two instructions sees to
        that. A product's `out` has a place for every row of x, and there is no residual.
        """
        require_shape("starts", starts, (len(products[0]) + 1,))
        self._require_rows("x", x)
        each_group = list(chain(*products))
        pieces = x.shape[1] // each_group[0].matrix.columns
        for each in each_group:
            self._require_rows("out", each.out_mn, each.matrix.rows * pieces)
        given = self._prepared(x, activations_for(each_group[0].matrix), pieces)
        fields = [_linear_job(given, each) for each in each_group]
        array = (jobs.LinearJob * len(fields))(*fields)
        sizes = len(fields), len(products[0])
        job = jobs.GroupedJob(ctypes.addressof(array), *sizes, address("starts", starts, torch.int64))
        self._append(job, array, given, products, starts)

    def combine(self, y: Tensor, weights_mc: Tensor, places_mc: Tensor, base_mk: Tensor | None, out_mk: Tensor) -> None:
        """out = base + Σ_c weights[c] · the row of y in places[c]; `out` may be `base`.

        y: (tokens, choices · width), as rows of the width. places_mc: int64, filled in like the `starts` of `grouped`.
        """
        self._require_rows("out", out_mk)
        width, choices = out_mk.shape[1], weights_mc.shape[1]
        self._require_rows("y", y, choices * width)
        self._require_rows("weights", weights_mc)
        require_shape("places", places_mc, (self.tokens, choices))
        if base_mk is not None:
            self._require_rows("base", base_mk, width)
        pointers = y.data_ptr(), weights_mc.data_ptr(), address("places", places_mc, torch.int64)
        job = jobs.CombineJob(*pointers, address("base", base_mk), out_mk.data_ptr(), 0, width, choices)
        self._append(job, y, weights_mc, places_mc, base_mk, out_mk)

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
        """Each of the equal `pieces` of a token's channels by itself; `out` may be `x`.

        out_mk: if it has fewer channels than x, these are the first ones, as a single piece.
        weight_k, bias_k: of a piece, the same for all, or of all pieces behind each other.
        """
        self._require_rows("x", x_mk)
        self._require_rows("out", out_mk)
        channels, all_channels = out_mk.shape[1], x_mk.shape[1]
        width, left = divmod(channels, pieces)
        if left or channels > all_channels or (channels < all_channels and pieces > 1):
            raise ValueError(f"{channels} of {all_channels} channels have no {pieces} equal pieces")
        weights = pieces if weight_k is not None and len(weight_k) == channels else 1
        for name, each in (("weight", weight_k), ("bias", bias_k)):
            if each is not None:
                require_shape(name, each, (weights * width,))
        pointers = x_mk.data_ptr(), out_mk.data_ptr(), address("weight", weight_k), address("bias", bias_k)
        job = jobs.NormJob(*pointers, pieces, width, all_channels // pieces, width, weights, eps, centred, plus_one)
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

    def activate(
        self,
        gate_mk: Tensor,
        up_mk: Tensor | None,
        out_mk: Tensor,
        activation: Activation,
        *,
        sharpness: float = 1.0,
        limit: float | None = None,
        up_offset: float = 0.0,
    ) -> None:
        """out = activation(gate), times `up` if given; `out` may be one of them. See `kernels.activate`."""
        self._require_rows("gate", gate_mk)
        width = gate_mk.shape[1]
        for name, each in (("up", up_mk), ("out", out_mk)):
            if each is not None:
                self._require_rows(name, each, width)
        pointers = gate_mk.data_ptr(), address("up", up_mk), out_mk.data_ptr()
        shape = ACTIVATIONS.index(activation), sharpness, math.inf if limit is None else limit, up_offset
        job = jobs.ActivateJob(*pointers, 0, width, width, width, width, *shape)
        self._append(job, gate_mk, up_mk, out_mk)

    def activate_as(self, spec: FeedForward, up_mk: Tensor, gate_mk: Tensor | None) -> None:
        """What the last matrix of a feed-forward network is given, in the place of `up`."""
        first_mk, second_mk = (up_mk, None) if gate_mk is None else (gate_mk, up_mk)
        bounds = {"sharpness": spec.sharpness, "up_offset": spec.up_offset}
        self.activate(first_mk, second_mk, up_mk, spec.activation, limit=spec.limit, **bounds)

    def gather(self, matrix: Matrix, ids: Numbers, out_nmk: Tensor) -> None:
        """Rows of the matrix by number, (count, tokens, columns); zeros for negative ones."""
        if ids.below > matrix.rows:
            raise ValueError(f"a matrix of {matrix.rows} rows has none for every number below {ids.below}")
        require_shape("out", out_nmk, (*ids.values_nm.shape, matrix.columns))
        address("out", out_nmk)
        for ids_m, out_mk in zip(ids.values_nm, out_nmk, strict=True):
            pointers = ids_m.data_ptr(), 0, out_mk.data_ptr()
            self._append(jobs.GatherJob(matrix_fields(matrix), *pointers, matrix.columns), matrix, ids, out_nmk)

    def mix(
        self, x_mk: Tensor, streams_jmk: Tensor, weights_nj: Tensor, kinds: Numbers, gates_jk: Tensor | None = None
    ) -> None:
        """x = weights[kind, 0] · x + Σ_j (weights[kind, 1 + j] + gates[j] · x) · streams[j], each token of a kind."""
        self._require_rows("x", x_mk)
        if len(streams_jmk) > MOST_STREAMS:
            raise ValueError(f"at most {MOST_STREAMS} streams can be mixed, not {len(streams_jmk)}")
        require_shape("streams", streams_jmk, (weights_nj.shape[1] - 1, *x_mk.shape))
        if gates_jk is not None:
            require_shape("gates", gates_jk, (len(streams_jmk), x_mk.shape[1]))
        if kinds.least < 0 or kinds.below > len(weights_nj):
            raise ValueError(f"weights of {len(weights_nj)} kinds are not for {kinds.least} … {kinds.below - 1}")
        pointers = x_mk.data_ptr(), address("streams", streams_jmk), address("weights", weights_nj)
        sizes = 0, x_mk.shape[1], len(streams_jmk), x_mk.numel()
        job = jobs.MixJob(*pointers, address("gates", gates_jk), kinds.values_nm.data_ptr(), *sizes)
        self._append(job, x_mk, streams_jmk, weights_nj, kinds, gates_jk)

    def gate(
        self, input_mk: Tensor, weight_hc: Tensor, x_mk: Tensor, base_mk: Tensor | None, out_mk: Tensor, factor: float
    ) -> None:
        """out = base + factor · sigmoid(w · c) · x for each head, c being the first channels of the token's input.

        `out` may be `x` or `base`.
        """
        (heads, channels), width = weight_hc.shape, x_mk.shape[1]
        self._require_rows("input", input_mk)
        for name, each in (("x", x_mk), ("base", base_mk), ("out", out_mk)):
            if each is not None:
                self._require_rows(name, each, width)
        if width % heads or channels > input_mk.shape[1]:
            raise ValueError(
                f"{channels} of {input_mk.shape[1]} input channels cannot gate {heads} heads of {width} channels"
            )
        pointers = input_mk.data_ptr(), address("weight", weight_hc), x_mk.data_ptr(), address("base", base_mk)
        sizes = 0, heads, width // heads, channels, input_mk.shape[1]
        job = jobs.GateJob(*pointers, out_mk.data_ptr(), *sizes, factor)
        self._append(job, input_mk, weight_hc, x_mk, base_mk, out_mk)

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
        self._bound_slots(blocks.are_windowed, len(blocks.keys) * blocks.block_size)
        job = jobs.StoreJob(blocks.fields(), *pointers, 0, width, width, blocks.are_windowed)
        self._append(job, blocks, keys_mk, values_mk)

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
        sizes = 0, heads, width, width, 0, window or 0, blocks.are_windowed
        job = jobs.AttentionJob(blocks.fields(), *pointers, *sizes, scale, softcap or 0.0)
        self._append(job, queries_mk, blocks, out_mk, sinks_h)


def _linear_job(x: Activations, product: Product) -> jobs.LinearJob:
    matrix, bias_n = product.matrix, product.bias_n
    require_fitting(x, matrix)
    if bias_n is not None:
        require_shape("bias", bias_n, (matrix.rows,))
    pointers = address("bias", bias_n), address("residual", product.residual_mn), product.out_mn.data_ptr()
    peaks = peaks_fields(product.peaks, product.out_mn)
    return jobs.LinearJob(matrix_fields(matrix), x.fields(), *pointers, matrix.rows, *peaks)
