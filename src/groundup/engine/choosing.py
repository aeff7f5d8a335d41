"""What the engine asks of sampling: a chooser for each text, which makes tokens of logits and says how likely they are.

Shape suffix: v vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import xxhash
from torch import Tensor

from groundup.engine.sampling import Sampling, choose


class Choice(Protocol):
    """token: what comes next. logprob: its log-probability by the model, in nats. top: the likeliest with theirs."""

    @property
    def token(self) -> int: ...

    @property
    def logprob(self) -> float: ...

    @property
    def top(self) -> list[tuple[int, float]]: ...


class Chooser(Protocol):
    """The choices of one text, called once for each of its tokens."""

    def choose(self, logits_v: Tensor) -> Choice: ...


def make_chooser(sampling: Sampling, prompt_ids: Sequence[int]) -> Chooser:
    """The chooser of a text that goes on from a prompt."""
    return PlainChooser(sampling, len(prompt_ids))


class PlainChoice(NamedTuple):
    token: int
    logprob: float
    top: list[tuple[int, float]]


class PlainChooser:
    """Choices by temperature and top-k.

    What is drawn depends on the seed and on the token's index in the text alone: not on other texts, not on the order
    in which they are computed.
    """

    def __init__(self, sampling: Sampling, index: int) -> None:
        self._sampling = sampling
        self._index = index

    def choose(self, logits_v: Tensor) -> PlainChoice:
        generator = torch.Generator().manual_seed(_mixed(self._sampling.seed, self._index))
        self._index += 1
        token = choose(logits_v, self._sampling, generator)
        return PlainChoice(token, float(logits_v[token] - logits_v.logsumexp(-1)), [])


def _mixed(seed: int, index: int) -> int:
    """A seed for one draw, unrelated to those of its neighbours."""
    return xxhash.xxh3_64_intdigest(f"{seed} {index}".encode())
