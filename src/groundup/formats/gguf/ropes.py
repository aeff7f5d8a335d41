"""Rotary positions in GGUF: keys for the base and for plain ways to stretch it, a tensor of factors for all others.

llama.cpp divides each frequency by its factor in `rope_freqs.weight`. Llama 3.1's scaling comes as such factors; the
numbers that they were made from are kept beside them in a key of our own, which llama.cpp passes over.
"""

import math
from typing import Any

import torch
from torch import Tensor

from groundup.formats.keys import Keys
from groundup.model.config import ModelConfig
from groundup.model.rotary import LinearScaling, Llama3Scaling, LongRopeScaling, Rope, RopeScaling, YarnScaling

LLAMA3 = "rope.llama3"  # factor, low and high frequency factor, original length
PUBLISHED = (1.0, 4.0, 8192)  # the last three in all of Meta's models


def read_rope(keys: Keys, factors: Tensor | None) -> Rope:
    """The rotary positions of a file; factors: on the frequencies, if it has any. Raises ValueError."""
    if factors is not None:
        keys.fixed(**{"rope.dimension_count": 2 * len(factors)})
    theta, scaling = keys.positive("rope.freq_base", default=10_000.0), read_scaling(keys)
    if factors is None:
        return Rope(theta, scaling=scaling)
    if scaling is not None:
        raise ValueError("positions are stretched twice, by `rope.scaling.factor` and by tensor `rope_freqs.weight`")
    return Rope(theta, scaling=_read_factors(keys, theta, factors.double()))


def write_rope(rope: Rope | None, head_dim: int) -> dict[str, Any]:
    """The keys that `read_rope` reads; scalings that have none are passed over."""
    if rope is None:
        return {}
    keys = {"rope.freq_base": rope.theta, "rope.dimension_count": head_dim}
    match rope.scaling:
        case LinearScaling(factor):
            return keys | {"rope.scaling.type": "linear", "rope.scaling.factor": factor}
        case YarnScaling(factor, original, attention_factor):
            return keys | {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": factor,
                "rope.scaling.original_context_length": original,
                "rope.scaling.attn_factor": attention_factor / _yarn_attention_factor(factor),
            }
        case Llama3Scaling(factor, low, high, original):
            return keys | {LLAMA3: [factor, low, high, float(original)]}
    return keys


def frequency_factors(config: ModelConfig) -> Tensor | None:
    """What the frequencies of a model are divided by: (head_dim / 2), or None where a key says it, or nothing does."""
    attention = config.layers[0].attention
    rope = attention.rope
    match None if rope is None else rope.scaling:
        case Llama3Scaling() as scaling:
            assert rope is not None
            return _llama3_factors(rope.theta, attention.head_dim // 2, scaling).float()
        case LongRopeScaling(short, long, _, attention_factor) if short == long and attention_factor == 1:
            return torch.tensor(short)
    return None


def read_scaling(keys: Keys) -> RopeScaling | None:
    """How the keys say that positions are stretched. Raises ValueError."""
    kinds = {kind: kind for kind in ("none", "linear", "yarn")}
    kind = keys.choice("rope.scaling.type", among=kinds, default="linear")
    factor = keys.positive("rope.scaling.factor", "rope.scale_linear", default=1.0)
    original = keys.size("rope.scaling.original_context_length", "context_length")
    attention_factor = keys.positive("rope.scaling.attn_factor", default=1.0)
    # llama.cpp has these keys too, but reads them for few architectures, none of them here.
    keys.fixed(**{"rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 1.0})
    if kind == "yarn":
        return YarnScaling(factor, original, attention_factor * _yarn_attention_factor(factor))
    if attention_factor != 1:
        raise ValueError(f"`rope.scaling.attn_factor` is {attention_factor}, which is supported with YaRN alone")
    return LinearScaling(factor) if kind == "linear" and factor != 1 else None


def _yarn_attention_factor(factor: float) -> float:
    """What llama.cpp lets queries and keys grow by, unless a key says more."""
    return 1 + 0.1 * math.log(factor) if factor > 1 else 1.0


def _read_factors(keys: Keys, theta: float, factors: Tensor) -> RopeScaling | None:
    own = keys.positives(LLAMA3, default=[])
    if own and len(own) != 4:
        raise ValueError(f"`{LLAMA3}` must have 4 numbers, not {len(own)}")
    largest = factors.max().item()
    factor, low, high, original = own or (largest, *PUBLISHED)
    if not (math.isfinite(largest) and factors.min() > 0):
        raise ValueError("tensor `rope_freqs.weight` must have positive, finite numbers")
    if high > low:
        scaling = Llama3Scaling(factor, low, high, int(original))
        if torch.allclose(_llama3_factors(theta, len(factors), scaling), factors, rtol=1e-5, atol=0):
            return scaling
    if own:
        raise ValueError(f"tensor `rope_freqs.weight` is not what `{LLAMA3}` says")
    numbers = tuple(factors.tolist())
    return None if set(numbers) == {1.0} else LongRopeScaling(numbers, numbers, keys.size("context_length"), 1.0)


def _llama3_factors(theta: float, count: int, scaling: Llama3Scaling) -> Tensor:
    plain_f = theta ** -(torch.arange(count, dtype=torch.float64) / count)
    turns_f = scaling.original * plain_f / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept_f = ((turns_f - low) / (high - low)).clamp(0, 1)
    return 1 / (kept_f + (1 - kept_f) / scaling.factor)
