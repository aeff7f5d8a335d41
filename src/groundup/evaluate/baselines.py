"""What a language model must beat: bits per byte of compressors and count models on the same held-out bytes.

- `xz -9e`, alone: all held-out texts in one stream, which learns from nothing but what it has seen of that stream.
- `xz -9e`, after train: what the held-out texts add to a stream that already holds the training texts.
- unigram: byte frequencies of the training texts (add-one).
- n-gram: the byte n-gram model with interpolated modified Kneser-Ney smoothing of `ngram.py`, trained on train.

All figures are total bits over total UTF-8 bytes of the held-out texts: the measure in which the model is scored.
"""

import lzma
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from groundup.evaluate.config import MAX_NGRAM_ORDER
from groundup.evaluate.ngram import train_ngram

# xz reads the training texts twice at 2 to 3 MB/s, and its dictionary of 64 MiB would not reach back much further.
XZ_TRAIN_BYTES = 16_000_000


@dataclass(frozen=True)
class Score:
    """Bits per byte of one baseline, and one sentence on how it came about."""

    name: str
    bits_per_byte: float
    how: str


def baseline_bits_per_byte(
    train: Sequence[bytes], heldout: Sequence[bytes], ngram_order: int = MAX_NGRAM_ORDER
) -> list[Score]:
    """Score every baseline on the held-out texts, all given in UTF-8.

    Raises ValueError if there is no held-out text.
    """
    size = sum(map(len, heldout))
    if size == 0:
        raise ValueError("bits per byte need at least one held-out byte")
    ngram = train_ngram(train, ngram_order)
    scores = [
        Score(
            "unigram",
            _unigram_bits(train, heldout) / size,
            "Each byte by its frequency in the training texts.",
        ),
        Score(
            "xz -9e",
            8 * _xz_size(heldout) / size,
            "The held-out texts alone, compressed as one file.",
        ),
        Score(
            f"{ngram_order}-gram",
            sum(float(ngram.bits(text).sum()) for text in heldout) / size,
            f"Each byte from the {ngram_order - 1} before it: training counts, modified Kneser-Ney smoothing.",
        ),
    ]
    if 0 < sum(map(len, train)) <= XZ_TRAIN_BYTES:
        added = _xz_size([*train, *heldout]) - _xz_size(train)
        how = "What the held-out texts add to a file that holds the training texts before them."
        scores.insert(2, Score("xz -9e after train", 8 * added / size, how))
    return scores


def _xz_size(texts: Sequence[bytes]) -> int:
    """Bytes that `xz -9e` writes for the texts joined into one file (one thread, CRC64, container included)."""
    compressor = lzma.LZMACompressor(format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME)
    return sum(len(compressor.compress(text)) for text in texts) + len(compressor.flush())


def _unigram_bits(train: Sequence[bytes], heldout: Sequence[bytes]) -> float:
    counts = np.ones(256, dtype=np.int64)
    for text in train:
        counts += np.bincount(np.frombuffer(text, dtype=np.uint8), minlength=256)
    seen = np.bincount(np.frombuffer(b"".join(heldout), dtype=np.uint8), minlength=256)
    return float(seen @ (math.log2(counts.sum()) - np.log2(counts)))
