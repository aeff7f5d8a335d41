"""A part of a folder's token shards that stands for all of it, to measure on without reading everything."""

from collections.abc import Iterator

import numpy as np
import xxhash

from groundup.tokens.shards import Int64s, Shards
from groundup.tokens.tokenizer import Tokenizer

# A longer document is drawn in parts of so many tokens, so that no single book is the whole sample.
PART_TOKENS = 2048


class TextSample:
    """Documents, or parts of long ones, in memory as a stream of tokens.

    offsets, total_tokens, total_bytes, tokens: as those of `Shards`; each part counts as a document.
    """

    def __init__(self, parts: list[Int64s], total_bytes: int) -> None:
        self._tokens = np.concatenate(parts)
        self.offsets: Int64s = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        self.total_tokens = len(self._tokens)
        self.total_bytes = total_bytes

    def tokens(self, start: int, stop: int) -> Int64s:
        return self._tokens[start:stop]


def sample_text(shards: Shards, words: Tokenizer, megabytes: float) -> Shards | TextSample:
    """Text of at most so many megabytes (10^6 bytes), spread over all of it, or the shards if they hold no more.

    Parts are drawn in the order of a hash of their document's id and their number, each as likely as any other, until
    the next would pass the limit; what is drawn stands in the order of the shards. So a sample depends on the documents
    alone, and a larger one holds the smaller. megabytes: 0 for all. At least one part is drawn.
    """
    most = round(megabytes * 1e6)
    if most == 0 or shards.total_bytes <= most:
        return shards
    token_bytes, size = words.token_bytes(), 0
    drawn: dict[int, Int64s] = {}
    for start, stop in sorted(_parts(shards.offsets), key=lambda part: _order(shards, part)):
        tokens = shards.tokens(start, stop)
        part_bytes = int(token_bytes[tokens].sum())
        if drawn and size + part_bytes > most:
            break
        drawn[start], size = tokens, size + part_bytes
    return TextSample([drawn[start] for start in sorted(drawn)], size)


def text_of(stream: Shards | TextSample, words: Tokenizer) -> list[bytes]:
    """The UTF-8 text of each document of a stream; a part of a document may begin or end within a character."""
    documents = [
        stream.tokens(start, stop).tolist()
        for start, stop in zip(stream.offsets[:-1].tolist(), stream.offsets[1:].tolist(), strict=True)
    ]
    return [b"".join(map(words.piece, tokens)) for tokens in documents]


def _parts(offsets: Int64s) -> Iterator[tuple[int, int]]:
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        for first in range(start, stop, PART_TOKENS):
            yield first, min(first + PART_TOKENS, stop)


def _order(shards: Shards, part: tuple[int, int]) -> int:
    document = shards.document_at(part[0])
    number = (part[0] - int(shards.offsets[document])) // PART_TOKENS
    return xxhash.xxh3_64_intdigest(f"{shards.document_ids[document]} {number}".encode())
