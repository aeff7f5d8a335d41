"""How the engine loads a model: on which device, in which type, and what computes its quantized matrices."""

import re
from os import PathLike
from pathlib import Path
from reprlib import repr as shortened

import torch

from groundup.engine import kernels
from groundup.engine.kernels import library
from groundup.errors import UserError
from groundup.formats.folder import local_folder
from groundup.formats.huggingface import load_model
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.language_model import LanguageModel
from groundup.quantize.convert import compute_with, quantize_model, quantized_format, require_floating
from groundup.quantize.float8 import LEAST_CAPABILITY, use_float8
from groundup.quantize.matrix import WEIGHT_FORMATS
from groundup.quantize.modules import Arithmetic

KERNELS = Arithmetic(kernels.product, kernels.gather)

FLOAT8_NAME = "fp8"
ENGINE_FORMATS = (*WEIGHT_FORMATS, FLOAT8_NAME)


def loaded(
    model: str | PathLike[str] | LanguageModel | EncoderDecoder, quantize: str | None, device: str | None
) -> tuple[LanguageModel | EncoderDecoder, Path | None]:
    """A model, and the folder that it was loaded from; one that is given as such stays as it is, and has none.

    Raises as `require_model` and `load_for_engine` do, and ValueError for a model that is to be quantized or moved.
    """
    require_model(model)
    if not isinstance(model, LanguageModel | EncoderDecoder):
        folder = local_folder(model)
        return load_for_engine(folder, quantize, device or "cpu"), folder
    if quantize is not None:
        raise ValueError("`quantize` is for folders; a model is quantized in place by `quantize_model`")
    if device is not None:
        raise ValueError("`device` is for folders; a model that is given as such is computed where it lies")
    return model, None


def require_model(model: object) -> None:
    """Raises ValueError for what neither is a model of texts nor names one."""
    if not isinstance(model, LanguageModel | EncoderDecoder | str | PathLike):
        raise ValueError(f"`model` must be a model folder, `hf:org/name` or a model of texts, not {shortened(model)}")


def require_adapter(name: object, folder: object) -> None:
    """Raises ValueError for what names no adapter and no folder."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"the `name` of an adapter must be a text that is not empty, not {shortened(name)}")
    if not isinstance(folder, str | PathLike):
        raise ValueError(f"the `folder` of adapter `{name}` must be a path, not {shortened(folder)}")


def use_kernels(model: LanguageModel) -> None:
    """Have the kernels compute a quantized model's products, if they can; another model is left as it is."""
    if library.path() is not None and model.device.type == "cpu":
        compute_with(model, KERNELS)


def load_for_engine(folder: Path, quantize: str | None, device: str) -> LanguageModel | EncoderDecoder:
    """The model of a folder on a device; on a GPU in bfloat16, unless its weights are float16.

    quantize: the format to whose nearest the weights are rounded, one of those of files or `fp8`; None: they are not.
    Raises UserError for a folder that cannot be read or quantized, or whose model is none of texts, and for a device
    that is not there; ValueError for an unknown format, or one that the device does not multiply.
    """
    if quantize is not None and quantize not in ENGINE_FORMATS:
        raise ValueError(f"`quantize` must be one of {', '.join(ENGINE_FORMATS)} or None, not {quantize!r}")
    place = device_of(device)
    if quantize == FLOAT8_NAME and not _multiplies_float8(place):
        raise ValueError("`quantize` 'fp8' is for GPUs of compute capability 8.9 and above; here w8 and w4 are there")
    model = load_model(folder)
    if not isinstance(model, LanguageModel | EncoderDecoder):
        raise UserError(f"{folder} holds a {model.config.family} model; this needs one of texts, such as llama")
    if quantize is not None and isinstance(model, EncoderDecoder):
        raise UserError(f"{folder} holds a {model.config.family} model; only models of text alone can be quantized")
    if quantize in WEIGHT_FORMATS:
        require_floating(model, "quantized again")
        quantize_model(model, WEIGHT_FORMATS[quantize])
    _move(model, place)
    if quantize == FLOAT8_NAME:
        use_float8(model)
    return model


def device_of(name: str) -> torch.device:
    """Raises UserError for one that is not there."""
    if name == "cpu":
        return torch.device(name)
    asked = re.fullmatch(r"cuda(?::(\d+))?", str(name))
    if asked is None:
        raise UserError(f"`device` must be cpu, cuda, or cuda:1 and so on, not {name!r}")
    if int(asked[1] or 0) >= torch.cuda.device_count():
        raise UserError(f"there is no {name} here: PyTorch finds {torch.cuda.device_count()} GPUs that it can use")
    return torch.device(name)


def _multiplies_float8(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY


def _move(model: LanguageModel | EncoderDecoder, device: torch.device) -> None:
    """To a device, in place; numbers that are not quantized become those that a GPU's attention knows."""
    if device.type == "cpu":
        return
    narrow = next(model.parameters()).dtype == torch.float16
    model.to(device)
    if quantized_format(model) is None:
        model.to(torch.float16 if narrow else torch.bfloat16)
