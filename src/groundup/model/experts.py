"""Mixture of experts: a router sends each token through a few of many feed-forward networks.

Sources: Shazeer et al. 2017; Switch (Fedus et al. 2021); Mixtral (Jiang et al. 2024); DeepSeek-V3 (2024, section 2.1).
Shape suffixes: b batch, t time, n tokens (batch and time flattened), c choices of a token, m all choices (n · c), e
experts, g groups of experts, d model width.
"""

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model.context import LayerCache, Visibility
from groundup.model.feedforward import DenseFeedForward, gated_activation
from groundup.model.parts import Linear, Multiply, Rounding, widen
from groundup.model.specs import Experts, FeedForward, Router


class Routing(NamedTuple):
    """Where one layer sent its tokens; what balances the experts in training is computed from it.

    logits_ne: the router's raw outputs; scores_ne: between 0 and 1, not corrected; both in at least float32.
    experts_nc: the chosen experts, int64, best first.
    """

    logits_ne: Tensor
    scores_ne: Tensor
    experts_nc: Tensor


def route(spec: Router, logits_ne: Tensor, correction_e: Tensor | None = None) -> tuple[Routing, Tensor]:
    """Choose each token's experts; the second result are the weights of their outputs, (tokens, choices).

    correction_e: added to the scores for the choice, not for the weights (DeepSeek-V3, eq. 16), or None.
    """
    scores_ne = logits_ne.sigmoid() if spec.score == "sigmoid" else logits_ne.softmax(dim=-1)
    return choose(spec, logits_ne, scores_ne, correction_e)


def choose(spec: Router, logits_ne: Tensor, scores_ne: Tensor, correction_e: Tensor | None) -> tuple[Routing, Tensor]:
    """The same by these scores."""
    rank_ne = scores_ne.detach() if correction_e is None else scores_ne.detach() + correction_e
    if spec.chosen_groups < spec.groups:
        rank_neg = rank_ne.unflatten(-1, (spec.groups, -1))
        group_rank_ng = rank_neg.topk(spec.group_best, dim=-1).values.sum(-1)
        left_out_ng = torch.ones_like(group_rank_ng, dtype=torch.bool)
        left_out_ng.scatter_(1, group_rank_ng.topk(spec.chosen_groups, dim=-1).indices, False)
        rank_ne = rank_neg.masked_fill(left_out_ng[..., None], float("-inf")).flatten(1)
    experts_nc = rank_ne.topk(spec.chosen, dim=-1).indices
    weights_nc = scores_ne.gather(1, experts_nc)
    if spec.normalised:
        weights_nc = weights_nc / (weights_nc.sum(-1, keepdim=True) + spec.least_sum)
    return Routing(logits_ne, scores_ne, experts_nc), weights_nc * spec.scale


def has_room(spec: Router, experts_bt: Tensor, visible: Visibility, cache: LayerCache | None) -> Tensor:
    """Whether the expert that a token chose has room for it: bool (batch, time).

    It takes the first `capacity` tokens of each text that chose it; padding counts as a text of its own, so it takes
    no room of others. Source: Switch, section 2.2, with a capacity that does not depend on how long a text is.
    """
    assert spec.capacity is not None
    taken_bte = F.one_hot(experts_bt, spec.experts)
    count_bte = taken_bte.cumsum(1)
    if cache is not None and cache.load is not None:
        count_bte = count_bte + cache.load[:, None]
    starts_bt = visible.starts()
    if starts_bt is not None:  # texts begin within these tokens: what came before the first of each does not count
        first_bt = (starts_bt * torch.arange(starts_bt.shape[1], device=starts_bt.device)).cummax(1).values
        before_bte = (count_bte - taken_bte).gather(1, first_bt[..., None].expand_as(count_bte))
        count_bte = count_bte - before_bte * (starts_bt.cumsum(1) > 0)[..., None]
    if cache is not None:
        cache.load = count_bte[:, -1]
    return count_bte.gather(2, experts_bt[..., None])[..., 0] <= spec.capacity


class ExpertLinear(nn.Module):
    """A linear map for each expert: weight (experts, outputs, inputs), bias (experts, outputs) or None."""

    def __init__(self, experts: int, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.experts = experts
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(experts, outputs)) if bias else None
        self.rounding: Rounding | None = None
        self.multiply: Multiply | None = None

    def forward(self, parts: list[Tensor]) -> list[Tensor]:
        """parts: the tokens of each expert, (any number, inputs); one without tokens costs nothing, not even a cast."""
        # Unbound in one go: the gradients are then stacked once, where indexing would add up full stacks of zeros.
        weights = (self.weight if self.rounding is None else self.rounding.weights(self.weight)).unbind()
        if self.rounding is not None:
            parts = [self.rounding.activations(x) for x in parts]
        biases = [None] * len(parts) if self.bias is None else self.bias.unbind()
        multiply = self.multiply or _multiply
        return [
            multiply(x, weight, bias) if len(x) else x.new_empty(0, weight.shape[0])
            for x, weight, bias in zip(parts, weights, biases, strict=True)
        ]


def _multiply(x: Tensor, weight_nk: Tensor, bias_n: Tensor | None) -> Tensor:
    return F.linear(x, weight_nk.to(x.dtype), None if bias_n is None else bias_n.to(x.dtype))


class ExpertNetworks(nn.Module):
    """Feed-forward networks of one shape, each of which sees only the tokens that were sent to it."""

    def __init__(self, spec: FeedForward, experts: int, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.up = ExpertLinear(experts, width, spec.width, spec.bias)
        self.gate = ExpertLinear(experts, width, spec.width, spec.bias) if spec.gated else None
        self.down = ExpertLinear(experts, spec.width, width, spec.bias)

    def forward(self, x_nd: Tensor, experts_nc: Tensor, weights_nc: Tensor) -> Tensor:
        """The weighted sum of the outputs of each token's experts, (tokens, width).

        Copies of the tokens are sorted by expert, so that each expert is one matrix product, and sorted back. Both
        ways are permutations: no gradient is summed in an order that could change.
        """
        tokens, choices = experts_nc.shape
        experts_m = experts_nc.flatten()
        order_m = experts_m.argsort(stable=True)
        sizes = experts_m.bincount(minlength=self.up.experts).tolist()
        copies_md = x_nd[:, None].expand(tokens, choices, -1).flatten(0, 1)
        parts = list(copies_md.index_select(0, order_m).split(sizes))
        ups = self.up(parts)
        gates = [None] * len(parts) if self.gate is None else self.gate(parts)
        outputs = self.down([gated_activation(self.spec, up, gate) for up, gate in zip(ups, gates, strict=True)])
        y_ncd = torch.cat(outputs).index_select(0, order_m.argsort()).unflatten(0, (tokens, choices))
        return (y_ncd * weights_nc[..., None]).sum(1)


@cache
def leave_uncompiled() -> None:
    """Have torch's compiler leave the networks of experts as they are.

    How many tokens each gets is known only at run time: every step would be a new program. This is not said where they
    are defined, since torch takes seconds to import what it needs for that.
    """
    ExpertNetworks.forward = torch.compiler.disable(ExpertNetworks.forward)  # type: ignore[method-assign]


class MixtureOfExperts(nn.Module):
    """Router, experts and, where there is one, the network that every token passes through beside them."""

    def __init__(self, spec: Experts, width: int) -> None:
        super().__init__()
        self.spec = spec
        experts = spec.router.experts
        self.router = Linear(width, experts, spec.router.bias)
        # Moved by the balance of the experts' load, never by a gradient.
        corrected = spec.router.correction
        self.correction = nn.Parameter(torch.empty(experts), requires_grad=False) if corrected else None
        self.experts = ExpertNetworks(spec.expert, experts, width)
        self.shared = None if spec.shared is None else DenseFeedForward(spec.shared, width)
        self.shared_gate = Linear(width, 1) if spec.shared_gate else None

    def forward(
        self, x_btd: Tensor, visible: Visibility | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, Routing]:
        """The output, of the shape of x, and where the tokens went.

        visible, cache: of the layer, for experts with a capacity, which count the tokens of each text.
        """
        x_nd = x_btd.flatten(0, 1)
        routing, weights_nc = self.choose(x_nd)
        if self.spec.router.capacity is not None:
            assert visible is not None
            room_bt = has_room(self.spec.router, routing.experts_nc.view(x_btd.shape[:2]), visible, cache)
            weights_nc = weights_nc * room_bt.view(-1, 1)
        out_nd: Tensor = self.experts(x_nd, routing.experts_nc, weights_nc.to(x_nd.dtype))
        if self.shared is not None:
            shared_nd = self.shared(x_nd)
            if self.shared_gate is not None:
                shared_nd = shared_nd * torch.sigmoid(self.shared_gate(x_nd))
            out_nd = out_nd + shared_nd
        return out_nd.view_as(x_btd), routing

    def choose(self, x_nd: Tensor) -> tuple[Routing, Tensor]:
        """Where each token goes, and the weights of what its experts answer, (tokens, choices); see `route`."""
        # Scores are computed in at least float32: rounded, they would change which experts are chosen (Switch, 2.4).
        logits_ne = self.router(widen(x_nd))
        return route(self.spec.router, logits_ne, self.correction)
