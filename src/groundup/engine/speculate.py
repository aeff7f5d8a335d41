"""Speculation: tokens that are guessed, computed together in one pass, and kept as far as they are right.

Each token is chosen as without speculation, and a guess is kept if it is the one: whatever is guessed, a seed gives the
same text as without, in any company. (The rule of Leviathan et al. 2023 keeps more guesses that a draft has drawn, but
what it chooses depends on what was guessed, and so on what else there was to compute.)
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from groundup.engine.choose import Choice, Chooser
from groundup.engine.rows import Logits


def prompt_lookup(ids: npt.NDArray[np.integer], count: int, longest: int = 8, shortest: int = 2) -> list[int]:
    """`count` guesses at what follows: what followed the same tokens before, or none where they are new.

    Of the earlier places with the same last tokens, as many of them as possible and at most `longest`, the latest one
    counts. What follows it can reach into the end of the text itself; it then goes round, as in a text that repeats.

    ids: all tokens of prompt and answer so far, (tokens,). shortest: of fewer equal tokens nothing is concluded.
    Source: Saxena 2023, "Prompt lookup decoding".
    """
    tokens = len(ids)
    # Where an earlier copy of the last token ends, then of the last two, and so on until there is none.
    ends = np.flatnonzero(ids[: tokens - 1] == ids[-1]) if tokens else np.array([], dtype=np.int64)
    length, latest = 1, None
    while len(ends):
        if length >= shortest:
            latest = int(ends[-1])
        if length == longest:
            break
        ends = ends[ends >= length]
        ends = ends[ids[ends - length] == ids[tokens - 1 - length]]
        length += 1
    if latest is None:
        return []
    guesses: list[int] = []
    for place in range(latest + 1, latest + 1 + count):
        guesses.append(int(ids[place]) if place < tokens else guesses[place - tokens])
    return guesses


def verify(chooser: Chooser, logits: Iterable[Logits], guesses: Sequence[int]) -> Iterator[Choice]:
    """The tokens that follow: the guesses that are right, and one more; fewer where the answer ends among them.

    Whoever reads them may stop at any: no token is chosen before it is asked for.

    logits: guesses + 1 times (vocab,), those that follow the answer so far, then each guess.
    """
    for row, guess in zip(logits, (*guesses, None), strict=True):
        choice = chooser.choose(row)
        yield choice
        if choice.token != guess or chooser.has_ended:
            return
