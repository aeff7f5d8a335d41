"""Speculation: tokens that are guessed, computed together in one pass, and kept as far as they are right.

Two rules decide what is kept, both exact: the text has the distribution that it has without speculation.

`verify` chooses each token as without speculation and keeps the guesses that agree. With one seed the text is then the
same with and without, and for guesses that were not drawn (prompt lookup, a greedy draft) no rule keeps more of them.

`verify_drawn` is for guesses drawn from a draft model: it keeps guess x with probability min(1, target(x) / draft(x))
and otherwise draws from what the draft gives too little of, max(0, target - draft) (Leviathan et al. 2023, section 2.3
and appendix A.1). It keeps the most that is possible; the text is another one than without, of the same distribution.

Shape suffixes: t guesses, v vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from groundup.engine.choose import Choice, Chooser
from groundup.engine.filters import draw

Probabilities = npt.NDArray[np.float64]


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


def verify(chooser: Chooser, logits_tv: Tensor, guesses: Sequence[int]) -> list[Choice]:
    """The tokens that follow: the guesses that are right, and one more; fewer where the answer ends among them.

    logits_tv: (guesses + 1, vocab), those that follow the answer so far, then each guess.
    """
    _require_rows(logits_tv, guesses)
    choices: list[Choice] = []
    for logits_v, guess in zip(logits_tv, (*guesses, None), strict=True):
        choices.append(chooser.choose(logits_v))
        if choices[-1].token != guess or chooser.has_ended:
            break
    return choices


def draw_guess(chooser: Chooser, draft_v: Probabilities, ahead: int) -> int:
    """A guess from the draft's distribution (vocab,), `ahead` places behind the answer so far; not yet a choice."""
    return draw(draft_v, chooser.number("draft", ahead))


def verify_drawn(
    chooser: Chooser, logits_tv: Tensor, guesses: Sequence[int], drafts_tv: Sequence[Probabilities]
) -> list[Choice]:
    """As `verify`, for guesses that were drawn from `drafts_tv`, one distribution (vocab,) for each.

    The draft may have been filtered in any way, as long as the guess was drawn from the distribution given here.
    """
    _require_rows(logits_tv, guesses)
    choices: list[Choice] = []
    for logits_v, guess, draft_v in zip(logits_tv[:-1], guesses, drafts_tv, strict=True):
        target_v = chooser.distribution(logits_v).dense(len(logits_v))
        is_kept = chooser.number("accept") < acceptance(target_v, draft_v, guess)
        token = guess if is_kept else draw(residual(target_v, draft_v), chooser.number())
        choices.append(chooser.take(logits_v, token))
        if not is_kept or chooser.has_ended:
            return choices
    return [*choices, chooser.choose(logits_tv[-1])]


def acceptance(target_v: Probabilities, draft_v: Probabilities, guess: int) -> float:
    """The probability with which a guess is kept. Raises ValueError for one that the draft cannot have given."""
    if not draft_v[guess] > 0:
        raise ValueError(f"token {guess} has no probability in the draft's distribution: it was not drawn from it")
    return min(1.0, float(target_v[guess] / draft_v[guess]))


def residual(target_v: Probabilities, draft_v: Probabilities) -> Probabilities:
    """Weights of the token that takes the place of a guess that was not kept, (vocab,)."""
    missing_v = np.maximum(target_v - draft_v, 0.0)
    # Of equal distributions every guess is kept, but for a rounding.
    return missing_v if missing_v.any() else target_v


def _require_rows(logits_tv: Tensor, guesses: Sequence[int]) -> None:
    if len(logits_tv) != len(guesses) + 1:
        raise ValueError(f"{len(logits_tv)} rows of logits for {len(guesses)} guesses: there must be one more")
