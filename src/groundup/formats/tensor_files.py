"""Tensors of a model folder: one safetensors file, or several with an index; memory-mapped, nothing unpickled."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from groundup.errors import UserError
from groundup.formats.folder import INDEX, SHARDS, SINGLE, read_index
from groundup.storage import write_json

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
SHARD_BYTES = 5_000_000_000


class TensorFiles:
    """The tensors of a folder by name. Raises UserError for anything that is not whole.

    A single file comes before an index, as in `transformers`; index and shards must agree about every tensor.
    dtypes: that tensors may have.
    """

    def __init__(self, folder: Path, dtypes: Sequence[torch.dtype] = FLOATS) -> None:
        self._folder = folder
        self._dtypes = dtypes
        self._has_index = (folder / INDEX).exists() and not (folder / SINGLE).exists()
        indexed = read_index(folder) if self._has_index else {}
        self._files = {name: _open(folder / name, "mmap") for name in sorted(set(indexed.values())) or [SINGLE]}
        self._readers: dict[str, safe_open] = {}
        self._places: dict[str, str] = {}
        for file, tensors in self._files.items():
            for name in _names(tensors):
                if name in self._places:
                    raise UserError(f"{folder / file}: tensor `{name}` lies in {self._places[name]} too")
                self._places[name] = file
        if self._has_index:
            self._compare_with_index(indexed)

    @property
    def size_bytes(self) -> int:
        """Of the files that hold the tensors."""
        return sum((self._folder / name).stat().st_size for name in self._files)

    def names(self) -> set[str]:
        """All tensors there are."""
        return set(self._places)

    def path(self, name: str | None = None) -> Path:
        """The file that holds a tensor, or should."""
        if name in self._places:
            return self._folder / self._places[name]
        return self._folder / (INDEX if self._has_index else SINGLE)

    def get(self, name: str) -> Tensor:
        """One tensor whose memory is the file itself, so that nothing of it is read before it is used."""
        return _tensor(self._files[self._places[name]], name, self.path(name), self._dtypes)

    def read(self, name: str) -> Tensor:
        """One tensor in memory of its own."""
        path = self.path(name)
        if path.name not in self._readers:
            self._readers[path.name] = _open(path, "pread")
        return _tensor(self._readers[path.name], name, path, self._dtypes)

    def _compare_with_index(self, indexed: dict[str, str]) -> None:
        for name in sorted(indexed.keys() | self._places.keys()):
            said, held = indexed.get(name), self._places.get(name)
            if held is None:
                raise UserError(
                    f"{self._folder / str(said)}: tensor `{name}` is missing, {INDEX} says that it lies here"
                )
            if said != held:
                elsewhere = "does not name it" if said is None else f"says that it lies in {said}"
                raise UserError(f"{self._folder / held}: tensor `{name}` lies here, {INDEX} {elsewhere}")
        strays = sorted(path.name for path in self._folder.glob(SHARDS) if path.name not in self._files)
        if strays:
            raise UserError(
                f"{self._folder / strays[0]}: {INDEX} does not name this shard; remove it or mend the index"
            )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of one file, in memory of their own. Raises UserError as `TensorFiles` does."""
    file = _open(path, "pread")
    return {name: _tensor(file, name, path) for name in _names(file)}


def write_tensors(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int = SHARD_BYTES) -> None:
    """Write named tensors as one file, or as shards of at most `shard_bytes` with an index.

    They are taken one by one: of those that have to be copied, no more than a shard is held at a time.
    """
    shards: list[dict[str, int]] = []
    waiting: dict[str, Tensor] = {}

    def write_shard() -> None:
        path = _unnamed(folder, len(shards))
        save_file(waiting, path, metadata={"format": "pt"})
        path.chmod(0o644)  # the library leaves it to its owner alone
        shards.append({name: tensor.nbytes for name, tensor in waiting.items()})
        waiting.clear()

    for name, tensor in tensors:
        if waiting and sum(one.nbytes for one in waiting.values()) + tensor.nbytes > shard_bytes:
            write_shard()
        waiting[name] = tensor.contiguous().cpu()
    write_shard()
    count = len(shards)
    files = [SINGLE] if count == 1 else [f"model-{index + 1:05}-of-{count:05}.safetensors" for index in range(count)]
    for index, file in enumerate(files):
        _unnamed(folder, index).rename(folder / file)
    if count > 1:
        places = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        total = sum(sum(shard.values()) for shard in shards)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))})


def _unnamed(folder: Path, index: int) -> Path:
    """Where a shard lies until it is known how many there are."""
    return folder / f".shard-{index}.partial"


def _names(file: safe_open) -> list[str]:
    return list(file.keys())  # type: ignore[no-untyped-call]


def _tensor(file: safe_open, name: str, path: Path, dtypes: Sequence[torch.dtype] = FLOATS) -> Tensor:
    try:
        tensor: Tensor = file.get_tensor(name)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise UserError(f"{path}: tensor `{name}` cannot be read: {error}") from None
    if tensor.dtype not in dtypes:
        kinds = ", ".join(str(one).removeprefix("torch.") for one in dtypes)
        raise UserError(f"{path}: tensor `{name}` is of {tensor.dtype}; weights are read as {kinds}")
    return tensor


def _open(path: Path, backend: str) -> safe_open:
    if not path.is_file():
        pickles = sorted(one.name for one in path.parent.iterdir() if one.suffix in PICKLES)
        hint = f"; {pickles[0]} is no replacement: pickles can run code and are never opened" if pickles else ""
        raise UserError(f"{path.parent} has no {path.name}{hint}")
    try:
        return safe_open(path, framework="pt", backend=backend)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from None
