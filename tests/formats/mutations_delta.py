"""Deliberate mistakes in Qwen3-Next and LFM2, each of which the comparison with the reference must see."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from groundup.formats.families import lfm2, qwen3_next
from groundup.formats.rules import Joined, JoinedByGroup, Rule
from groundup.model import delta
from groundup.model.attention import SelfAttention
from groundup.model.config import ModelConfig
from groundup.model.convolution import CausalConvolution
from groundup.model.delta import GatedDelta
from groundup.model.delta_specs import GatedDeltaNet
from groundup.model.specs import Attention, Experts, LayerSpec, Norm, QueryKeyNorm

Change = Callable[[ModelConfig], ModelConfig]


def _layers(change: Callable[[LayerSpec], LayerSpec]) -> Change:
    return lambda config: replace(config, layers=tuple(map(change, config.layers)))


def _mixers(kind: type, **changes: Any) -> Change:
    """The configuration with these fields changed in every mixer of a kind; a function is given the old value."""

    def changed(layer: LayerSpec) -> LayerSpec:
        if not isinstance(layer.mixer, kind):
            return layer
        values = {
            name: value(getattr(layer.mixer, name)) if callable(value) else value for name, value in changes.items()
        }
        return replace(layer, mixer=replace(layer.mixer, **values))

    return _layers(changed)


def _router(**changes: Any) -> Change:
    def changed(layer: LayerSpec) -> LayerSpec:
        if not isinstance(layer.feed_forward, Experts):
            return layer
        router = replace(layer.feed_forward.router, **changes)
        return replace(layer, feed_forward=replace(layer.feed_forward, router=router))

    return _layers(changed)


def _experts(**changes: Any) -> Change:
    def changed(layer: LayerSpec) -> LayerSpec:
        if not isinstance(layer.feed_forward, Experts):
            return layer
        return replace(layer, feed_forward=replace(layer.feed_forward, **changes))

    return _layers(changed)


def _ten_times(norm: Norm) -> Norm:
    return replace(norm, eps=10 * norm.eps)


def _plain(norm: Norm) -> Norm:
    return replace(norm, kind="rms")


def _heads(change: Callable[[Norm], Norm]) -> Change:
    """The change in the norm of queries and keys."""
    return _mixers(Attention, query_key_norm=lambda wanted: QueryKeyNorm(change(wanted.norm)))


def _rope(**changes: Any) -> Change:
    return _mixers(Attention, rope=lambda rope: replace(rope, **changes))


def _networks(activation: Any) -> Change:
    return _layers(lambda layer: replace(layer, feed_forward=replace(layer.network, activation=activation)))


# What is changed in the configuration: variant, change.
MUTATIONS: dict[str, tuple[str, Change]] = {
    "qwen3_next: norms with a plain weight": (
        "qwen3_next",
        _layers(lambda layer: replace(layer, norm=_plain(layer.norm))),
    ),
    "qwen3_next: final norm with a plain weight": (
        "qwen3_next",
        lambda config: replace(config, final_norm=_plain(config.layers[0].norm)),
    ),
    "qwen3_next: epsilon of the norms": (
        "qwen3_next",
        _layers(lambda layer: replace(layer, norm=_ten_times(layer.norm))),
    ),
    "qwen3_next: query and key norm with a plain weight": ("qwen3_next", _heads(_plain)),
    "qwen3_next: epsilon of the query and key norm": ("qwen3_next", _heads(_ten_times)),
    "qwen3_next: no query and key norm": ("qwen3_next", _mixers(Attention, query_key_norm=None)),
    "qwen3_next: query and key norm after the rotation": (
        "qwen3_next",
        _mixers(Attention, query_key_norm=lambda wanted: replace(wanted, after_rope=True)),
    ),
    "qwen3_next: epsilon of the output's norm": ("qwen3_next", _mixers(GatedDeltaNet, norm_eps=1e-2)),
    "qwen3_next: rotary base": ("qwen3_next", _rope(theta=301.0)),
    "qwen3_next: half of each head rotated": ("qwen3_next", _rope(dims=8)),
    "qwen3_next: rotary pairs": ("qwen3_next", _rope(interleaved=True)),
    "qwen3_next: rotary sign": ("qwen3_next", _rope(reversed=True)),
    "qwen3_next: no output gate": ("qwen3_next", _mixers(Attention, output_gate=False)),
    "qwen3_next: score scale": ("qwen3_next", _mixers(Attention, scale=0.24)),
    "qwen3_next: activation after the convolution": ("qwen3_next", _mixers(GatedDeltaNet, activation="gelu")),
    "qwen3_next: activation of dense networks": ("qwen3_next no attention", _networks("gelu")),
    "qwen3_next: router not normalised": ("qwen3_next", _router(normalised=False)),
    "qwen3_next: router normalised": ("qwen3_next tied, not normalised", _router(normalised=True)),
    "qwen3_next: one expert less": ("qwen3_next", _router(chosen=1)),
    "qwen3_next: no gate on the shared network": ("qwen3_next", _experts(shared_gate=False)),
    "qwen3_next: no shared network": ("qwen3_next", _experts(shared=None, shared_gate=False)),
    "lfm2: epsilon of the norms": ("lfm2", _layers(lambda layer: replace(layer, norm=_ten_times(layer.norm)))),
    "lfm2: epsilon of the final norm": ("lfm2", lambda config: replace(config, final_norm=Norm("rms", 1e-2))),
    "lfm2: no final norm": ("lfm2", lambda config: replace(config, final_norm=None)),
    "lfm2: epsilon of the query and key norm": ("lfm2", _heads(_ten_times)),
    "lfm2: query and key norm after the rotation": (
        "lfm2",
        _mixers(Attention, query_key_norm=lambda wanted: replace(wanted, after_rope=True)),
    ),
    "lfm2: rotary base": ("lfm2", _rope(theta=301.0)),
    "lfm2: rotary pairs": ("lfm2", _rope(interleaved=True)),
    "lfm2: activation": ("lfm2", _networks("gelu")),
    "lfm2_moe: router not normalised": ("lfm2_moe", _router(normalised=False)),
    "lfm2_moe: nothing added to the sum of the weights": ("lfm2_moe", _router(least_sum=1e-20)),
    "lfm2_moe: softmax": ("lfm2_moe", _router(score="softmax")),
    "lfm2_moe: no correction": ("lfm2_moe", _router(correction=False)),
    "lfm2_moe: scale": ("lfm2_moe", _router(scale=1.0)),
}


@dataclass(frozen=True)
class Patch:
    """A mistake in code: the attribute of an object, and what stands there instead."""

    variant: str
    target: object
    name: str
    wrong: Any


def _tiled_heads(self: GatedDelta, mixed_btc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value head h reads with key head h modulo their number."""
    q_bthk, k_bthk, v_bthv = _RIGHT_HEADS(self, mixed_btc)
    heads, served = self.spec.key_heads, self.spec.value_heads // self.spec.key_heads
    order = torch.arange(heads * served).view(heads, served).T.flatten()
    return q_bthk[:, :, order], k_bthk[:, :, order], v_bthv


def _unscaled_queries(self: GatedDelta, mixed_btc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """With an epsilon under the norm behind, the size of the output is not lost on it."""
    q_bthk, k_bthk, v_bthv = _RIGHT_HEADS(self, mixed_btc)
    return q_bthk * self.spec.key_dim**0.5, k_bthk, v_bthv


def _swapped_queries(self: GatedDelta, mixed_btc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q_bthk, k_bthk, v_bthv = _RIGHT_HEADS(self, mixed_btc)
    return k_bthk * self.spec.key_dim**-0.5, q_bthk * self.spec.key_dim**0.5, v_bthv


def _gated_first(self: GatedDelta, out_bthv: Tensor, gate_btd: Tensor) -> Tensor:
    return self.norm(out_bthv * F.silu(gate_btd).view(out_bthv.shape)).flatten(2)


def _sigmoid_gated(self: GatedDelta, out_bthv: Tensor, gate_btd: Tensor) -> Tensor:
    return self.norm(out_bthv).flatten(2) * torch.sigmoid(gate_btd)


def _doubled_strength(self: GatedDelta, x_btd: Tensor) -> tuple[Tensor, Tensor]:
    log_decay_bth, strength_bth = _RIGHT_GATES(self, x_btd)
    return log_decay_bth, 2 * strength_bth


def _bias_behind_the_softplus(self: GatedDelta, x_btd: Tensor) -> tuple[Tensor, Tensor]:
    step_bth = F.softplus(self.step(x_btd)) + self.step_bias
    return -self.log_rate.exp() * step_bth, _RIGHT_GATES(self, x_btd)[1]


def _rate_without_exponential(self: GatedDelta, x_btd: Tensor) -> tuple[Tensor, Tensor]:
    step_bth = F.softplus(self.step(x_btd) + self.step_bias)
    return self.log_rate * step_bth, _RIGHT_GATES(self, x_btd)[1]


def _decayed_after_reading(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    q_bthk, k_bthk, v_bthv, log_decay_bth, strength_bth, state = inputs
    outputs = []
    for t in range(q_bthk.shape[1]):
        found_bhv = torch.einsum("bhkv,bhk->bhv", state, k_bthk[:, t])
        change_bhv = strength_bth[:, t, :, None] * (v_bthv[:, t] - found_bhv)
        state = state * log_decay_bth[:, t, :, None, None].exp() + k_bthk[:, t, :, :, None] * change_bhv[:, :, None]
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q_bthk[:, t]))
    return torch.stack(outputs, dim=1), state


def _without_correction(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Plain linear attention with decay: what a key finds is left where it is."""
    q_bthk, k_bthk, v_bthv, log_decay_bth, strength_bth, state = inputs
    outputs = []
    for t in range(q_bthk.shape[1]):
        state = state * log_decay_bth[:, t, :, None, None].exp()
        state = state + k_bthk[:, t, :, :, None] * (strength_bth[:, t, :, None] * v_bthv[:, t])[:, :, None]
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q_bthk[:, t]))
    return torch.stack(outputs, dim=1), state


def _reversed_taps(
    self: CausalConvolution, x_btc: Tensor, starts_bt: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    flipped = CausalConvolution(x_btc.shape[2], self.weight.shape[-1], self.bias is not None)
    flipped.weight = torch.nn.Parameter(self.weight.flip(-1))
    flipped.bias = self.bias
    return _RIGHT_CONVOLUTION(flipped, x_btc, starts_bt, state)


def _one_token_late(
    self: CausalConvolution, x_btc: Tensor, starts_bt: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    y_btc, state = _RIGHT_CONVOLUTION(self, x_btc, starts_bt, state)
    return F.pad(y_btc, (0, 0, 1, 0))[:, :-1], state


def _gate_of_the_opposite_sign(self: SelfAttention, *args: Any) -> Tensor:
    assert self.output_gate is not None
    self.output_gate.weight.neg_()
    out_btd = _RIGHT_ATTENTION(self, *args)
    self.output_gate.weight.neg_()
    return out_btd


def _no_groups_of(wanted: int) -> Callable[[int], Any]:
    """What lies grouped by `wanted` heads is taken as one part after the other."""
    return lambda groups: Joined() if groups == wanted else JoinedByGroup(groups)


def _swapped(first: str, second: str) -> Callable[[Sequence[str], str, int], Rule]:
    def joined(ours: Sequence[str], disk: str, groups: int) -> Rule:
        if first in ours and second in ours:
            ours = [{first: second, second: first}.get(name, name) for name in ours]
        return _RIGHT_JOINED(ours, disk, groups)

    return joined


_RIGHT_HEADS, _RIGHT_GATES = GatedDelta._heads, GatedDelta._gates
_RIGHT_CONVOLUTION, _RIGHT_ATTENTION = CausalConvolution.forward, SelfAttention.forward
_RIGHT_JOINED = qwen3_next._joined
_INPUTS = lfm2.CONVOLUTION_INPUTS


def _ordered(*places: int) -> Rule:
    return Rule(tuple(_INPUTS.ours[place] for place in places), _INPUTS.disk, Joined())


PATCHES: dict[str, Patch] = {
    "delta: epsilon of lengths": Patch("qwen3_next", delta, "LENGTH_EPS", 1e-5),
    "delta: key heads in turn": Patch("qwen3_next", GatedDelta, "_heads", _tiled_heads),
    "delta: queries not scaled": Patch("qwen3_next", GatedDelta, "_heads", _unscaled_queries),
    "delta: queries for keys": Patch("qwen3_next", GatedDelta, "_heads", _swapped_queries),
    "delta: gate before norm": Patch("qwen3_next", GatedDelta, "_gated", _gated_first),
    "delta: gate by a sigmoid": Patch("qwen3_next", GatedDelta, "_gated", _sigmoid_gated),
    "delta: strength up to two": Patch("qwen3_next", GatedDelta, "_gates", _doubled_strength),
    "delta: bias behind the softplus": Patch("qwen3_next", GatedDelta, "_gates", _bias_behind_the_softplus),
    "delta: rate without exponential": Patch("qwen3_next", GatedDelta, "_gates", _rate_without_exponential),
    "delta: decay after reading": Patch("qwen3_next", delta, "chunked", _decayed_after_reading),
    "delta: no correction": Patch("qwen3_next", delta, "chunked", _without_correction),
    "delta: taps reversed": Patch("qwen3_next", CausalConvolution, "forward", _reversed_taps),
    "delta: convolution one token late": Patch("qwen3_next", CausalConvolution, "forward", _one_token_late),
    "qwen3_next: gate of the opposite sign": Patch(
        "qwen3_next attention alone", SelfAttention, "forward", _gate_of_the_opposite_sign
    ),
    "qwen3_next: queries and gates in halves": Patch("qwen3_next", qwen3_next, "JoinedByGroup", _no_groups_of(4)),
    "qwen3_next: delta inputs one by one": Patch("qwen3_next", qwen3_next, "JoinedByGroup", _no_groups_of(2)),
    "qwen3_next: gate first": Patch("qwen3_next", qwen3_next, "_joined", _swapped("query", "output_gate")),
    "qwen3_next: value for gate": Patch("qwen3_next", qwen3_next, "_joined", _swapped("value", "gate")),
    "qwen3_next: strength for step": Patch("qwen3_next", qwen3_next, "_joined", _swapped("strength", "step")),
    "lfm2: gates swapped": Patch("lfm2", lfm2, "CONVOLUTION_INPUTS", _ordered(1, 0, 2)),
    "lfm2: value swapped with the gate behind": Patch("lfm2", lfm2, "CONVOLUTION_INPUTS", _ordered(0, 2, 1)),
    "lfm2: taps reversed": Patch("lfm2", CausalConvolution, "forward", _reversed_taps),
    "lfm2: convolution one token late": Patch("lfm2", CausalConvolution, "forward", _one_token_late),
    "lfm2: no mixing of tokens": Patch("lfm2", CausalConvolution, "forward", lambda _, x, *rest: (x, x[:, :3])),
}
