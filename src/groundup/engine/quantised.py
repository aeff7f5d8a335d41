"""Quantised matrices computed by the kernels, where these were compiled and the matrices lie on the CPU."""

from torch import Tensor

from groundup.engine import kernels
from groundup.engine.kernels import library
from groundup.model.language_model import LanguageModel
from groundup.quantize.convert import compute_with
from groundup.quantize.matrix import QuantisedMatrix
from groundup.quantize.modules import Arithmetic


def _linear(x_mk: Tensor, matrix: QuantisedMatrix, bias_n: Tensor | None) -> Tensor:
    return kernels.linear(kernels.quantise(x_mk), matrix, bias_n)


KERNELS = Arithmetic(_linear, kernels.gather)


def use_kernels(model: LanguageModel) -> None:
    """Have the kernels compute a quantised model's products, if they can; another model is left as it is."""
    if library.path() is not None and model.device.type == "cpu":
        compute_with(model, KERNELS)
