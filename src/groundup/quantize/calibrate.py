"""Rounding that looks at what the matrix will be multiplied by: GPTQ (Frantar et al. 2022, "GPTQ: Accurate
Post-Training Quantization for Generative Pre-trained Transformers").

Rounding a column leaves an error in the layer's output. What the columns behind it have in common with it in real
activations can take most of that error back, so columns are rounded one after the other and each error is passed on to
those that are still to come. What real activations have in common is their Gram matrix, summed over text.

Shape suffixes: n output channels, k input channels, g groups, m tokens.
"""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from groundup.model.language_model import LanguageModel
from groundup.model.parts import Matrix
from groundup.quantize.convert import Quantize, nearest, places
from groundup.quantize.matrix import QuantizedMatrix, WeightFormat, best_scales, from_integers, nearest_integers

# Added to the diagonal of a Gram matrix, as a part of its mean, so that it can be inverted (as in the paper).
DAMPING = 0.01
# Columns whose errors are passed on to all columns behind them at once.
BLOCK = 128


class _Observer:
    """A `Rounding` that rounds nothing: it sums up the Gram matrix of what a matrix is multiplied by."""

    def __init__(self, columns: int) -> None:
        self.gram_kk = torch.zeros(columns, columns)

    def weights(self, weight: Tensor) -> Tensor:
        return weight

    def activations(self, x: Tensor) -> Tensor:
        x_mk = x.reshape(-1, x.shape[-1]).float()
        self.gram_kk.addmm_(x_mk.T, x_mk)
        return x


@torch.no_grad()
def observe(model: LanguageModel, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Tensor]:
    """The Gram matrices (k, k) of the inputs of a language model's matrices, by the names of their places.

    batches: token ids, positions and segments of `LanguageModel.hidden`. Tables that are only looked up have none, and
    experts neither: each of them sees too little of a text.
    Raises UserError as `places` does.
    """
    observed = {name: (module, _Observer(module.weight.shape[1])) for name, module in _products(model)}
    for module, observer in observed.values():
        module.rounding = observer
    try:
        for input_ids, positions, segments in batches:
            model.logits(model.hidden(input_ids, positions, segments))
    finally:
        for module, _ in observed.values():
            module.rounding = None
    return {name: observer.gram_kk for name, (_, observer) in observed.items() if observer.gram_kk.any()}


def calibrated(grams: Mapping[str, Tensor], format: WeightFormat) -> Quantize:
    """What `quantize_model` is to round with: errors are passed on where a Gram matrix is known."""

    def quantize(name: str, weight: Tensor) -> list[QuantizedMatrix]:
        if name not in grams:
            return nearest(weight, format)
        return [quantize_with_errors_passed_on(weight, grams[name], format)]

    return quantize


def quantize_with_errors_passed_on(weight_nk: Tensor, gram_kk: Tensor, format: WeightFormat) -> QuantizedMatrix:
    """A matrix (n, columns) rounded so that its product with activations of this Gram matrix stays close.

    Raises ValueError as `quantize_rows` does.
    """
    columns = weight_nk.shape[1]
    (plain,) = nearest(weight_nk, format)  # refuses what cannot be quantized, and has the scales of 8 bits
    padding = format.padded_columns(columns) - columns
    left_nk = F.pad(weight_nk.float(), (0, padding))
    factor_kk = _inverse_factor(F.pad(gram_kk, (0, padding, 0, padding)))
    group, scales_ng = format.group or BLOCK, plain.scales_ng.clone()
    integers_nk = torch.empty_like(left_nk)
    for start in range(0, left_nk.shape[1], group):
        block = slice(start, min(start + group, left_nk.shape[1]))
        if format.group is not None:
            # What is left of the group after the errors before it, its columns weighed by what they are worth.
            worth_k = factor_kk.diagonal()[block].reciprocal().square()
            scales_ng[:, start // group] = best_scales(left_nk[:, None, block], worth_k)[:, 0]
        scale_n1 = scales_ng[:, start // group if format.group else 0, None]
        integers_nk[:, block], errors_nk = _round_block(left_nk[:, block], factor_kk[block, block], scale_n1, format)
        left_nk[:, block.stop :] -= errors_nk @ factor_kk[block, block.stop :]
    return from_integers(integers_nk, scales_ng, columns, format)


def _round_block(weight_nk: Tensor, factor_kk: Tensor, scale_n1: Tensor, format: WeightFormat) -> tuple[Tensor, Tensor]:
    """The integers of some columns, and the error of each as those behind have to take it back."""
    left_nk, integers_nk, errors_nk = weight_nk.clone(), torch.empty_like(weight_nk), torch.empty_like(weight_nk)
    for k in range(weight_nk.shape[1]):
        integers_nk[:, k : k + 1] = nearest_integers(left_nk[:, None, k : k + 1], scale_n1, format)[:, 0]
        apart_n = left_nk[:, k] - integers_nk[:, k] * scale_n1[:, 0].float()
        errors_nk[:, k] = apart_n / factor_kk[k, k]
        left_nk[:, k + 1 :] -= errors_nk[:, k, None] * factor_kk[k, k + 1 :]
    return integers_nk, errors_nk


def _inverse_factor(gram_kk: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of a Gram matrix, float32; channels never used are left alone."""
    gram_kk = gram_kk.double()
    diagonal_k = gram_kk.diagonal()
    damping = DAMPING * diagonal_k[diagonal_k > 0].mean()
    unused_k = (diagonal_k == 0).double()
    damped_kk = gram_kk + torch.diag(damping + unused_k * damping / DAMPING)
    inverse_kk = torch.cholesky_inverse(torch.linalg.cholesky(damped_kk))
    return torch.linalg.cholesky(inverse_kk, upper=True).float()


def _products(model: LanguageModel) -> Iterable[tuple[str, Matrix]]:
    return [(name, module) for name, module in places(model) if isinstance(module, Matrix)]
