"""What keeps the experts of a layer equally busy: two losses, and a correction that needs none.

All take one layer's `Routing` (`model/experts.py`), which `LanguageModel.hidden` hands out; losses are means
over its tokens.
Shape suffixes: n tokens, c choices of a token, e experts.
"""

import torch
from torch import Tensor

from groundup.model.experts import Routing


def expert_load(routing: Routing, counted_n: Tensor | None = None) -> Tensor:
    """How many choices fell on each expert, (experts,), in the type of the scores; summable over batches and ranks.

    counted_n: bool, the tokens that count (no padding), or None for all.
    """
    counted_n1 = _counted(routing, counted_n)[:, None]
    load_e = torch.zeros_like(routing.scores_ne[0])
    return load_e.index_add(0, routing.experts_nc.flatten(), counted_n1.expand_as(routing.experts_nc).flatten())


def load_balance_loss(routing: Routing, counted_n: Tensor | None = None) -> Tensor:
    """E · Σ_e f_e · P_e, with f_e the share of all choices that fell on expert e and P_e its mean score.

    Scores are first made to sum to 1 for each token. The loss is 1 where load or scores are even, at most E, and moves
    the scores alone, since a share has no gradient.
    Source: Fedus et al. 2021 (Switch), eq. 4; for more choices than one f is divided by their number as in DeepSeek-V3,
    eq. 17 (`transformers` does not: its Mixtral and Qwen losses are larger by that factor).
    """
    counted_n = _counted(routing, counted_n)
    load_e = expert_load(routing, counted_n).detach()
    shares_ne = routing.scores_ne / routing.scores_ne.sum(-1, keepdim=True)
    mean_e = (shares_ne * counted_n[:, None]).sum(0) / counted_n.sum()
    return load_e.numel() * (load_e / load_e.sum() @ mean_e)


def router_z_loss(routing: Routing, counted_n: Tensor | None = None) -> Tensor:
    """The mean of (log Σ_e exp logit_e)²: keeps the router's logits small. Source: Zoph et al. 2022 (ST-MoE), eq. 5."""
    counted_n = _counted(routing, counted_n)
    return (torch.logsumexp(routing.logits_ne, dim=-1).square() * counted_n).sum() / counted_n.sum()


@torch.no_grad()
def update_correction(correction_e: Tensor, load_e: Tensor, rate: float) -> None:
    """Raise the correction of each expert with less than the mean load by `rate`, lower that of each with more.

    load_e: `expert_load` of the whole step. Source: Wang et al. 2024, "Auxiliary-Loss-Free Load Balancing", as in
    DeepSeek-V3 (rate 0.001).
    """
    correction_e.add_(torch.sign(load_e.mean() - load_e).to(correction_e.dtype), alpha=rate)


def _counted(routing: Routing, counted_n: Tensor | None) -> Tensor:
    """1 for tokens that count, else 0, in the type of the scores."""
    scores_ne = routing.scores_ne
    return scores_ne.new_ones(len(scores_ne)) if counted_n is None else counted_n.to(scores_ne.dtype)
