"""groundup: own a language model from raw text up.

The rooms of the house and their floors are described in docs/architecture.md. Importing the package imports none of
them: each verb of the command line, and each function here, loads only what it needs.
"""

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from groundup.model.build import AnyModel

__version__ = "0.1.0"


def load(folder: str | PathLike[str], dtype: "torch.dtype | None" = None) -> "AnyModel":
    """The model of a Hugging Face folder (docs/families.md), on the CPU, in evaluation mode; never downloads.

    dtype: of the weights; None keeps each tensor's own.
    Raises `groundup.errors.UserError`, naming the file and the key or tensor, for a folder that is not understood.
    """
    from groundup.formats.huggingface import load_model

    return load_model(Path(folder), dtype)
