"""The matrices of a model's modules, as the kernels read them: quantized ones, and floating ones where they lie."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from groundup.engine.kernels.matrices import FLOATING, FloatMatrix, Matrix
from groundup.model.experts import ExpertLinear
from groundup.model.language_model import LanguageModel
from groundup.model.parts import Embedding, Linear
from groundup.quantize.modules import QuantizedExpertLinear, QuantizedMatrixModule


class ModelMatrices:
    """Of one model. Weights are copied only where PyTorch would make another type of them whenever it multiplies."""

    def __init__(self, model: LanguageModel) -> None:
        self._dtype = activation_dtype(model)
        self._made: dict[nn.Module, Matrix] = {}

    def of(self, module: nn.Module) -> Matrix:
        """Of a linear map or a table."""
        if isinstance(module, QuantizedMatrixModule):
            return module.matrix
        if module not in self._made:
            assert isinstance(module, Linear | Embedding)
            self._made[module] = FloatMatrix(module.weight.detach().to(self._dtype).contiguous())
        return self._made[module]

    def wide(self, module: nn.Module) -> Matrix:
        """The same, multiplied in float32: what decides between things does so whatever the type of the others."""
        if isinstance(module, QuantizedMatrixModule):
            return module.matrix
        assert isinstance(module, Linear)
        return FloatMatrix(module.weight.detach().contiguous(), is_wide=True)

    def of_experts(self, module: nn.Module) -> list[Matrix]:
        """One for each."""
        if isinstance(module, QuantizedExpertLinear):
            return list(module.matrices)
        assert isinstance(module, ExpertLinear)
        return [FloatMatrix(weight_nk) for weight_nk in module.weight.detach().to(self._dtype).contiguous()]


def bias_of(module: nn.Module) -> Tensor | None:
    """float32, or None."""
    bias = module.bias
    return bias.detach().float() if isinstance(bias, Tensor) else None


def activation_dtype(model: LanguageModel) -> torch.dtype:
    """In which a model computes in PyTorch."""
    return model.compute_dtype or model.embedding.dtype


def are_readable(modules: Iterable[nn.Module | None]) -> bool:
    """Whether each of these, but for None, is one whose matrices there are here."""
    return all(one is None or _is_readable(one) for one in modules)


def _is_readable(module: nn.Module) -> bool:
    if isinstance(module, QuantizedMatrixModule | QuantizedExpertLinear):
        return True
    return (
        isinstance(module, Linear | Embedding | ExpertLinear)
        and module.rounding is None
        and module.weight.dtype in FLOATING
    )
