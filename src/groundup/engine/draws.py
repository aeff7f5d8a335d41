"""Random numbers without a state: each is a function of what it is for.

A generator that is advanced from draw to draw would tie a text to the order in which its tokens were computed. Here the
number for a token depends on the seed and on the token's place alone, so a text comes out the same in any batch, after
a pause, and with or without speculation.
"""

import hashlib
import struct


def uniform(seed: int, place: int, stream: int = 0) -> float:
    """A number from [0, 1), one of 2^53 equally likely ones.

    seed: 64 bits with sign. place: index of the token in the sequence. stream: which of several answers to a prompt.
    """
    key = struct.pack("<qqq", seed, place, stream)
    digest = hashlib.blake2b(key, digest_size=8, person=b"token").digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53
