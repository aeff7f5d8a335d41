"""A mixture of experts as instructions of a program: only the choice among their scores is Python's.

As `ExpertNetworks.forward` has it: a copy of each token for each of its experts, sorted by expert, so that an expert is
one product; the products of all experts are shared out among the threads as one.

Shape suffixes: m tokens, c choices of a token, d model width, n copies (m · c).
"""

import torch
from torch import Tensor, nn

from groundup.engine.kernels.matrices import Matrix
from groundup.engine.kernels.program import Product, Program
from groundup.engine.model_matrices import ModelMatrices, are_readable, bias_of
from groundup.model.experts import MixtureOfExperts, choose
from groundup.model.specs import Router


def write_experts(
    program: Program,
    matrices: ModelMatrices,
    network: MixtureOfExperts,
    logits_me: Tensor,
    x_md: Tensor,
    out_md: Tensor,
    residual_md: Tensor | None,
) -> None:
    """Append out = residual + what the chosen experts answer to x; `out` may be any of the two.

    logits_me: of the router.
    """
    spec, router, width = network.spec.expert, network.spec.router, x_md.shape[1]
    copies = program.buffer("copies", router.chosen * width)
    weights_mc = program.buffer("weights of experts", router.chosen)
    starts = torch.zeros(router.experts + 1, dtype=torch.int64)
    places_mc = torch.zeros(program.tokens, router.chosen, dtype=torch.int64)

    def route(tokens: int) -> None:
        scores_me = _scores(router, logits_me[:tokens])
        routing, weights_mc[:tokens] = choose(router, logits_me[:tokens], scores_me, network.correction)
        experts_n = routing.experts_nc.flatten()
        order_n = experts_n.argsort(stable=True)
        starts[1:] = experts_n.bincount(minlength=router.experts).cumsum(0)
        places_mc.view(-1)[order_n] = torch.arange(len(order_n))
        torch.index_select(x_md, 0, order_n // router.chosen, out=copies.view(-1, width)[: len(order_n)])

    program.call(route)
    outs = {name: program.buffer(f"expert {name}", router.chosen * spec.width) for name in _inner(network)}

    def products(name: str, out: Tensor) -> list[Product]:
        experts = network.experts.get_submodule(name)
        return _products(matrices.of_experts(experts), experts, out)

    program.grouped(copies, starts, *(products(name, out) for name, out in outs.items()))
    up, gate = outs["up"], outs.get("gate")
    program.activate_as(spec, up, gate)
    program.grouped(up, starts, products("down", copies))
    program.combine(copies, weights_mc, places_mc, residual_md, out_md)


def _scores(router: Router, logits_me: Tensor) -> Tensor:
    """PyTorch's own sigmoid rounds the last numbers of a tensor otherwise than those before them."""
    return 1 / (1 + torch.exp(-logits_me)) if router.score == "sigmoid" else logits_me.softmax(-1)


def are_experts_readable(network: MixtureOfExperts) -> bool:
    """Whether the kernels read all matrices of the experts, and of what chooses among them."""
    experts = [network.experts.get_submodule(name) for name in (*_inner(network), "down")]
    return are_readable([*experts, network.router, network.shared_gate])


def _inner(network: MixtureOfExperts) -> list[str]:
    return ["up"] if network.experts.gate is None else ["up", "gate"]


def _products(matrices: list[Matrix], experts: nn.Module, out: Tensor) -> list[Product]:
    """Of each expert."""
    bias_en = bias_of(experts)
    biases = [None] * len(matrices) if bias_en is None else bias_en.unbind()
    return [Product(matrix, bias_n, out) for matrix, bias_n in zip(matrices, biases, strict=True)]
