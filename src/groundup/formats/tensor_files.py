"""Tensors of a model folder: one safetensors file, or several with an index; memory-mapped, nothing unpickled."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from groundup.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class TensorFiles:
    """The tensors of a folder by name. Raises UserError for anything that is not whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places = _read_index(folder) if (folder / INDEX).exists() else {}
        paths = {folder / name for name in self._places.values()} or {folder / SINGLE}
        self._files = {path: _open(path) for path in sorted(paths)}
        if not self._places:
            self._places = {name: SINGLE for file in self._files.values() for name in _names(file)}

    def names(self) -> set[str]:
        """All tensors there are."""
        return set(self._places)

    def path(self, name: str | None = None) -> Path:
        """The file that holds a tensor, or should."""
        if name in self._places:
            return self._folder / self._places[name]
        return self._folder / (INDEX if (self._folder / INDEX).exists() else SINGLE)

    def get(self, name: str) -> Tensor:
        """One tensor, read when it is first used."""
        path = self.path(name)
        if name not in self._places:
            raise UserError(f"{path}: tensor `{name}` is missing")
        try:
            tensor: Tensor = self._files[path].get_tensor(name)  # type: ignore[no-untyped-call]
        except SafetensorError as error:
            raise UserError(f"{path}: tensor `{name}` cannot be read: {error}") from None
        return tensor


def _read_index(folder: Path) -> dict[str, str]:
    """Tensor → file in the folder itself; an index may name nothing outside it."""
    path = folder / INDEX
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no index of tensors: {type(error).__name__} ({error})") from None
    if not isinstance(places, dict) or not places:
        raise UserError(f"{path}: `weight_map` must be an object of tensor names and their files")
    for name, file in places.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise UserError(f"{path}: tensor `{name}` lies in {file!r}, which is no safetensors file of this folder")
    return places


def _names(file: safe_open) -> list[str]:
    return list(file.keys())  # type: ignore[no-untyped-call]


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from None
