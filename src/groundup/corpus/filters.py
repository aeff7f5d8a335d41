"""Quality rules: which documents look like no prose and no program, and by which rule.

The rules for prose follow Gopher (Rae et al. 2021, appendix A1.1) and C4 (Raffel et al. 2020, section 2.2); those for
programs follow StarCoder's (Li et al. 2023, section 3.1). Prose rules never see a program: good source is full of
symbols, short lines and repeated idioms. All documents of a chunk are measured at once in numpy.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from groundup.corpus.words import Chunk, Hashes, Integers, Units, word_grams

Numbers = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rule:
    """A document whose measure lies below `low` or above `high` is rejected for `reason`."""

    reason: str
    measure: str
    low: float = -np.inf
    high: float = np.inf


# Shares are between 0 and 1. The limits on repetition are looser than Gopher's, which would throw out cumulative
# fairy tales and songs: on 278 classic tales and 122 long Wikipedia articles these rules reject nothing.
PROSE_RULES = (
    Rule("words too short or too long", "mean_word_length", 2.5, 10.0),
    Rule("too few alphabetic words", "alphabetic_words", low=0.7),
    Rule("too many symbols", "symbols_per_word", high=0.1),
    Rule("mostly a list", "bullet_lines", high=0.9),
    Rule("cut-off lines", "ellipsis_lines", high=0.3),
    Rule("repeated lines", "repeated_lines", high=0.5),
    Rule("repeated phrases", "repeated_phrases", high=0.65),
    Rule("one phrase over and over", "top_phrase", high=0.2),
    Rule("placeholder text", "lorem_ipsum", high=0.0),
)
PROGRAM_RULES = (
    Rule("data rather than code", "letters", low=0.35),
    Rule("lines too long", "mean_line_length", high=100.0),
    Rule("lines too long", "longest_line", high=2000.0),
    Rule("repeated phrases", "repeated_phrases", high=0.7),
)


def judge(chunk: Chunk, programs: Flags) -> tuple[list[str], dict[str, Numbers]]:
    """The reason against each document, '' for none, and every measure of each document.

    programs: which documents are source code; the others are prose.
    """
    measures = measure(chunk)
    reasons = np.full(len(chunk.starts), "", dtype=object)
    for rules, concerned in ((PROSE_RULES, ~programs), (PROGRAM_RULES, programs)):
        for rule in rules:
            values = measures[rule.measure]
            broken = concerned & ((values < rule.low) | (values > rule.high)) & (reasons == "")
            reasons[broken] = rule.reason
    return list(reasons), measures


def measure(chunk: Chunk) -> dict[str, Numbers]:
    """All measures of all documents: {name: one number per document}."""
    words, lines = chunk.words, chunk.lines
    letters = _running_count(_IS_LETTER[chunk.data])
    visible = _running_count(~_IS_SPACE[chunk.data])
    symbols = _running_count(chunk.data == ord("#"))
    word_count = np.maximum(words.counts, 1)
    line_count = np.maximum(lines.counts, 1)
    line_lengths = (lines.ends - lines.starts).astype(np.float64)
    phrase_share, _ = _repetition(words, 5)
    _, pair_share = _repetition(words, 2)
    ellipses = _ends_in_ellipsis(chunk)
    return {
        "mean_word_length": _sums(words, words.ends - words.starts) / word_count,
        "alphabetic_words": _sums(words, letters[words.ends] > letters[words.starts]) / word_count,
        "letters": _spans(letters, chunk) / np.maximum(_spans(visible, chunk), 1),
        "symbols_per_word": (_spans(symbols, chunk) + _sums(lines, ellipses)) / word_count,
        "bullet_lines": _sums(lines, _starts_with_bullet(chunk)) / line_count,
        "ellipsis_lines": _sums(lines, ellipses) / line_count,
        "repeated_lines": _repeated_lines(lines),
        "mean_line_length": _sums(lines, line_lengths) / line_count,
        "longest_line": _maxima(lines, line_lengths),
        "repeated_phrases": phrase_share,
        "top_phrase": pair_share,
        "lorem_ipsum": _lorem_ipsum(chunk),
    }


def _repetition(words: Units, size: int) -> tuple[Numbers, Numbers]:
    """Of each document's runs of `size` words: the share that stood there before, and the share of words that
    belong to the most frequent one."""
    grams = word_grams(words, size)
    documents, frequency = _distinct(grams.documents, grams.hashes)
    total = np.maximum(words.counts - size + 1, 1)
    distinct = np.bincount(documents, minlength=len(total))
    top = np.zeros(len(total))
    np.maximum.at(top, documents, frequency)
    # Three times may be chance or a title, however short the text.
    top[top < 4] = 0
    repeated = np.where(distinct > 0, 1 - distinct / total, 0.0)
    return repeated, np.minimum(top * size / np.maximum(words.counts, 1), 1.0)


def _repeated_lines(lines: Units) -> Numbers:
    """The share of lines that stood there before (Gopher's duplicate line fraction)."""
    documents, _ = _distinct(lines.documents, lines.hashes)
    distinct = np.bincount(documents, minlength=len(lines.counts))
    return np.where(distinct > 0, 1 - distinct / np.maximum(lines.counts, 1), 0.0)


def _distinct(documents: Integers, hashes: Hashes) -> tuple[Integers, Numbers]:
    """The distinct hashes of each document: the document of each, and how often it occurs there.

    One sort of document number and hash in one word; a chunk has far fewer than 2^20 documents, and 44 bits of hash
    make a false match rarer than one in a million in a document of a million words.
    """
    keys = np.sort((documents.astype(np.uint64) << np.uint64(44)) | (hashes >> np.uint64(20)))
    if len(keys) == 0:
        return np.zeros(0, np.int64), np.zeros(0)
    starts = np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1, [len(keys)]])
    return (keys[starts[:-1]] >> np.uint64(44)).astype(np.int64), np.diff(starts).astype(np.float64)


def _starts_with_bullet(chunk: Chunk) -> Flags:
    first, third = chunk.data[chunk.lines.starts], chunk.data[np.minimum(chunk.lines.starts + 2, len(chunk.data) - 1)]
    return (first == ord("-")) | (first == ord("*")) | ((first == _BULLET[0]) & (third == _BULLET[2]))


def _ends_in_ellipsis(chunk: Chunk) -> Flags:
    last, third_last = chunk.data[chunk.lines.ends - 1], chunk.data[np.maximum(chunk.lines.ends - 3, 0)]
    dots = (last == ord(".")) & (third_last == ord("."))
    return dots | ((last == _ELLIPSIS[2]) & (third_last == _ELLIPSIS[0]))


def _lorem_ipsum(chunk: Chunk) -> Numbers:
    found = np.zeros(len(chunk.starts))
    letters = chunk.letters.tobytes()
    position = letters.find(b"lorem\0ipsum")
    while position >= 0:
        found[np.searchsorted(chunk.starts, position, side="right") - 1] += 1
        position = letters.find(b"lorem\0ipsum", position + 1)
    return found


def _running_count(flags: npt.NDArray[np.bool_]) -> Integers:
    """How many flags are set before each position; one longer than `flags`."""
    running = np.zeros(len(flags) + 1, np.int64)
    np.cumsum(flags, out=running[1:])
    return running


def _spans(running: Integers, chunk: Chunk) -> Integers:
    return running[chunk.ends] - running[chunk.starts]


def _sums(units: Units, values: npt.NDArray[np.generic]) -> Numbers:
    """The sum of each document's values, one value per unit."""
    return np.bincount(units.documents, weights=values, minlength=len(units.counts)).astype(np.float64)


def _maxima(units: Units, values: Numbers) -> Numbers:
    largest = np.zeros(len(units.counts))
    np.maximum.at(largest, units.documents, values)
    return largest


def _byte_table(holds: Callable[[int], bool]) -> Flags:
    return np.array([holds(byte) for byte in range(256)], np.bool_)


_IS_LETTER = _byte_table(lambda byte: byte >= 0x80 or chr(byte).isalpha())
_IS_SPACE = _byte_table(lambda byte: chr(byte) in " \t\n")
_BULLET = "•".encode()
_ELLIPSIS = "…".encode()
