"""For which texts of the engine the next tokens are guessed, how many, and by whom: from what was said before.

A step that computes few tokens takes hardly longer with some more, so right guesses are tokens for nothing. Wrong ones
are not, and neither is any guess where many texts are computed together. So the guesses of a step are limited for all
texts together, and a text whose guesses are wrong has fewer, and soon none for a time that doubles each time they are.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from groundup.engine.jobs import Writing
from groundup.engine.ranges import COUNT
from groundup.engine.speculate import prompt_lookup


class Guesser(Protocol):
    """Guesses at what follows texts."""

    def guess(self, texts: Sequence[tuple[Writing, int]]) -> list[list[int]]:
        """At most as many tokens for each text as stands beside it; fewer where nothing can be said."""
        ...

    def forget(self, text: Writing) -> None:
        """There will be no more of this text."""
        ...


class Trust:
    """How many guesses a text gets, by what became of the last ones.

    As long as all are right they double, up to `most`. If fewer than half are, there is a pause before the next attempt
    that is twice as long as the one before; so a text of T tokens that cannot be guessed has only log2(T) attempts.
    `most` 0: there is none at all.
    """

    def __init__(self, most: int) -> None:
        self._most, self._count = most, min(2, most)
        self._pause = self._paused = 0

    def count(self) -> int:
        """Guesses that the next step may have; called once for each."""
        if self._paused:
            self._paused -= 1
            return 0
        return self._count

    def learn(self, guessed: int, right: int) -> None:
        """Of so many guesses, so many were right."""
        if right == guessed:
            self._count = min(self._most, max(self._count, 2 * guessed))
        elif 2 * right < guessed:
            self._count = max(1, right)
            self._pause = self._paused = 2 * self._pause + 1
            return
        self._pause = 0


class Speculation:
    """The guesses of one engine.

    guesses: at most, of a text in a step. step_guesses: of all its texts together.
    """

    def __init__(self, guesser: Guesser, guesses: int, step_guesses: int) -> None:
        self._guesser, self._most, self._step_guesses = guesser, guesses, step_guesses
        self._trust: dict[Writing, Trust] = {}

    def propose(self, texts: Sequence[Writing]) -> None:
        """Append guesses to texts that wait for their next token."""
        # One token is chosen beside the guesses, so that they need not reach the limit.
        rooms = [(text, text.limit - text.written - 1) for text in texts if text.limit - text.written > 1]
        counts = [(text, min(room, self._trust_in(text).count())) for text, room in rooms]
        guessable = [(text, count) for text, count in counts if count > 0]
        share = self._step_guesses // max(1, len(guessable))
        if share == 0 or not guessable:
            return
        wanted = [(text, min(share, count)) for text, count in guessable]
        try:
            found = self._guesser.guess(wanted)
        except Exception as error:  # the texts are the same without guesses, only slower
            self._give_up(error)
            return
        for (text, _), guesses in zip(wanted, found, strict=True):
            for sequence in text.sequences:
                sequence.guess(guesses)

    def learn(self, text: Writing, guessed: int, right: int) -> None:
        """Of so many guesses at a text, so many were right."""
        self._trust_in(text).learn(guessed, right)

    def forget(self, text: Writing) -> None:
        """There will be no more of this text."""
        if self._trust.pop(text, None) is not None:
            self._guesser.forget(text)

    def _give_up(self, error: Exception) -> None:
        """No more guesses for texts that there were some for: what the guesser keeps of them may be half made.

        Nobody waits for guesses, so the error is shown as those of threads are.
        """
        for text in self._trust:
            self._guesser.forget(text)
            self._trust[text] = Trust(0)
        error.add_note(f"{len(self._trust)} texts of the engine are written on without guesses, and no different")
        sys.excepthook(type(error), error, error.__traceback__)

    def _trust_in(self, text: Writing) -> Trust:
        return self._trust.setdefault(text, Trust(self._most))


@dataclass(frozen=True)
class PromptLookup:
    """Guesses that what followed the last tokens before, in prompt or answer, follows again.

    guesses: at most, of a text in a step. step_guesses: of all texts of a step together.
    shortest, longest: how many of the last tokens must have come before, and how many are compared.
    Raises ValueError for numbers below 1 and for a longest below the shortest.
    """

    guesses: int = 8
    step_guesses: int = 32
    shortest: int = 2
    longest: int = 8

    def __post_init__(self) -> None:
        for name in ("guesses", "step_guesses", "shortest", "longest"):
            COUNT.require(f"`{name}`", getattr(self, name))
        if self.longest < self.shortest:
            raise ValueError(f"`longest` must be at least `shortest` ({self.shortest}), not {self.longest}")


class LookupGuesser:
    """Looks up what followed the same tokens before, see `prompt_lookup`."""

    def __init__(self, spec: PromptLookup) -> None:
        self._spec = spec
        self._said: dict[Writing, _Growing] = {}

    def guess(self, texts: Sequence[tuple[Writing, int]]) -> list[list[int]]:
        found = []
        for text, count in texts:
            said = self._said.setdefault(text, _Growing())
            for sequence in text.sequences:
                said.extend(sequence.tokens)
            found.append(prompt_lookup(said.ids, count, self._spec.longest, self._spec.shortest))
        return found

    def forget(self, text: Writing) -> None:
        self._said.pop(text, None)


class _Growing:
    """Token ids as an array that grows at its end, so that a long text costs no more at each token."""

    def __init__(self) -> None:
        self._buffer = np.empty(256, dtype=np.int64)
        self._length = 0

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        return self._buffer[: self._length]

    def extend(self, tokens: Sequence[int]) -> None:
        """Make it equal to `tokens`, which begin with all that is there."""
        if len(tokens) > len(self._buffer):
            larger = np.empty(2 * len(tokens), dtype=np.int64)
            larger[: self._length] = self.ids
            self._buffer = larger
        self._buffer[self._length : len(tokens)] = tokens[self._length :]
        self._length = len(tokens)
