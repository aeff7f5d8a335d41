"""What was said before, and what follows from it for the next token: penalties on logits, and tokens that are banned.

Shape suffix: v vocabulary.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from groundup.engine.sampling import Sampling

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.int64]


class TokenCounts:
    """The different tokens of prompt and answer, each with how often it is in the answer.

    `add` and `remove` take constant time, so that a long text makes no step slower than its number of different tokens.
    """

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        prompt = np.unique(np.asarray(prompt_ids, dtype=np.int64))
        self._slots = {int(token): slot for slot, token in enumerate(prompt)}
        self._of_prompt = len(prompt)
        self._ids = np.concatenate((prompt, np.zeros(64, dtype=np.int64)))
        self._counts = np.zeros(len(self._ids), dtype=np.int64)

    @property
    def ids(self) -> Integers:
        """(different tokens,), each once."""
        return self._ids[: len(self._slots)]

    @property
    def counts(self) -> Integers:
        """How often each of `ids` is in the answer; 0 for what is in the prompt alone."""
        return self._counts[: len(self._slots)]

    def require_vocabulary(self, vocab_size: int) -> None:
        """Raises ValueError where the prompt has an id that is none of `vocab_size` tokens."""
        prompt = self._ids[: self._of_prompt]
        outside = prompt[(prompt < 0) | (prompt >= vocab_size)]
        if len(outside):
            raise ValueError(f"the prompt has the token id {outside[0]}, but the vocabulary ends at {vocab_size - 1}")

    def add(self, token: int) -> None:
        """The answer has one more token."""
        slot = self._slots.setdefault(token, len(self._slots))
        if slot == len(self._ids):
            self._ids = np.concatenate((self._ids, np.zeros_like(self._ids)))
            self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
        self._ids[slot] = token
        self._counts[slot] += 1

    def remove(self, token: int) -> None:
        """Undo `add` of the answer's last token."""
        slot = self._slots[token]
        self._counts[slot] -= 1
        # Tokens leave in the opposite order, so one that is gone for good was the last to get a slot.
        if self._counts[slot] == 0 and slot >= self._of_prompt:
            del self._slots[token]

    def copy(self) -> "TokenCounts":
        """Another one with the same content."""
        copied = TokenCounts(())
        copied._slots, copied._of_prompt = dict(self._slots), self._of_prompt
        copied._ids, copied._counts = self._ids.copy(), self._counts.copy()
        return copied


def penalise(logits_v: Floats, counts: TokenCounts, sampling: Sampling) -> None:
    """Apply the three penalties to `logits_v`, in place: repetition first, as vLLM does.

    Sources: Keskar et al. 2019, section 4.1; OpenAI, API reference, "frequency and presence penalties".
    """
    touched = logits_v[counts.ids].astype(np.float64)
    touched = np.where(touched > 0, touched / sampling.repetition_penalty, touched * sampling.repetition_penalty)
    touched -= sampling.frequency_penalty * counts.counts
    touched -= sampling.presence_penalty * (counts.counts > 0)
    logits_v[counts.ids] = touched


def banned_endings(bad_words: Sequence[Sequence[int]], answer: Sequence[int]) -> Iterator[int]:
    """The tokens that would complete one of `bad_words` at the end of `answer`."""
    for word in bad_words:
        *before, last = word
        if list(answer[len(answer) - len(before) :]) == before:
            yield last
