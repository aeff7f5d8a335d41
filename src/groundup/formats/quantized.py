"""Folders of quantized models: what config.json says of them, and tensors under the model's own names.

No other library reads them, so the file holds what memory does, in the layout that the kernels take: it is mapped, and
nothing is copied. A matrix is `NAME.values` and `NAME.scales` (`quantize/matrix.py`), all else is floating.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from groundup.errors import UserError
from groundup.formats.folder import CONFIG
from groundup.formats.tensor_files import FLOATS, TensorFiles
from groundup.quantize.convert import quantized_outline
from groundup.quantize.matrix import WEIGHT_FORMATS, WeightFormat

KEY, METHOD = "quantization_config", "groundup"
DTYPES = (*FLOATS, torch.uint8)


def format_keys(format: WeightFormat) -> dict[str, Any]:
    """What config.json says of a quantized model beside its shape."""
    return {KEY: {"quant_method": METHOD, "format": format.name}}


def read_format(keys: Mapping[str, Any], folder: Path) -> WeightFormat | None:
    """The format that config.json names, None if it speaks of none.

    Raises UserError for another library's quantization, and for keys or a format that are unknown.
    """
    said = keys.get(KEY)
    if said is None:
        return None
    method = said.get("quant_method") if isinstance(said, dict) else said
    if method != METHOD:
        raise UserError(
            f"{folder / CONFIG}: `{KEY}` is of {method!r}, which is not read here; only groundup's own is, or the "
            "model before it was quantized"
        )
    if unknown := sorted(said.keys() - {"quant_method", "format"}):
        raise UserError(f"{folder / CONFIG}: `{KEY}.{unknown[0]}` is not a key that groundup's quantization has")
    name = said.get("format")
    if not isinstance(name, str) or name not in WEIGHT_FORMATS:
        raise UserError(f"{folder / CONFIG}: `{KEY}.format` must be one of {', '.join(WEIGHT_FORMATS)}, not {name!r}")
    return WEIGHT_FORMATS[name]


def read_tensors(
    files: TensorFiles, model: nn.Module, format: WeightFormat, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """The tensors of a model without memory, whose matrices are replaced by quantized ones on the way.

    Raises UserError for tensors that are missing, unknown, or of another shape or type, and where a type is asked for.
    """
    if dtype is not None:
        raise UserError(f"{files.path()} is quantized: its weights have types of their own, not {dtype}")
    quantized_outline(model, format)
    outline, buffers = model.state_dict(), dict(model.named_buffers())
    if missing := sorted(outline.keys() - files.names()):
        raise UserError(f"{files.path()}: tensor `{missing[0]}` is missing")
    if unknown := sorted(files.names() - outline.keys()):
        raise UserError(f"{files.path(unknown[0])}: tensor `{unknown[0]}` has no place in a model of this config")
    tensors = {}
    for name, like in outline.items():
        tensor = files.get(name)
        fits = tensor.dtype == like.dtype if name in buffers else tensor.dtype in FLOATS
        if tensor.shape != like.shape or not fits:
            raise UserError(
                f"{files.path(name)}: tensor `{name}` is {tensor.dtype} of shape {tuple(tensor.shape)}, the "
                f"configuration says {like.dtype} of shape {tuple(like.shape)}"
            )
        tensors[name] = tensor
    return tensors
