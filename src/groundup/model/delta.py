"""The gated delta rule: linear attention whose memory forgets, and corrects what it holds instead of adding to it.

Each value head keeps a matrix S in which keys look up values. A token with decay α and writing strength β does

    S ← α S,    S ← S + β k (v − Sᵀk)ᵀ,    out = Sᵀq

so that S is moved towards giving v for k. `recurrent` is this definition, one token after the other; `chunked` gives
the same for many at once. The first token of a document has α = 0: nothing of what was before is left.

Sources: Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule over Sequence Length" (chunks) and
"Gated Delta Networks" (decay); Qwen3-Next (2025). Shape suffixes: b batch, t time, d model width, h value heads, k key
dimension, v value dimension, n chunks, c and s tokens within a chunk.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model.context import LayerCache, Shared
from groundup.model.convolution import CausalConvolution
from groundup.model.delta_specs import CHUNK, GatedDeltaNet
from groundup.model.parts import Linear, Normalise, activate, widen
from groundup.model.scan import in_chunks
from groundup.model.specs import Norm

# Keeps queries and keys of length one finite where they are zero.
LENGTH_EPS = 1e-6


class GatedDelta(nn.Module):
    """A layer's mixer: short convolution over queries, keys and values, the delta rule, norm and gate of its output."""

    def __init__(self, spec: GatedDeltaNet, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.query, self.key = Linear(width, spec.keys), Linear(width, spec.keys)
        self.value, self.gate = Linear(width, spec.values), Linear(width, spec.values)
        self.strength = Linear(width, spec.value_heads)
        self.step = Linear(width, spec.value_heads)
        self.convolution = CausalConvolution(2 * spec.keys + spec.values, spec.kernel, False)
        # As in Mamba-2: the decay is exp(−rate · step), both positive.
        self.log_rate = nn.Parameter(torch.empty(spec.value_heads))
        self.step_bias = nn.Parameter(torch.empty(spec.value_heads))
        self.norm = Normalise(Norm("rms", spec.norm_eps), spec.value_dim)
        self.output = Linear(spec.values, width)

    def forward(self, x_btd: Tensor, shared: Shared, cache: LayerCache | None) -> Tensor:
        starts_bt = shared.visible.starts()
        inputs_bkc, state_bhkv = (None, None) if cache is None or cache.state is None else cache.state
        mixed_btc = torch.cat((self.query(x_btd), self.key(x_btd), self.value(x_btd)), dim=-1)
        mixed_btc, inputs_bkc = self.convolution(mixed_btc, starts_bt, inputs_bkc)
        q_bthk, k_bthk, v_bthv = self._heads(activate(mixed_btc, self.spec.activation))
        log_decay_bth, strength_bth = self._gates(x_btd)
        if starts_bt is not None:
            log_decay_bth = log_decay_bth.masked_fill(starts_bt[..., None], float("-inf"))
        if state_bhkv is None:
            state_bhkv = q_bthk.new_zeros(len(x_btd), self.spec.value_heads, self.spec.key_dim, self.spec.value_dim)
        form = recurrent if x_btd.shape[1] == 1 else chunked
        out_bthv, state_bhkv = form(q_bthk, k_bthk, v_bthv, log_decay_bth, strength_bth, state_bhkv)
        if cache is not None:
            cache.state = (inputs_bkc, state_bhkv)
        return self.output(self._gated(out_bthv.to(x_btd.dtype), self.gate(x_btd)))

    def _heads(self, mixed_btc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of each value head, in at least float32; queries and keys of length one."""
        spec = self.spec
        q_btk, k_btk, v_btv = widen(mixed_btc).split((spec.keys, spec.keys, spec.values), dim=-1)
        q_bthk, k_bthk = (unit(x_btk.unflatten(-1, (spec.key_heads, -1))) for x_btk in (q_btk, k_btk))
        served = spec.value_heads // spec.key_heads
        q_bthk, k_bthk = (x_bthk.repeat_interleave(served, dim=2) for x_bthk in (q_bthk, k_bthk))
        return q_bthk * spec.key_dim**-0.5, k_bthk, v_btv.unflatten(-1, (spec.value_heads, -1))

    def _gates(self, x_btd: Tensor) -> tuple[Tensor, Tensor]:
        """ln α and β of each token and value head, in at least float32."""
        step_bth, strength_bth = widen(self.step(x_btd)), widen(self.strength(x_btd))
        rate_h, bias_h = self.log_rate.to(step_bth.dtype).exp(), self.step_bias.to(step_bth.dtype)
        return -rate_h * F.softplus(step_bth + bias_h), torch.sigmoid(strength_bth)

    def _gated(self, out_bthv: Tensor, gate_btd: Tensor) -> Tensor:
        """Normed first, then gated: the gate decides how much of each head there is, which a norm would undo."""
        normed_btd = self.norm(out_bthv).flatten(2)
        return (widen(normed_btd) * F.silu(widen(gate_btd))).to(out_bthv.dtype)


def unit(x: Tensor) -> Tensor:
    """Vectors of the last dimension at length one."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + LENGTH_EPS)


def recurrent(
    q_bthk: Tensor, k_bthk: Tensor, v_bthv: Tensor, log_decay_bth: Tensor, strength_bth: Tensor, state_bhkv: Tensor
) -> tuple[Tensor, Tensor]:
    """The rule as it is defined: the outputs (b, t, h, v), and the state after the last token.

    log_decay_bth: ln α, from −∞ (nothing stays) to 0; strength_bth: β, between 0 and 1.
    """
    outputs = []
    for t in range(q_bthk.shape[1]):
        state_bhkv = state_bhkv * log_decay_bth[:, t, :, None, None].exp()
        found_bhv = torch.einsum("bhkv,bhk->bhv", state_bhkv, k_bthk[:, t])
        change_bhv = strength_bth[:, t, :, None] * (v_bthv[:, t] - found_bhv)
        state_bhkv = state_bhkv + k_bthk[:, t, :, :, None] * change_bhv[:, :, None]
        outputs.append(torch.einsum("bhkv,bhk->bhv", state_bhkv, q_bthk[:, t]))
    return torch.stack(outputs, dim=1), state_bhkv


def chunked(
    q_bthk: Tensor, k_bthk: Tensor, v_bthv: Tensor, log_decay_bth: Tensor, strength_bth: Tensor, state_bhkv: Tensor
) -> tuple[Tensor, Tensor]:
    """The same as `recurrent`, in matrix products over chunks of at most CHUNK tokens.

    Let S be the state before a chunk, γ_i the decay from there to token i, D_ij that from token j to i. What token i
    writes, u_i = β_i (v_i − γ_i Sᵀk_i − Σ_{j<i} D_ij (k_j·k_i) u_j), is a triangular system, solved for all i at once
    and, as it is linear in S, before S is known: U = own − seen S (the WY representation).
    """

    def split(x: Tensor) -> Tensor:
        """(b, t, h, …) as (b, h, n, c, …); what fills up the last chunk writes nothing and lets nothing decay."""
        return in_chunks(x, CHUNK).movedim(3, 1)

    q_bhnck, k_bhnck, v_bhncv = split(q_bthk), split(k_bthk), split(v_bthv)
    strength_bhnc1, log_decay_bhnc = split(strength_bth)[..., None], split(log_decay_bth)
    decay_bhncs = _decays_between(log_decay_bhnc)
    since_start_bhnc1 = log_decay_bhnc.cumsum(-1).exp()[..., None]

    system_bhncs = (strength_bhnc1 * k_bhnck) @ k_bhnck.mT * decay_bhncs  # read below the diagonal alone
    sides = torch.cat((strength_bhnc1 * v_bhncv, strength_bhnc1 * since_start_bhnc1 * k_bhnck), dim=-1)
    solved = torch.linalg.solve_triangular(system_bhncs, sides, upper=False, unitriangular=True)
    own_bhncv, seen_bhnck = solved.split((v_bthv.shape[-1], k_bthk.shape[-1]), dim=-1)

    until_end_bhnc1, kept_bhn11 = decay_bhncs[..., -1, :, None], since_start_bhnc1[..., -1:, :]
    # Unbound in one go: the gradients are then stacked once, where indexing would add up full tensors of zeros.
    parts = (part.unbind(2) for part in (own_bhncv, seen_bhnck, (k_bhnck * until_end_bhnc1).mT, kept_bhn11))
    states, written = [], []
    for own_bhcv, seen_bhck, k_bhkc, kept_bh11 in zip(*parts, strict=True):
        states.append(state_bhkv)
        written.append(own_bhcv - seen_bhck @ state_bhkv)
        state_bhkv = kept_bh11 * state_bhkv + k_bhkc @ written[-1]
    within_bhncs = q_bhnck @ k_bhnck.mT * decay_bhncs
    out_bhncv = (q_bhnck * since_start_bhnc1) @ torch.stack(states, 2) + within_bhncs @ torch.stack(written, 2)
    return out_bhncv.movedim(1, 3).flatten(1, 2)[:, : q_bthk.shape[1]], state_bhkv


def _decays_between(log_decay_bhnc: Tensor) -> Tensor:
    """What is left at token c of what token s wrote, (…, c, s); nothing where s is later.

    Sums of their own for each s, not differences of one running sum: those would lose digits, are not defined where a
    document starts, and let a document's numbers round its neighbours'.
    """
    size = log_decay_bhnc.shape[-1]
    later_cs = torch.ones(size, size, dtype=torch.bool, device=log_decay_bhnc.device).tril(-1)
    steps_bhncs = log_decay_bhnc[..., None].expand(*log_decay_bhnc.shape, size)
    return steps_bhncs.masked_fill(~later_cs, 0.0).cumsum(-2).exp().tril()
