"""Layers whose matrices are quantised."""

from torch import Tensor, nn

from groundup.model.language_model import LanguageModel
from groundup.model.parts import Linear
from groundup.quantize.matrix import QuantisedMatrix, WeightFormat, quantise_rows, quantised_linear


class QuantisedLinear(nn.Module):
    """y = x Wᵀ (+ b) with a quantised matrix and activations of 8 bits, in the type of x."""

    def __init__(self, matrix: QuantisedMatrix, bias: Tensor | None) -> None:
        super().__init__()
        self.matrix, self.bias = matrix, bias

    def forward(self, x: Tensor) -> Tensor:
        out_mn = quantised_linear(x.reshape(-1, x.shape[-1]).float(), self.matrix, self.bias)
        return out_mn.to(x.dtype).view(*x.shape[:-1], -1)


def quantise_layers(model: LanguageModel, format: WeightFormat) -> LanguageModel:
    """Quantise every linear map of the layers, in place."""
    for module in list(model.layers.modules()):
        for name, child in list(module.named_children()):
            if type(child) is Linear:
                setattr(module, name, QuantisedLinear(quantise_rows(child.weight.detach(), format), child.bias))
    return model
