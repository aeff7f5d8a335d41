"""Random numbers without a state: each is a function of what it is for.

A generator that is advanced from draw to draw would tie a text to the order in which its tokens were computed. Here the
number for a token depends on the seed and on the token's place alone, so a text comes out the same in any batch, after
a pause, and with or without speculation.
"""

import hashlib
import struct
from functools import lru_cache
from typing import NamedTuple


class Draw(NamedTuple):
    """How a token is chosen from logits by all that they say; the fields are those of `Sampling`.

    number: from [0, 1), the one that decides.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    number: float


LIKELIEST = Draw(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, number=0.0)


@lru_cache(maxsize=1024)  # asked for before a step's tokens are drawn, and once more when they are taken
def uniform(seed: int, place: int, stream: int = 0) -> float:
    """A number from [0, 1), one of 2^53 equally likely ones.

    seed: 64 bits with sign. place: index of the token in the sequence. stream: which of several answers to a prompt.
    """
    key = struct.pack("<qqq", seed, place, stream)
    digest = hashlib.blake2b(key, digest_size=8, person=b"token").digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53
