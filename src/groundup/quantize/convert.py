"""A model's matrices replaced by quantized ones: those of the layers, of the token tables and of the head.

What decides between things stays as it is (routers, gates of one number a head, the steps of recurrent states), and so
do norms, convolutions, rotary and learned positions: they are small, and rounding them costs more than it saves.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from groundup.errors import UserError
from groundup.model.experts import ExpertLinear
from groundup.model.language_model import LanguageModel
from groundup.model.parts import Embedding, Linear
from groundup.quantize.matrix import QuantizedMatrix, WeightFormat, quantize_rows
from groundup.quantize.modules import (
    Arithmetic,
    QuantizedEmbedding,
    QuantizedExpertLinear,
    QuantizedLinear,
    QuantizedModule,
)

# Matrices of layers that stay floating, by name.
FLOATING_LINEAR = ("router", "shared_gate", "step", "strength")
# Tables that are no vectors of tokens, and what lies between the layers and tables of another width.
FLOATING_OUTSIDE = ("positions", "token_types", "relative", "embedding_in", "embedding_out", "transform")

# What makes quantized matrices of the weights of the place of this name: (n, k), or one for each expert.
Quantize = Callable[[str, Tensor], list[QuantizedMatrix]]


class Place(NamedTuple):
    """A module that is replaced, by its name in the model."""

    name: str
    module: Linear | Embedding | ExpertLinear


def places(model: nn.Module) -> Iterator[Place]:
    """The modules of a model that are quantized, in its own order; raises UserError as `require_quantizable` does."""
    require_quantizable(model)
    for name, module in model.named_modules():
        parts = name.split(".")
        if parts[0] in FLOATING_OUTSIDE or parts[-1] in FLOATING_LINEAR:
            continue
        if isinstance(module, Linear | Embedding | ExpertLinear):
            yield Place(name, module)


def require_quantizable(model: nn.Module) -> None:
    """Raise UserError, naming the family, for a model that is not one tower of text."""
    if not isinstance(model, LanguageModel):
        family = getattr(getattr(model, "config", None), "family", type(model).__name__)
        raise UserError(
            f"a {family} model cannot be quantized: only models of text alone are, decoders such as llama and encoders "
            "such as bert"
        )


def quantize_model(model: nn.Module, format: WeightFormat, quantize: Quantize | None = None) -> None:
    """Replace the matrices of a language model by quantized ones, in place.

    quantize: where the matrices come from; by default each weight is rounded to the nearest.
    Raises UserError for a model that cannot be, ValueError, naming the matrix, for weights that cannot be.
    """
    for place in list(places(model)):
        weight = place.module.weight.detach()
        try:
            matrices = nearest(weight, format) if quantize is None else quantize(place.name, weight)
        except ValueError as error:
            raise ValueError(f"{place.name}: {error}") from None
        quantized = _empty(place.module, format)
        quantized.take(*matrices)
        replace_module(model, place.name, quantized)


def nearest(weight: Tensor, format: WeightFormat) -> list[QuantizedMatrix]:
    """A matrix, or each of a stack of them, rounded to the nearest."""
    return [quantize_rows(one, format) for one in (weight if weight.ndim == 3 else weight[None])]


def quantized_outline(model: nn.Module, format: WeightFormat) -> None:
    """Replace the matrices by quantized ones whose numbers are still to be filled in, in place; for a model on `meta`.

    Raises UserError as `places` does.
    """
    for place in list(places(model)):
        replace_module(model, place.name, _empty(place.module, format))


def quantized_format(model: nn.Module) -> WeightFormat | None:
    """The format of a quantized model, None of another."""
    return next((each.format for each in model.modules() if isinstance(each, QuantizedModule)), None)


def require_floating(model: nn.Module, what: str) -> None:
    """Raise UserError if the model is quantized. what: cannot be done with one, as in `trained`."""
    format = quantized_format(model)
    if format is not None:
        raise UserError(f"a model of {format.name} weights cannot be {what}; name the one that it was made from")


def compute_with(model: nn.Module, arithmetic: Arithmetic) -> None:
    """Have the quantized matrices of a model computed with by this."""
    for module in model.modules():
        if isinstance(module, QuantizedModule):
            module.arithmetic = arithmetic


def compute_alike(model: nn.Module, other: nn.Module) -> None:
    """Have the quantized matrices of a model computed with as those of another are."""
    found = next((each.arithmetic for each in other.modules() if isinstance(each, QuantizedModule)), None)
    if found is not None:
        compute_with(model, found)


def _empty(module: Linear | Embedding | ExpertLinear, format: WeightFormat) -> QuantizedModule:
    """What takes the place of a module, on its device, without numbers yet."""
    rows, columns = module.weight.shape[-2:]
    with torch.device(module.weight.device):
        if isinstance(module, ExpertLinear):
            return QuantizedExpertLinear(format, module.experts, rows, columns, module.bias)
        if isinstance(module, Linear):
            return QuantizedLinear(format, rows, columns, module.bias)
        return QuantizedEmbedding(format, rows, columns)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one of this name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
