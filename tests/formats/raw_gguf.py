"""A GGUF writer for tests, straight from the specification, that writes whatever it is told, however wrong."""

import struct
from typing import Any

import numpy as np

CODES = {"u8": (0, "B"), "u32": (4, "I"), "i32": (5, "i"), "f32": (6, "f"), "bool": (7, "?"), "u64": (10, "Q")}


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def typed(value: Any) -> bytes:
    """A value with its type: text, a list of texts or integers, or (name of a type, number)."""
    match value:
        case str():
            return struct.pack("<I", 8) + text(value)
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case (kind, number) if isinstance(value, tuple):
            return struct.pack(f"<I{CODES[kind][1]}", CODES[kind][0], number)
        case [str(), *_]:
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
        case [*_]:
            return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
    raise TypeError(value)


def build(
    metadata: dict[str, Any],
    tensors: dict[str, np.ndarray],
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    alignment: int = 32,
    shapes: dict[str, tuple[int, ...]] | None = None,
    kinds: dict[str, int] | None = None,
    offsets: dict[str, int] | None = None,
    tensor_count: int | None = None,
    key_count: int | None = None,
) -> bytes:
    """The bytes of a file of tensors in single precision; shapes, kinds, offsets: lies about some of them."""
    header = magic + struct.pack("<I", version)
    header += struct.pack("<Q", len(tensors) if tensor_count is None else tensor_count)
    header += struct.pack("<Q", len(metadata) if key_count is None else key_count)
    for key, value in metadata.items():
        header += text(key) + typed(value)
    data = b""
    for name, array in tensors.items():
        data += bytes(-len(data) % alignment)
        shape = (shapes or {}).get(name, array.shape)
        header += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        header += struct.pack("<IQ", (kinds or {}).get(name, 0), (offsets or {}).get(name, len(data)))
        data += array.astype("<f4").tobytes()
    return header + bytes(-len(header) % alignment) + data


def tiny_llama() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and tensors of one layer of width 8 with 10 tokens, as llama.cpp's converter would call them."""
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.vocab_size": 10,
        "llama.context_length": 32,
        "llama.embedding_length": 8,
        "llama.block_count": 1,
        "llama.feed_forward_length": 12,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": 4,
        "llama.rope.freq_base": 300.0,
    }
    shapes = {
        "token_embd.weight": (10, 8),
        "output_norm.weight": (8,),
        "output.weight": (10, 8),
        "blk.0.attn_norm.weight": (8,),
        "blk.0.attn_q.weight": (8, 8),
        "blk.0.attn_k.weight": (4, 8),
        "blk.0.attn_v.weight": (4, 8),
        "blk.0.attn_output.weight": (8, 8),
        "blk.0.ffn_norm.weight": (8,),
        "blk.0.ffn_gate.weight": (12, 8),
        "blk.0.ffn_up.weight": (12, 8),
        "blk.0.ffn_down.weight": (8, 12),
    }
    generator = np.random.default_rng(0)
    return metadata, {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
