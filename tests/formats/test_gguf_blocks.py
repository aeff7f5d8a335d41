"""Block formats of GGUF to the bit: against scalar arithmetic written out here, and against ggml's own package."""

import math
import struct

import numpy as np
import pytest
import torch

from groundup.formats.gguf.blocks import BY_NUMBER, Q4_0, Q8_0, READ_ONLY, WRITTEN

SINGLE = np.float32


def hard_values() -> torch.Tensor:
    """Blocks at the edges of rounding, and random ones over many magnitudes, (blocks, 256) in float32."""
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(200, 256, generator=generator) * 10 ** (torch.rand(200, 1, generator=generator) * 8 - 6)
    halves = (torch.arange(256) - 128).float().expand(2, 256) * torch.tensor([[0.5], [1.0]])
    halves = torch.cat((halves, torch.full((1, 256), 63.5)))
    halves[:, ::32] = 127.0  # so that the step is one, and every half is a tie
    ties = torch.randn(20, 256, generator=generator).sign() * 3  # which of equal sizes is the farthest counts
    return torch.cat((random, halves, -halves, ties, unfused(generator), torch.zeros(2, 256)))


def unfused(generator: torch.Generator) -> torch.Tensor:
    """Blocks that q4_0 packs otherwise where the product is not rounded before 8.5 is added."""
    blocks = (torch.randn(20_000, 32, generator=generator) * 64).round() / 64  # coarse, so that it happens at all
    inverse = 1 / (blocks.gather(1, blocks.abs().argmax(1, keepdim=True)) / -8)
    once = (blocks.double() * inverse.double() + 8.5).float()
    found = blocks[(once.int() != (blocks * inverse + 8.5).int()).any(1)]
    assert len(found) >= 8
    return found[:8].view(1, 256)


def scalar_q8_0(values: list[float]) -> bytes:
    scale = SINGLE(max(abs(SINGLE(value)) for value in values)) / SINGLE(127)
    inverse = SINGLE(1) / scale if scale else SINGLE(0)
    scaled = [float(SINGLE(value) * inverse) for value in values]
    whole = [int(math.copysign(math.floor(abs(one)) + (abs(one) % 1 >= 0.5), one)) for one in scaled]
    return np.float16(scale).tobytes() + struct.pack("32b", *whole)


def scalar_q4_0(values: list[float]) -> bytes:
    farthest = SINGLE(0)
    for value in map(SINGLE, values):
        farthest = value if abs(value) > abs(farthest) else farthest
    scale = farthest / SINGLE(-8)
    inverse = SINGLE(1) / scale if scale else SINGLE(0)
    numbers = [min(15, int(SINGLE(value) * inverse + SINGLE(8.5))) for value in values]
    return np.float16(scale).tobytes() + bytes(
        low | high << 4 for low, high in zip(numbers[:16], numbers[16:], strict=True)
    )


@pytest.mark.parametrize(("form", "scalar"), [(Q8_0, scalar_q8_0), (Q4_0, scalar_q4_0)], ids=["q8_0", "q4_0"])
def test_what_is_packed_is_what_scalar_arithmetic_packs(form, scalar):
    values = hard_values()
    expected = b"".join(scalar(block) for block in values.view(-1, 32).tolist())
    assert form.encode(values).numpy().tobytes() == expected
    assert len(expected) == form.size_bytes(tuple(values.shape))


@pytest.mark.parametrize("form", [Q8_0, Q4_0], ids=lambda form: form.name)
def test_what_is_unpacked_is_scale_times_number(form):
    raw = form.encode(hard_values())
    decoded = form.decode(raw).view(-1, 32)
    for block, values in zip(raw.view(-1, form.block_bytes)[::37].numpy(), decoded[::37], strict=True):
        scale = float(np.frombuffer(block[:2].tobytes(), np.float16)[0])
        if form is Q8_0:
            numbers = [int(np.int8(byte)) for byte in block[2:]]
        else:
            numbers = [int(byte) % 16 - 8 for byte in block[2:]] + [int(byte) // 16 - 8 for byte in block[2:]]
        assert values.tolist() == [float(SINGLE(scale * number)) for number in numbers]


@pytest.mark.parametrize("form", WRITTEN.values(), ids=lambda form: form.name)
def test_storing_loses_no_more_than_the_format_says(form):
    values = hard_values()
    lost = (form.decode(form.encode(values)).view_as(values).float() - values).norm(dim=1)
    assert (lost <= form.error * values.norm(dim=1) + 4e-6 * 16).all()


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_plain_formats_are_the_types_of_torch(name: str):
    values = hard_values()
    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[name]
    decoded = WRITTEN[name].decode(WRITTEN[name].encode(values))
    assert decoded.dtype == dtype
    assert torch.equal(decoded.view_as(values), values.to(dtype))


class TestAgainstThePackageOfGgml:
    """ggml's own Python package packs and unpacks alike."""

    @pytest.mark.parametrize("form", WRITTEN.values(), ids=lambda form: form.name)
    def test_packed(self, form):
        gguf = pytest.importorskip("gguf", reason="the package `gguf` is not installed: pip install groundup[llamacpp]")
        values = hard_values()
        if form.name == "f16":
            values = values.clamp(-60_000, 60_000)
        theirs = gguf.quants.quantize(values.numpy(), gguf.GGMLQuantizationType(form.number))
        assert form.encode(values).numpy().tobytes() == theirs.tobytes()

    @pytest.mark.parametrize("form", BY_NUMBER.values(), ids=lambda form: form.name)
    def test_unpacked(self, form):
        gguf = pytest.importorskip("gguf", reason="the package `gguf` is not installed: pip install groundup[llamacpp]")
        kind = gguf.GGMLQuantizationType(form.number)
        assert gguf.GGML_QUANT_SIZES[kind] == (form.block, form.block_bytes)
        assert kind.name.lower() == form.name
        raw = np.random.default_rng(0).integers(0, 256, (40, form.block_bytes), dtype=np.uint8)
        if form in READ_ONLY or form.pack is not None:  # scales that are numbers
            for start in (0, 2) if form.name in ("q4_1", "q4_k", "q5_k") else (form.block_bytes - 2,):
                start = 0 if form in (Q8_0, Q4_0) else start
                raw[:, start : start + 2] = (
                    np.random.default_rng(1).normal(size=(40, 1)).astype(np.float16).view(np.uint8)
                )
        theirs = gguf.quants.dequantize(raw, kind)
        ours = form.decode(torch.from_numpy(raw.reshape(-1))).float().numpy()
        assert np.array_equal(ours, theirs.reshape(-1).astype(np.float32), equal_nan=True)
