"""From logits to the next token."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens.

    temperature: 0 takes the likeliest token; otherwise logits are divided by it.
    top_k: only the k likeliest are drawn from; 0 for all.
    seed: the same seed, prompt and settings give the same tokens, whatever else is in the batch.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"`max_tokens` must be at least 1, not {self.max_tokens}")
        if self.temperature < 0:
            raise ValueError(f"`temperature` must not be negative, not {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"`top_k` must not be negative, not {self.top_k}")


def choose(logits_v: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token id from the logits (vocab) of one sequence."""
    if sampling.temperature == 0:
        return int(logits_v.argmax())
    scaled_v = logits_v.double() / sampling.temperature
    if 0 < sampling.top_k < len(scaled_v):
        likeliest = scaled_v.topk(sampling.top_k)
        scaled_v = torch.full_like(scaled_v, float("-inf")).scatter(0, likeliest.indices, likeliest.values)
    return int(torch.multinomial(torch.softmax(scaled_v, dim=-1), 1, generator=generator))
