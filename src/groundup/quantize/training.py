"""Training that is aware of quantization: products see weights and activations as they will be served.

Activations are rounded as the format does. Of weights a step sees what lies between them and their rounded selves,
w + share · (rounded(w) - w); the share rises from 0 to 1 as the run goes on, so that weights settle where rounding
hurts least while they can still move far. At 1 the loss is that of the quantized model. The backward pass takes every
rounding for the identity (straight-through estimator: Bengio et al. 2013, "Estimating or Propagating Gradients Through
Stochastic Neurons"; Jacob et al. 2018). The weights themselves stay what the optimizer makes of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from groundup.model.parts import Embedding
from groundup.quantize.convert import Place, places
from groundup.quantize.matrix import WEIGHT_FORMATS, WeightFormat, quantize_activations, rounded_weights

# Part of the steps that round over which the share rises (docs/quantization.md).
RISING = 0.6


def rounded_share(spent: float, rounded_from: float) -> float:
    """The share at a point of a run, both as parts of its budget: 0 up to `rounded_from`, then rising evenly to 1."""
    return min(1.0, max(0.0, (spent - rounded_from) / (RISING * (1 - rounded_from))))


@contextmanager
def rounded(model: nn.Module, format: str | None, share: float = 1.0) -> Iterator[None]:
    """Within it, products of a model see numbers rounded to the format of this name; None: as always.

    share: of the weights' rounding; 1 is as the model will be served, and at 0 nothing is rounded, activations neither.
    Weights must not change within it.
    Raises UserError for a model that cannot be quantized.
    """
    found = [] if format is None or share == 0 else list(places(model))
    for place in found:
        place.module.rounding = Rounded(place, WEIGHT_FORMATS[format or ""], share)
    try:
        yield
    finally:
        for place in found:
            place.module.rounding = None


class Rounded:
    """Rounds one module to a weight format, and activations to 8 bits: a `Rounding` of `model/parts.py`.

    Weights are rounded once, however often they are asked for, and by the very code that writes what is served: a
    compiler would round in other ways.
    """

    def __init__(self, place: Place, format: WeightFormat, share: float) -> None:
        self._format, self._share = format, share
        # Of a table only some rows are looked up, unless it is the head too.
        self._kept = None if isinstance(place.module, Embedding) else self._seen(place.module.weight)

    def weights(self, weight: Tensor) -> Tensor:
        if not isinstance(weight, nn.Parameter):
            return _straight_through(weight, self._seen(weight))
        if self._kept is None:
            self._kept = self._seen(weight)
        return _straight_through(weight, self._kept)

    def activations(self, x: Tensor) -> Tensor:
        activations = quantize_activations(x.detach().reshape(-1, x.shape[-1]).float())
        rounded = (activations.values_mk * activations.scales_m[:, None]).view(x.shape)
        return _straight_through(x, rounded.to(x.dtype))

    def _seen(self, weight: Tensor) -> Tensor:
        """Where the share is 1, exactly the rounded weights."""
        weight = weight.detach()
        return weight.lerp(rounded_weights(weight, self._format).to(weight.dtype), self._share)


def _straight_through(x: Tensor, seen: Tensor) -> Tensor:
    passed: Tensor = _StraightThrough.apply(x, seen)  # type: ignore[no-untyped-call]
    return passed


class _StraightThrough(torch.autograd.Function):
    """The second argument, with the first one's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seen: Tensor) -> Tensor:
        return seen.view_as(seen)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
