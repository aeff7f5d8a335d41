"""How GGUF stores numbers: plain, or in blocks of a row that share a scale.

Every block format is a map between the bytes of its blocks (blocks, bytes) and their values (blocks, values). Source:
ggml's quants (ggml-quants.c, the reference functions), whose roundings are reproduced to the bit.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from groundup.formats.rules import Shape


@dataclass(frozen=True)
class BlockFormat:
    """A way to store a tensor.

    number: the format's in the file; file_type: `general.file_type` of a file most of whose matrices have it.
    block: values that are stored together, a divisor of the row; block_bytes: what they take.
    pack, unpack: (blocks, block) float32 ⇄ (blocks, block_bytes) uint8; no pack for formats that are only read.
    plain: the type of a format without blocks, or None.
    error: bound on the error that storing makes, as a part of the tensor's norm.
    """

    name: str
    number: int
    file_type: int
    block: int
    block_bytes: int
    unpack: Callable[[Tensor], Tensor] | None = None
    pack: Callable[[Tensor], Tensor] | None = None
    plain: torch.dtype | None = None
    error: float = 0.0

    def size_bytes(self, shape: Shape) -> int:
        """What a tensor of this shape takes."""
        return math.prod(shape) // self.block * self.block_bytes

    def encode(self, values: Tensor) -> Tensor:
        """The bytes, uint8 in one dimension, of values whose rows are whole blocks."""
        if self.plain is not None:
            return values.to(self.plain).contiguous().view(-1).view(torch.uint8)
        assert self.pack is not None
        return self.pack(values.float().reshape(-1, self.block)).view(-1)

    def decode(self, raw: Tensor) -> Tensor:
        """The values in one dimension: in the format's own type if it is plain, else in float32."""
        if self.plain is not None:
            return raw.view(self.plain)
        assert self.unpack is not None
        return self.unpack(raw.view(-1, self.block_bytes)).view(-1)


def _plain(name: str, number: int, file_type: int, dtype: torch.dtype, error: float) -> BlockFormat:
    return BlockFormat(name, number, file_type, 1, dtype.itemsize, plain=dtype, error=error)


def _half(raw: Tensor) -> Tensor:
    """Two bytes of each block as a number in half precision, widened: (blocks, 1)."""
    return raw.contiguous().view(torch.float16).float()


def _bytes(scale: Tensor) -> Tensor:
    """The inverse of `_half`."""
    return scale.half().view(torch.uint8)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale)


def _pack_q8_0(values: Tensor) -> Tensor:
    """One scale, then 32 signed bytes."""
    scale = values.abs().amax(1, keepdim=True) / 127
    scaled = values * _inverse(scale)
    whole = scaled.abs().floor()
    away = whole + (scaled.abs() - whole >= 0.5)  # halves are rounded away from zero, torch.round does it to even
    return torch.cat((_bytes(scale), (away * scaled.sign()).to(torch.int8).view(torch.uint8)), dim=1)


def _unpack_q8_0(raw: Tensor) -> Tensor:
    return _half(raw[:, :2]) * raw[:, 2:].view(torch.int8).float()


def _pack_q4_0(values: Tensor) -> Tensor:
    """One scale, with which the value farthest from zero is -8, then 16 bytes: a low half of a block, a high half."""
    farthest = values.gather(1, values.abs().argmax(1, keepdim=True))
    scale = farthest / -8
    low, high = (values * _inverse(scale) + 8.5).to(torch.uint8).clamp(max=15).chunk(2, dim=1)
    return torch.cat((_bytes(scale), low | high << 4), dim=1)


def _nibbles(raw: Tensor) -> Tensor:
    """The low halves of all bytes, then the high ones."""
    return torch.cat((raw & 15, raw >> 4), dim=-1)


def _unpack_q4_0(raw: Tensor) -> Tensor:
    return _half(raw[:, :2]) * (_nibbles(raw[:, 2:]).float() - 8)


def _unpack_q4_1(raw: Tensor) -> Tensor:
    return _half(raw[:, :2]) * _nibbles(raw[:, 4:]).float() + _half(raw[:, 2:4])


def _scales_k(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and offset of each of the 8 parts of a block, 6 bits each in 12 bytes: (blocks, 8, 1)."""
    first, second, rest = raw.split(4, dim=1)
    scales = torch.cat((first & 63, rest & 15 | first >> 6 << 4), dim=1)
    offsets = torch.cat((second & 63, rest >> 4 | second >> 6 << 4), dim=1)
    return scales.float()[..., None], offsets.float()[..., None]


def _unpack_k(raw: Tensor, scales: Tensor, values: Tensor) -> Tensor:
    """raw: two numbers in half precision, then whatever; values: (blocks, 8, 32)."""
    scale_parts, offset_parts = _scales_k(scales)
    scale, offset = _half(raw[:, :2])[..., None], _half(raw[:, 2:4])[..., None]
    return (scale * scale_parts * values.float() - offset * offset_parts).flatten(1)


def _unpack_q4_k(raw: Tensor) -> Tensor:
    values = _nibbles(raw[:, 16:].unflatten(1, (4, 32))).unflatten(2, (2, 32)).flatten(1, 2)
    return _unpack_k(raw, raw[:, 4:16], values)


def _unpack_q5_k(raw: Tensor) -> Tensor:
    low = _nibbles(raw[:, 48:].unflatten(1, (4, 32))).unflatten(2, (2, 32)).flatten(1, 2)
    fifth = torch.stack([raw[:, 16:48] >> part & 1 for part in range(8)], dim=1)
    return _unpack_k(raw, raw[:, 4:16], low | fifth << 4)


def _unpack_q6_k(raw: Tensor) -> Tensor:
    """Low halves, two more bits, a signed scale for each 16 values, a scale for all."""
    low = _nibbles(raw[:, :128].unflatten(1, (2, 64)))
    bits = raw[:, 128:192].unflatten(1, (2, 32))
    high = torch.cat([bits >> shift & 3 for shift in (0, 2, 4, 6)], dim=2)
    values = (low | high << 4).view(-1, 16, 16).float() - 32
    scales = raw[:, 192:208].view(torch.int8).float()[..., None]
    return (_half(raw[:, 208:])[..., None] * scales * values).flatten(1)


F32 = _plain("f32", 0, 0, torch.float32, 1e-6)
F16 = _plain("f16", 1, 1, torch.float16, 2**-11)
BF16 = _plain("bf16", 30, 32, torch.bfloat16, 2**-8)
# At worst all values of a block but one are off by half a step.
Q8_0 = BlockFormat("q8_0", 8, 7, 32, 34, _unpack_q8_0, _pack_q8_0, error=0.03)
Q4_0 = BlockFormat("q4_0", 2, 2, 32, 18, _unpack_q4_0, _pack_q4_0, error=0.4)
READ_ONLY = (
    BlockFormat("q4_1", 3, 3, 32, 20, _unpack_q4_1),
    BlockFormat("q4_k", 12, 15, 256, 144, _unpack_q4_k),
    BlockFormat("q5_k", 13, 17, 256, 176, _unpack_q5_k),
    BlockFormat("q6_k", 14, 18, 256, 210, _unpack_q6_k),
)
WRITTEN = {form.name: form for form in (F32, F16, BF16, Q8_0, Q4_0)}
BY_NUMBER = {form.number: form for form in (*WRITTEN.values(), *READ_ONLY)}
