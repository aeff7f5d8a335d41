"""Quantized matrices in the engine: computed by the kernels, where these were compiled and the model is on the CPU."""

from pathlib import Path

from torch import Tensor

from groundup.engine import kernels
from groundup.engine.kernels import library
from groundup.errors import UserError
from groundup.formats.huggingface import load_model
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.language_model import LanguageModel
from groundup.quantize.convert import compute_with, quantize_model, require_floating
from groundup.quantize.matrix import WEIGHT_FORMATS, QuantizedMatrix
from groundup.quantize.modules import Arithmetic


def _linear(x_mk: Tensor, matrix: QuantizedMatrix, bias_n: Tensor | None) -> Tensor:
    return kernels.linear(kernels.quantize(x_mk), matrix, bias_n)


KERNELS = Arithmetic(_linear, kernels.gather)


def use_kernels(model: LanguageModel) -> None:
    """Have the kernels compute a quantized model's products, if they can; another model is left as it is."""
    if library.path() is not None and model.device.type == "cpu":
        compute_with(model, KERNELS)


def load_for_engine(folder: Path, quantize: str | None) -> LanguageModel | EncoderDecoder:
    """The model of a folder, its weights rounded to the nearest of the format of this name unless that is None.

    Raises UserError for a folder that cannot be read or quantized, or whose model is none of texts, ValueError for an
    unknown format.
    """
    if quantize is not None and quantize not in WEIGHT_FORMATS:
        raise ValueError(f"`quantize` must be one of {', '.join(WEIGHT_FORMATS)} or None, not {quantize!r}")
    model = load_model(folder)
    if not isinstance(model, LanguageModel | EncoderDecoder):
        raise UserError(f"{folder} holds a {model.config.family} model; this needs one of texts, such as llama")
    if quantize is not None:
        if isinstance(model, EncoderDecoder):
            raise UserError(f"{folder} holds a {model.config.family} model; only models of text alone can be quantized")
        require_floating(model, "quantized again")
        quantize_model(model, WEIGHT_FORMATS[quantize])
    return model
