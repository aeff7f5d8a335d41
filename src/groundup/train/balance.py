"""What keeps the experts of a layer equally busy: two losses, and a correction that needs none.

A step's rows are spread over micro-batches and ranks, and what they add up to must not depend on how. So each loss is
one of a *row*, as DeepSeek-V3's is of a sequence (2024, section 2.1.2, eq. 17 to 20), averaged over the rows of a step.
The load-balance loss is a product of two means over tokens. Taken over a whole batch (Switch, Mixtral) it would not be
the sum of those of its parts: the mean loads of all ranks would have to be known before any gradient is computed. A
row, which is never split, has both. Corrections follow the load of the whole step, a plain sum.

All take one layer's `Routing` (`model/experts.py`), which `Stack.run` hands out.
Shape suffixes: n tokens (b rows · t places), c choices of a token, e experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from groundup.model.experts import MixtureOfExperts, Routing


@dataclass(frozen=True)
class Balance:
    """Factors on the load-balance loss and the z-loss of each layer, and the step of corrections."""

    load: float
    z: float
    correction: float


class Routed(NamedTuple):
    """Where one layer sent the tokens of some rows. counted_bt: bool, the tokens that count (no padding)."""

    routing: Routing
    counted_bt: Tensor


def published_balance(model: nn.Module) -> Balance | None:
    """The published factors for a model's kind of routers; None for a model without experts.

    Load balance 0.01 (Fedus et al. 2021) and z-loss 0.001 (Zoph et al. 2022); where corrections do most of the work,
    load balance 0.0001, no z-loss, and corrections in steps of 0.001 (DeepSeek-V3 2024, section 4.2).
    """
    found = routers(model)
    if not found:
        return None
    return Balance(1e-4, 0.0, 1e-3) if found[0].correction is not None else Balance(1e-2, 1e-3, 0.0)


def routers(model: nn.Module) -> list[MixtureOfExperts]:
    """The parts of a model that route, first layer first, an encoder's before a decoder's."""
    return [module for module in model.modules() if isinstance(module, MixtureOfExperts)]


def balance_loss(routed: Sequence[Routed], balance: Balance) -> tuple[Tensor, Tensor]:
    """What is minimised beside the tokens' loss, and the tally from which `end_step` goes on.

    Both are sums over rows. The tally, float64: both losses without their factors, then each layer's load of each
    expert.
    """
    load = torch.stack([load_balance_loss(*one).sum() for one in routed]).sum()
    z = torch.stack([router_z_loss(*one).sum() for one in routed]).sum()
    loads = [expert_load(*one).sum(0).double() for one in routed]
    return balance.load * load + balance.z * z, torch.cat([torch.stack((load, z)).detach().double(), *loads])


def end_step(found: Sequence[MixtureOfExperts], tally: Tensor, rows: int, balance: Balance) -> dict[str, float]:
    """Move the corrections by the tally of all `rows` rows of a step; returns the figures for the metrics stream.

    Losses are means over rows and layers. `expert_load_max` and `expert_load_min` are the loads of the busiest and the
    idlest expert of any layer, as a multiple of an even share.
    """
    (load_loss, z_loss), loads = tally[:2].tolist(), tally[2:].split([len(one.router.weight) for one in found])
    for one, load_e in zip(found, loads, strict=True):
        if one.correction is not None:
            update_correction(one.correction, load_e, balance.correction)
    shares = [load_e / load_e.mean() for load_e in loads]
    return {
        "load_balance_loss": load_loss / (rows * len(found)),
        "router_z_loss": z_loss / (rows * len(found)),
        "expert_load_max": max(float(share_e.max()) for share_e in shares),
        "expert_load_min": min(float(share_e.min()) for share_e in shares),
    }


def expert_load(routing: Routing, counted_bt: Tensor) -> Tensor:
    """How many choices of each row's tokens fell on each expert, (rows, experts), in the type of the scores."""
    rows, experts = len(counted_bt), routing.scores_ne.shape[1]
    chosen_bm = routing.experts_nc.reshape(rows, -1)
    counted_btc = counted_bt[..., None].expand(*counted_bt.shape, routing.experts_nc.shape[1])
    weights_bm = counted_btc.reshape(rows, -1).to(routing.scores_ne.dtype)
    return weights_bm.new_zeros(rows, experts).scatter_add(1, chosen_bm, weights_bm)


def load_balance_loss(routing: Routing, counted_bt: Tensor) -> Tensor:
    """E · Σ_e f_e · P_e of each row, (rows,); f_e is the share of choices that fell on expert e, P_e its mean score.

    Scores are first made to sum to 1 for each token. The loss is 1 where load or scores are even, at most E, 0 for a
    row of padding, and moves the scores alone, since a share has no gradient.
    Source: DeepSeek-V3, eq. 17 to 20, with f_e of the choices as they were made (there: as they would have been without
    corrections); for a single row Fedus et al. 2021 (Switch), eq. 4, f_e divided by the number of choices
    (`transformers` does not: its Mixtral and Qwen losses are larger by that factor).
    """
    load_be = expert_load(routing, counted_bt)
    share_be = load_be / load_be.sum(1, keepdim=True).clamp(min=1)
    scores_ne = routing.scores_ne / routing.scores_ne.sum(-1, keepdim=True)
    mean_be = _row_means(scores_ne, counted_bt)
    return load_be.shape[1] * (share_be * mean_be).sum(1)


def router_z_loss(routing: Routing, counted_bt: Tensor) -> Tensor:
    """The mean of (log Σ_e exp logit_e)² of each row, (rows,): keeps the router's logits small.

    Source: Zoph et al. 2022 (ST-MoE), eq. 5.
    """
    return _row_means(torch.logsumexp(routing.logits_ne, dim=-1, keepdim=True).square(), counted_bt)[:, 0]


@torch.no_grad()
def update_correction(correction_e: Tensor, load_e: Tensor, rate: float) -> None:
    """Raise the correction of each expert with less than the mean load by `rate`, lower that of each with more.

    load_e: of the whole step. Source: Wang et al. 2024, "Auxiliary-Loss-Free Load Balancing", as in DeepSeek-V3.
    """
    correction_e.add_(torch.sign(load_e.mean() - load_e).to(correction_e.dtype), alpha=rate)


def _row_means(values_ne: Tensor, counted_bt: Tensor) -> Tensor:
    """The means over each row's tokens that count, (rows, e)."""
    counted_bt1 = counted_bt[..., None].to(values_ne.dtype)
    return (values_ne.view(*counted_bt.shape, -1) * counted_bt1).sum(1) / counted_bt1.sum(1).clamp(min=1)
