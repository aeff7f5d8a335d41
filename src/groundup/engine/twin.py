"""A model of narrow weights, computed by the engine where no program can: in float32, with its weights where they lie.

In bfloat16 PyTorch rounds by so much, and otherwise for other numbers of rows, that a text would depend on what is
computed beside it. So its modules have twins, which share their parameters with them, and whose products are those of
the kernels: activations stay float32. Without kernels PyTorch makes float32 of the weights for each product.
"""

from collections import OrderedDict
from typing import TypeVar

import torch
from torch import Tensor, nn

from groundup.engine import kernels
from groundup.engine.kernels import library
from groundup.engine.kernels.matrices import FloatMatrix
from groundup.engine.model_matrices import activation_dtype, are_readable
from groundup.engine.runner import decoder_of
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.experts import ExpertLinear
from groundup.model.language_model import LanguageModel
from groundup.model.parts import Matrix

NARROW = (torch.bfloat16, torch.float16)

Model = TypeVar("Model", bound=nn.Module)


def computed_in(model: LanguageModel | EncoderDecoder) -> torch.dtype:
    """In which type the engine computes a model that is no program."""
    own = activation_dtype(decoder_of(model))
    if own not in NARROW or model.device.type != "cpu":
        return own
    matrices = (each for each in model.modules() if isinstance(each, Matrix | ExpertLinear))
    return torch.float32 if are_readable(matrices) else own


def twin_of(model: LanguageModel | EncoderDecoder) -> LanguageModel | EncoderDecoder:
    """What computes the model in that type: itself, or its twin."""
    dtype = computed_in(model)
    if dtype == activation_dtype(decoder_of(model)):
        return model
    twin = _twin(model, {})
    twin.compute_dtype = dtype
    return twin


def _twin(module: Model, made: dict[nn.Module, nn.Module]) -> Model:
    """Another module with the same parameters, without what was hooked to it. made: those that there are already."""
    twin = module.__new__(type(module))
    made[module] = twin
    twin.__dict__ = {**module.__dict__, "_forward_hooks": OrderedDict(), "_forward_pre_hooks": OrderedDict()}
    twin._modules = {
        name: child if child is None else made[child] if child in made else _twin(child, made)
        for name, child in module._modules.items()
    }
    if isinstance(twin, Matrix | ExpertLinear) and library.path() is not None:
        twin.multiply = _multiply
    return twin


@torch.no_grad()
def _multiply(x: Tensor, weight_nk: Tensor, bias_n: Tensor | None) -> Tensor:
    matrix = FloatMatrix(weight_nk.detach().contiguous(), is_wide=True)
    out_mn = kernels.product(x.reshape(-1, matrix.columns), matrix, None if bias_n is None else bias_n.float())
    return out_mn.view(*x.shape[:-1], matrix.rows)
