"""Mamba-2: a state space with one decay per head, which matrix products can compute (Dao and Gu 2024).

Each channel p of a head carries a state of n numbers; the heads j of a group share input weights B and output weights
C. A token with step size s, values x[p] does in each head

    h[n, p] ← exp(-s · rate) · h[n, p] + s · x[p] · B[n],    y[p] = Σ_n C[n] · h[n, p]

`recurrent` is this definition, one token after the other; `chunked` gives the same for many at once. The first token of
a segment finds a state of zeros. Shape suffixes: b batch, t time, d model width, c channels (g · j · p), g groups, j
heads of a group, p channels of a head, n numbers of the state, k chunks, i and l tokens of a chunk (later, earlier).
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model.context import LayerCache, Shared
from groundup.model.convolution import CausalConvolution
from groundup.model.parts import Linear, Normalise, activate, widen
from groundup.model.recurrent_specs import SSD_CHUNK, Mamba2
from groundup.model.scan import in_chunks, linear_scan
from groundup.model.specs import Norm


class Mamba2Mixer(nn.Module):
    """Projection, convolution, scan, gate, norm, projection."""

    def __init__(self, spec: Mamba2, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.gate = Linear(width, spec.channels, spec.bias)
        self.input = Linear(width, spec.convolved, spec.bias)
        self.step = Linear(width, spec.heads, spec.bias)
        self.convolution = CausalConvolution(spec.convolved, spec.kernel, spec.convolution_bias)
        self.step_bias = nn.Parameter(torch.empty(spec.heads))
        self.log_rate = nn.Parameter(torch.empty(spec.heads))
        self.skip = nn.Parameter(torch.empty(spec.heads))
        self.norm = Normalise(Norm("rms_without_weight", spec.norm.eps), spec.channels // spec.groups)
        self.norm_weight = nn.Parameter(torch.empty(spec.channels))
        self.output = Linear(spec.channels, width, spec.bias)

    def forward(self, x_btd: Tensor, shared: Shared, cache: LayerCache | None) -> Tensor:
        spec = self.spec
        starts_bt = shared.visible.starts()
        inputs, state = (None, None) if cache is None or cache.state is None else cache.state
        mixed_btc, inputs = self.convolution(self.input(x_btd), starts_bt, inputs)
        per_group = spec.groups * spec.state
        parts = activate(mixed_btc, spec.activation).split((spec.channels, per_group, per_group), dim=-1)
        x_btgjp = parts[0].unflatten(-1, (spec.groups, -1, spec.head_dim))
        into_btgn, out_of_btgn = (part.unflatten(-1, (spec.groups, -1)) for part in parts[1:])
        step_btgj = self._steps(x_btd)
        rate_gj = widen(self.log_rate).exp().view(spec.groups, -1)
        if cache is not None and state is None:
            state = step_btgj.new_zeros(len(x_btd), spec.groups, spec.state, *x_btgjp.shape[-2:])
        form = recurrent if x_btd.shape[1] == 1 else chunked
        y_btgjp, state = form(x_btgjp, step_btgj, rate_gj, into_btgn, out_of_btgn, starts_bt, state)
        if cache is not None and state is not None:
            cache.state = (inputs, state)
        y_btgjp = y_btgjp + widen(self.skip).view(spec.groups, -1, 1) * x_btgjp
        return self.output(self._gated(y_btgjp.flatten(2), self.gate(x_btd)))

    def _steps(self, x_btd: Tensor) -> Tensor:
        """Step sizes (batch, time, groups, heads of a group), in at least float32."""
        step_bth = F.softplus(widen(self.step(x_btd)) + self.step_bias).clamp(*self.spec.step_limits)
        return step_bth.unflatten(-1, (self.spec.groups, -1))

    def _gated(self, y_btc: Tensor, gate_btc: Tensor) -> Tensor:
        """Gated first, then normed, each group of channels by itself; in the type of the gate."""
        gated_btc = y_btc * F.silu(widen(gate_btc))
        normed_btc = self.norm(gated_btc.unflatten(-1, (self.spec.groups, -1))).flatten(2)
        return normed_btc.to(gate_btc.dtype) * self.norm_weight.to(gate_btc.dtype)


def recurrent(
    x_btgjp: Tensor,
    step_btgj: Tensor,
    rate_gj: Tensor,
    into_btgn: Tensor,
    out_of_btgn: Tensor,
    starts_bt: Tensor | None,
    state_bgnjp: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The scan as it is defined: the outputs y, of the shape of x, and the state after the last token.

    starts_bt: bool, the tokens that find a state of zeros, or None.
    state_bgnjp: before the first token; None: zeros, and none is wanted back.
    """
    wanted = state_bgnjp is not None
    if state_bgnjp is None:
        state_bgnjp = _no_state(x_btgjp, step_btgj, into_btgn)
    outputs = []
    for t in range(x_btgjp.shape[1]):
        decay_bgj = torch.exp(-step_btgj[:, t] * rate_gj)
        if starts_bt is not None:
            decay_bgj = decay_bgj * ~starts_bt[:, t, None, None]
        entry_bgjp = step_btgj[:, t, :, :, None] * x_btgjp[:, t]
        entry_bgnjp = widen(into_btgn[:, t, :, :, None, None]) * entry_bgjp[:, :, None]
        state_bgnjp = decay_bgj[:, :, None, :, None] * state_bgnjp + entry_bgnjp
        outputs.append((widen(out_of_btgn[:, t, :, :, None, None]) * state_bgnjp).sum(2))
    return torch.stack(outputs, dim=1), state_bgnjp if wanted else None


def chunked(
    x_btgjp: Tensor,
    step_btgj: Tensor,
    rate_gj: Tensor,
    into_btgn: Tensor,
    out_of_btgn: Tensor,
    starts_bt: Tensor | None,
    state_bgnjp: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The same as `recurrent`, in matrix products over chunks of at most SSD_CHUNK tokens.

    Within a chunk it is attention whose weights C·B decay with the distance; what a chunk adds to the state, and what
    its tokens read from the state before it, is one product each (Dao and Gu 2024, section 6). Products are in the type
    of x, decays and states in at least float32.
    """
    dtype, time = x_btgjp.dtype, x_btgjp.shape[1]
    split = partial(in_chunks, longest=SSD_CHUNK)  # what fills up the last chunk has steps of zero: it changes nothing
    starts_bkl = None if starts_bt is None else split(starts_bt)
    between_bkgjil, since_start_bkgji = _decays(split(-step_btgj * rate_gj), starts_bkl)
    into_bkgln, out_of_bkgin = split(into_btgn).transpose(2, 3), split(out_of_btgn).transpose(2, 3)
    entry_bkgjlp = split(step_btgj[..., None] * x_btgjp).permute(0, 1, 3, 4, 2, 5)
    scores_bkgil = widen(out_of_bkgin @ into_bkgln.mT)
    weights_bkgjil = scores_bkgil[:, :, :, None] * between_bkgjil
    y_bkgjip = widen(weights_bkgjil.to(dtype) @ entry_bkgjlp.to(dtype))
    state = None
    if time > SSD_CHUNK or state_bgnjp is not None:
        lasting_bkglc = (between_bkgjil[..., -1, :, None] * entry_bkgjlp).to(dtype).transpose(3, 4).flatten(4)
        added_bkgnjp = widen(into_bkgln.mT @ lasting_bkglc).unflatten(-1, x_btgjp.shape[-2:])
        before_bgnjp = torch.zeros_like(added_bkgnjp[:, 0]) if state_bgnjp is None else state_bgnjp
        after_bkgnjp = linear_scan(since_start_bkgji[:, :, :, None, :, -1:], added_bkgnjp, before_bgnjp)
        found_bkgnc = torch.cat((before_bgnjp[:, None], after_bkgnjp[:, :-1]), dim=1).flatten(4).to(dtype)
        read_bkgijp = widen(out_of_bkgin @ found_bkgnc).unflatten(-1, x_btgjp.shape[-2:])
        y_bkgjip = y_bkgjip + since_start_bkgji[..., None] * read_bkgijp.transpose(3, 4)
        # A copy, or a cache would hold the states after all chunks.
        state = None if state_bgnjp is None else after_bkgnjp[:, -1].clone()
    return y_bkgjip.permute(0, 1, 4, 2, 3, 5).flatten(1, 2)[:, :time], state


def _decays(log_decay_bklgj: Tensor, starts_bkl: Tensor | None) -> tuple[Tensor, Tensor]:
    """What is left at token i of what token l brought, (b, k, g, j, i, l), and of the state before the chunk, (…, i).

    Nothing, where l is later than i or a segment starts between.
    """
    size, dtype = log_decay_bklgj.shape[2], log_decay_bklgj.dtype
    if starts_bkl is None:
        starts_bkl = log_decay_bklgj.new_zeros(1, 1, size, dtype=torch.bool)
    segment_bkl = starts_bkl.cumsum(2)
    earlier_il = torch.ones(size, size, dtype=torch.bool, device=starts_bkl.device).tril()
    seen_bkil = (segment_bkl[..., None] == segment_bkl[:, :, None]) & earlier_il
    # From each token's own segment on, or documents would round their neighbours' numbers; and in float64, since what
    # is left between two tokens is a difference of such sums, often small between large ones.
    summed_bkilgj = torch.where(seen_bkil[..., None, None], log_decay_bklgj[:, :, None].double(), 0.0)
    passed_bkgji = summed_bkilgj.sum(3).permute(0, 1, 3, 4, 2)
    between_bkgjil = (passed_bkgji[..., None] - passed_bkgji[..., None, :]).to(dtype)
    between_bkgjil = between_bkgjil.masked_fill(~seen_bkil[:, :, None, None], float("-inf")).exp()
    return between_bkgjil, passed_bkgji.to(dtype).exp() * (segment_bkl == 0)[:, :, None, None]


def _no_state(x_btgjp: Tensor, step_btgj: Tensor, into_btgn: Tensor) -> Tensor:
    batch, _, groups, state = into_btgn.shape
    return step_btgj.new_zeros(batch, groups, state, *x_btgjp.shape[-2:])
