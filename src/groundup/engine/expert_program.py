"""A mixture of experts as instructions of a program: only the router is asked in Python.

As `ExpertNetworks.forward` has it: a copy of each token for each of its experts, sorted by expert, so that an expert is
one product; the products of all experts are shared out among the threads as one.

Shape suffixes: m tokens, c choices of a token, d model width, n copies (m · c).
"""

import torch
from torch import Tensor, nn

from groundup.engine.kernels.program import Product, Program
from groundup.model.experts import MixtureOfExperts
from groundup.quantize.modules import QuantizedExpertLinear


def write_experts(
    program: Program, network: MixtureOfExperts, x_md: Tensor, out_md: Tensor, residual_md: Tensor | None
) -> None:
    """Append out = residual + what the chosen experts answer to x; `out` may be any of the two."""
    spec, router, width = network.spec.expert, network.spec.router, x_md.shape[1]
    copies = program.buffer("copies", router.chosen * width)
    weights_mc = program.buffer("weights of experts", router.chosen)
    starts = torch.zeros(router.experts + 1, dtype=torch.int64)
    places_mc = torch.zeros(program.tokens, router.chosen, dtype=torch.int64)

    def route(tokens: int) -> None:
        routing, weights_mc[:tokens] = network.choose(x_md[:tokens])
        experts_n = routing.experts_nc.flatten()
        order_n = experts_n.argsort(stable=True)
        starts[1:] = experts_n.bincount(minlength=router.experts).cumsum(0)
        places_mc.view(-1)[order_n] = torch.arange(len(order_n))
        torch.index_select(x_md, 0, order_n // router.chosen, out=copies.view(-1, width)[: len(order_n)])

    program.call(route)
    outs = {name: program.buffer(f"expert {name}", router.chosen * spec.width) for name in _inner(network)}
    products = [_products(network.experts.get_submodule(name), out) for name, out in outs.items()]
    program.grouped(program.quantize(copies, router.chosen), starts, *products)
    up, gate = outs["up"], outs.get("gate")
    program.activate_as(spec, up, gate)
    program.grouped(program.quantize(up, router.chosen), starts, _products(network.experts.down, copies))
    program.combine(copies, weights_mc, places_mc, residual_md, out_md)


def are_quantized(network: MixtureOfExperts) -> bool:
    """Whether all matrices of the experts are."""
    parts = [network.experts.get_submodule(name) for name in (*_inner(network), "down")]
    return all(isinstance(part, QuantizedExpertLinear) for part in parts)


def _inner(network: MixtureOfExperts) -> list[str]:
    return ["up"] if network.experts.gate is None else ["up", "gate"]


def _products(linears: nn.Module, out: Tensor) -> list[Product]:
    """Of each expert."""
    assert isinstance(linears, QuantizedExpertLinear)
    biases = [None] * linears.experts if linears.bias is None else linears.bias.detach().float().unbind()
    return [Product(matrix, bias_n, out) for matrix, bias_n in zip(linears.matrices, biases, strict=True)]
