"""The container of GGUF: typed metadata, then tensors by name, each at its place in one file.

Read through a memory map, and as a stranger's: every length is checked against the file before anything is made of it.
Source: the specification of GGUF, version 3 (ggml's docs/gguf.md); version 2 is laid out alike.
"""

import mmap
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from groundup.errors import UserError
from groundup.formats.gguf.blocks import BY_NUMBER, BlockFormat
from groundup.formats.rules import Shape

Value = bool | int | float | str | list[bool] | list[int] | list[float] | list[str]

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
TEXT, ARRAY = 8, 9
# Number of a type in the file → how `struct` and numpy spell it.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
MOST_DIMENSIONS = 4
# No vocabulary has as many tokens or merges; a list of more would fill the memory.
LONGEST_LIST = 2**22


class Place(NamedTuple):
    """Where a tensor lies: its shape (last dimension contiguous), how its numbers are stored, its bytes in the file."""

    shape: Shape
    format: BlockFormat
    start: int
    size_bytes: int


class GgufFile:
    """A GGUF file, open for reading.

    metadata: all of its keys; tensors: the place of each.
    Raises UserError, naming file and key or tensor, for anything that is not whole or not of a known kind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes = _map(path)
        cursor = _Cursor(self._bytes, path)
        tensor_count, key_count = _read_start(cursor)
        self.metadata = _read_metadata(cursor, key_count)
        self.tensors = _read_places(cursor, tensor_count, self.metadata.get("general.alignment", ALIGNMENT))

    def get(self, name: str) -> Tensor:
        """One tensor; its own type if it is plain, float32 if it was quantized."""
        place = self.tensors[name]
        raw = torch.frombuffer(self._bytes, dtype=torch.uint8, count=place.size_bytes, offset=place.start)
        return place.format.decode(raw).view(place.shape)


class Entry(NamedTuple):
    """A tensor to be written."""

    name: str
    shape: Shape
    format: BlockFormat

    @property
    def size_bytes(self) -> int:
        return self.format.size_bytes(self.shape)


def write_gguf(
    file: BinaryIO, metadata: Mapping[str, Value], entries: list[Entry], tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """Write a whole GGUF file.

    entries: what there will be; tensors: the same in the same order, each made when its turn has come.
    Raises UserError for a tensor with values that its format cannot hold.
    """
    header = [MAGIC, struct.pack("<IQQ", VERSION, len(entries), len(metadata))]
    header += [part for key, value in metadata.items() for part in (_text(key), _typed(value))]
    offset = 0
    for entry in entries:
        dimensions = entry.shape[::-1]
        header += [_text(entry.name), struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)]
        header.append(struct.pack("<IQ", entry.format.number, offset))
        offset += entry.size_bytes + _padding(entry.size_bytes, ALIGNMENT)
    file.write(b"".join(header))
    file.write(bytes(_padding(file.tell(), ALIGNMENT)))
    for entry, (name, tensor) in zip(entries, tensors, strict=True):
        assert (entry.name, entry.shape) == (name, tuple(tensor.shape))
        for raw in _encoded(entry, tensor):
            file.write(raw.numpy().data)
        file.write(bytes(_padding(entry.size_bytes, ALIGNMENT)))


def _encoded(entry: Entry, tensor: Tensor) -> Iterator[Tensor]:
    """The bytes of a tensor, some rows at a time."""
    rows = tensor.detach().reshape(-1, tensor.shape[-1])
    for part in rows.split(max(1, 2**22 // rows.shape[1])):
        raw = entry.format.encode(part.cpu())
        if not torch.isfinite(entry.format.decode(raw)).all():
            too_large = f"that {entry.format.name} cannot hold; try bf16 or f32"
            what = too_large if torch.isfinite(part).all() else "that are not finite; train it again"
            raise UserError(f"tensor `{entry.name}` has values {what}")
        yield raw


def refusal(path: Path, what: str) -> UserError:
    """One sentence, fit to be printed whatever the file has in it."""
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in what)
    return UserError(f"{path}: {shown if len(shown) < 400 else f'{shown[:300]} …'}")


def _padding(position: int, alignment: int) -> int:
    return -position % alignment


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _typed(value: Value) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", TEXT) + _text(value)
    if not isinstance(value, list):
        number = _type_of(value)
        return struct.pack(f"<I{SCALARS[number]}", number, value)
    if not value or isinstance(value[0], str):
        return struct.pack("<IIQ", ARRAY, TEXT, len(value)) + b"".join(_text(str(item)) for item in value)
    number = {4: 5}.get(_type_of(value[0]), _type_of(value[0]))  # llama.cpp wants lists of integers signed
    return struct.pack(f"<IIQ{len(value)}{SCALARS[number]}", ARRAY, number, len(value), *value)


def _type_of(value: Any) -> int:
    """Numbers that readers expect unless they say otherwise: unsigned and single precision."""
    if isinstance(value, bool):
        return 7
    return 4 if isinstance(value, int) else 6


def _map(path: Path) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            # A copy only of pages that somebody writes to, which nobody does; read-only maps make torch complain.
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except ValueError:
        raise UserError(f"{path} is empty") from None
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: there is no such file") from None


class _Cursor:
    """Reads on from a place in the file; never beyond its end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self.path = path
        self.position = 0
        self.size = len(data)

    def take(self, count: int, what: str) -> bytes:
        if count > self.size - self.position:
            raise refusal(self.path, f"ends within {what}: it was cut short or is no GGUF file")
        self.position += count
        return self._data[self.position - count : self.position]

    def numbers(self, layout: str, what: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{layout}", self.take(struct.calcsize(f"<{layout}"), what))

    def text(self, what: str) -> str:
        (length,) = self.numbers("Q", what)
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError:
            raise refusal(self.path, f"{what} is not UTF-8 text") from None


def _read_start(cursor: _Cursor) -> tuple[int, int]:
    """How many tensors and keys there are."""
    if cursor.take(4, "its first bytes") != MAGIC:
        raise refusal(cursor.path, f"no GGUF file: it does not begin with {MAGIC.decode()}")
    (version,) = cursor.numbers("I", "its version")
    if version not in (2, VERSION):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        kind = "big-endian" if swapped in (2, VERSION) else f"of version {version}"
        raise refusal(cursor.path, f"GGUF {kind} is not read, only version 2 and 3 in little-endian order")
    tensors, keys = cursor.numbers("QQ", "its counts")
    return tensors, keys


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.text("the name of a key")
        if key in metadata:
            raise refusal(cursor.path, f"key `{key}` stands there twice")
        (kind,) = cursor.numbers("I", f"key `{key}`")
        metadata[key] = _read_value(cursor, kind, f"key `{key}`")
    return metadata


def _read_value(cursor: _Cursor, kind: int, what: str) -> Any:
    if kind == TEXT:
        return cursor.text(what)
    if kind == ARRAY:
        return _read_list(cursor, what)
    if kind not in SCALARS:
        raise refusal(cursor.path, f"{what} is of the unknown type {kind}")
    (value,) = cursor.numbers(SCALARS[kind], what)
    # The shortest decimal that means this number in single precision: 1e-06, not 9.999999974752427e-07.
    return float(str(np.float32(value))) if SCALARS[kind] == "f" else value


def _read_list(cursor: _Cursor, what: str) -> list[Any]:
    kind, count = cursor.numbers("IQ", what)
    if count > LONGEST_LIST:
        raise refusal(cursor.path, f"{what} is a list of {count}; at most {LONGEST_LIST} are read")
    if kind == TEXT:
        return [cursor.text(what) for _ in range(count)]
    if kind not in SCALARS:
        raise refusal(cursor.path, f"{what} is a list of the unknown type {kind}")
    return list(cursor.numbers(f"{count}{SCALARS[kind]}", what))


def _read_places(cursor: _Cursor, count: int, alignment: Any) -> dict[str, Place]:
    if isinstance(alignment, bool) or not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        raise refusal(cursor.path, f"`general.alignment` must be a power of two from 8 on, not {alignment!r}")
    found: dict[str, tuple[Shape, BlockFormat, int]] = {}
    for _ in range(count):
        name = cursor.text("the name of a tensor")
        if name in found:
            raise refusal(cursor.path, f"tensor `{name}` stands there twice")
        found[name] = _read_layout(cursor, f"tensor `{name}`")
    begin = cursor.position + _padding(cursor.position, alignment)
    places = {}
    for name, (shape, form, offset) in found.items():
        size = form.size_bytes(shape)
        if offset % alignment or begin + offset + size > cursor.size:
            raise refusal(
                cursor.path,
                f"tensor `{name}` of {size} bytes at {offset} does not lie within the file: "
                "it was cut short or is damaged",
            )
        places[name] = Place(shape, form, begin + offset, size)
    return places


def _read_layout(cursor: _Cursor, what: str) -> tuple[Shape, BlockFormat, int]:
    (dimensions,) = cursor.numbers("I", what)
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise refusal(cursor.path, f"{what} has {dimensions} dimensions, not 1 to {MOST_DIMENSIONS}")
    shape = cursor.numbers(f"{dimensions}Q", what)[::-1]
    number, offset = cursor.numbers("IQ", what)
    if number not in BY_NUMBER:
        names = ", ".join(form.name for form in BY_NUMBER.values())
        raise refusal(cursor.path, f"{what} is stored as type {number}, which is not read; read are {names}")
    form = BY_NUMBER[number]
    if min(shape) < 1 or max(shape) > sys.maxsize or shape[-1] % form.block:
        raise refusal(cursor.path, f"{what} cannot have the shape {shape} as {form.name}")
    return shape, form, offset
