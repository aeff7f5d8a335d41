"""groundup: own a language model from raw text up.

The rooms of the house and their floors are described in docs/architecture.md. Importing the package imports none of
them: each verb of the command line, and each function here, loads only what it needs.
"""

from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from groundup.engine.draft import DraftModel as DraftModel
    from groundup.engine.engine import Engine as Engine
    from groundup.engine.guessing import PromptLookup as PromptLookup
    from groundup.engine.prompts import Pair as Pair
    from groundup.model.build import AnyModel

__version__ = "0.1.0"

_OF_THE_ENGINE = {"Engine": "engine", "PromptLookup": "guessing", "DraftModel": "draft", "Pair": "prompts"}


def __getattr__(name: str) -> Any:
    """`Engine` and what it takes, loaded when they are first asked for."""
    if name not in _OF_THE_ENGINE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"groundup.engine.{_OF_THE_ENGINE[name]}"), name)


def load(path: str | PathLike[str], dtype: "torch.dtype | None" = None) -> "AnyModel":
    """The model of a Hugging Face folder or of a GGUF file (docs/families.md), on the CPU, in evaluation mode.

    path: or `hf:org/name` or `hf:org/name@revision` for a model of the hub, which is downloaded into the cache that
        `huggingface_hub` shares among programs. A path is never downloaded.
    dtype: of the weights; None keeps each tensor's own, and float32 for those that are quantized.
    Raises `groundup.errors.UserError`, naming the file and the key or tensor, for what is not understood.
    """
    if Path(path).is_file() or Path(path).suffix == ".gguf":
        from groundup.formats.gguf.model_file import load_gguf

        return load_gguf(Path(path), dtype)
    from groundup.formats.folder import local_folder
    from groundup.formats.huggingface import load_model

    return load_model(local_folder(path), dtype)


def save(
    model: "AnyModel",
    folder: str | PathLike[str],
    like: str | PathLike[str] | None = None,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a model as a Hugging Face folder, which `transformers` loads too: whole, or not at all.

    folder: is made where it is not; files in it that belong to no model stay.
    like: a model folder whose token ids, generation settings, tokenizer and chat template go along; by default the one
        that the model was loaded from.
    shard_bytes: the most that one file of weights may hold; larger models are split, with an index.
    Raises `groundup.errors.UserError` if the weights give logits that are not finite.
    """
    from groundup.formats.huggingface import save_folder

    save_folder(model, Path(folder), None if like is None else Path(like), shard_bytes)
