"""Mamba: a state space whose step sizes, inputs and outputs depend on the token (Gu and Dao 2023).

Each channel c carries a state of n numbers. A token with step size s[c], input weights B[n], output weights C[n] and
channel value x[c] does

    h[n, c] ← exp(-s[c] · rate[n, c]) · h[n, c] + s[c] · x[c] · B[n],    y[c] = Σ_n C[n] · h[n, c]

`recurrent` is this definition, one token after the other; `chunked` gives the same for many at once. The first token of
a segment finds a state of zeros. Shape suffixes: b batch, t time, d model width, c channels, n numbers of the state, r
rank of the steps, k chunks, l tokens of a chunk.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from groundup.model.context import LayerCache, Shared
from groundup.model.convolution import CausalConvolution
from groundup.model.parts import Linear, Normalise, activate, widen
from groundup.model.recurrent_specs import Mamba
from groundup.model.scan import in_chunks, linear_scan

# Tokens that one chunk walks through; the compiler makes one loop of it, in which states never leave the registers.
CHUNK = 16
# Tokens whose states (batch, tokens, n, c) the gradient needs at a time; they are computed again for it.
SPAN = 512


class MambaMixer(nn.Module):
    """Projection, convolution, selective scan, gate, projection."""

    def __init__(self, spec: Mamba, width: int) -> None:
        super().__init__()
        self.spec = spec
        norm = spec.norm
        self.input = Linear(width, spec.channels, spec.bias)
        self.gate = Linear(width, spec.channels, spec.bias)
        self.convolution = CausalConvolution(spec.channels, spec.kernel, spec.convolution_bias)
        self.selection = Linear(spec.channels, spec.rank + 2 * spec.state)
        self.step_norm = None if norm is None else Normalise(norm, spec.rank)
        self.into_norm = None if norm is None else Normalise(norm, spec.state)
        self.out_of_norm = None if norm is None else Normalise(norm, spec.state)
        self.step = Linear(spec.rank, spec.channels)
        self.step_bias = nn.Parameter(torch.empty(spec.channels))
        # Lies as the states do: with channels first the compiler would lay out those likewise, several times slower.
        self.log_rate = nn.Parameter(torch.empty(spec.state, spec.channels))
        self.skip = nn.Parameter(torch.empty(spec.channels))
        self.output = Linear(spec.channels, width, spec.bias)

    def forward(self, x_btd: Tensor, shared: Shared, cache: LayerCache | None) -> Tensor:
        starts_bt = shared.visible.starts()
        inputs, state_bnc = (None, None) if cache is None or cache.state is None else cache.state
        x_btc, inputs = self.convolution(self.input(x_btd), starts_bt, inputs)
        x_btc = activate(x_btc, self.spec.activation)
        step_btc, into_btn, out_of_btn = self._select(x_btc)
        wide_btc, rate_nc = widen(x_btc), widen(self.log_rate).exp()
        if state_bnc is None:
            state_bnc = wide_btc.new_zeros(len(x_btc), *rate_nc.shape)
        form = recurrent if x_btc.shape[1] == 1 else chunked
        y_btc, state_bnc = form(wide_btc, step_btc, rate_nc, into_btn, out_of_btn, starts_bt, state_bnc)
        if cache is not None:
            cache.state = (inputs, state_bnc)
        y_btc = y_btc + widen(self.skip) * wide_btc
        return self.output((y_btc * F.silu(widen(self.gate(x_btd)))).to(x_btd.dtype))

    def _select(self, x_btc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step sizes, input weights and output weights of each token, in at least float32."""
        spec = self.spec
        step_btr, into_btn, out_of_btn = self.selection(x_btc).split((spec.rank, spec.state, spec.state), dim=-1)
        if self.step_norm is not None and self.into_norm is not None and self.out_of_norm is not None:
            step_btr, into_btn = self.step_norm(step_btr), self.into_norm(into_btn)
            out_of_btn = self.out_of_norm(out_of_btn)
        step_btc = F.softplus(widen(self.step(step_btr)) + self.step_bias)
        return step_btc, widen(into_btn), widen(out_of_btn)


def recurrent(
    x_btc: Tensor,
    step_btc: Tensor,
    rate_nc: Tensor,
    into_btn: Tensor,
    out_of_btn: Tensor,
    starts_bt: Tensor | None,
    state_bnc: Tensor,
) -> tuple[Tensor, Tensor]:
    """The scan as it is defined: the outputs y (batch, time, channels), and the state after the last token.

    state_bnc: before the first token. starts_bt: bool, the tokens that find a state of zeros, or None.
    """
    outputs = []
    for t in range(x_btc.shape[1]):
        decay_bnc = torch.exp(-step_btc[:, t, None] * rate_nc)
        if starts_bt is not None:
            decay_bnc = decay_bnc * ~starts_bt[:, t, None, None]
        entry_bnc = into_btn[:, t, :, None] * (step_btc * x_btc)[:, t, None]
        state_bnc = decay_bnc * state_bnc + entry_bnc
        outputs.append((out_of_btn[:, t, :, None] * state_bnc).sum(1))
    return torch.stack(outputs, dim=1), state_bnc


def chunked(
    x_btc: Tensor,
    step_btc: Tensor,
    rate_nc: Tensor,
    into_btn: Tensor,
    out_of_btn: Tensor,
    starts_bt: Tensor | None,
    state_bnc: Tensor,
) -> tuple[Tensor, Tensor]:
    """The same as `recurrent`, for many tokens at once; states are held for one span of tokens at a time."""
    outputs = []
    for start in range(0, x_btc.shape[1], SPAN):
        x, step, into, out_of = (part[:, start : start + SPAN] for part in (x_btc, step_btc, into_btn, out_of_btn))
        starts = None if starts_bt is None else starts_bt[:, start : start + SPAN]
        arguments = (x, step, rate_nc, into, out_of, starts, state_bnc)
        if torch.is_grad_enabled():
            y_btc, state_bnc = checkpoint(_scan_span, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            y_btc, state_bnc = _scan_span(*arguments)
        outputs.append(y_btc)
    return torch.cat(outputs, dim=1), state_bnc


def _scan_span(
    x_btc: Tensor,
    step_btc: Tensor,
    rate_nc: Tensor,
    into_btn: Tensor,
    out_of_btn: Tensor,
    starts_bt: Tensor | None,
    state_bnc: Tensor,
) -> tuple[Tensor, Tensor]:
    """All chunks of a span walk their few tokens side by side: once from nothing, to see what each adds to the state,
    and once more from the states that then are known."""
    # What fills up the last chunk has steps of zero, which change nothing.
    steps, entries, into, out_of = (
        in_chunks(part_bt, CHUNK) for part_bt in (step_btc, step_btc * x_btc, into_btn, out_of_btn)
    )
    chunks, size = steps.shape[1:3]
    kept_bkl = None if starts_bt is None else ~in_chunks(starts_bt, CHUNK)

    def walk(state_bknc: Tensor, outputs: list[Tensor] | None) -> Tensor:
        """The states after the last tokens."""
        for token in range(size):
            decay_bknc = torch.exp(-steps[:, :, token, None] * rate_nc)
            if kept_bkl is not None:
                decay_bknc = decay_bknc * kept_bkl[:, :, token, None, None]
            state_bknc = decay_bknc * state_bknc + into[:, :, token, :, None] * entries[:, :, token, None]
            if outputs is not None:
                outputs.append((out_of[:, :, token, :, None] * state_bknc).sum(2))
        return state_bknc

    before_bknc = state_bnc[:, None]
    if chunks > 1:
        added_bknc = walk(state_bnc.new_zeros(len(x_btc), chunks, *rate_nc.shape), None)
        through_bknc = torch.exp(-steps.sum(2)[:, :, None] * rate_nc)
        if kept_bkl is not None:
            through_bknc = through_bknc * kept_bkl.all(2)[..., None, None]
        after_bknc = linear_scan(through_bknc, added_bknc, state_bnc)
        before_bknc = torch.cat((before_bknc, after_bknc[:, :-1]), dim=1)
    outputs: list[Tensor] = []
    last_bknc = walk(before_bknc, outputs)
    # A copy of the last state, or a cache would hold those of all chunks.
    return torch.stack(outputs, dim=2).flatten(1, 2)[:, : x_btc.shape[1]], last_bknc[:, -1].clone()
