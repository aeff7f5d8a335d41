"""The next token of one sequence, from its logits.

What happens to the logits, in this order, which is that of transformers:

1. `logit_bias` is added, then the penalties of repetition, frequency and presence are applied;
2. banned are the last tokens of `bad_words`, `stop_token_ids` before `min_tokens`, and what a constraint forbids;
3. at `temperature` 0 the largest is taken; otherwise logits are divided by it;
4. `top_k`, `top_p`, `min_p` and `typical_p` each leave out some, reading the probabilities of what the one before has
   left; or `mirostat_tau` does;
5. a token is drawn by the number that belongs to the seed and to the token's place in the sequence (`draws.py`).

The log-probabilities that are told are those of the model: of the logits before any of this, as the trainer computes
them. Where nothing but the settings of a `Draw` is asked for, the kernels do all of it, with rows of other texts; they
and what is here compute in float32, in which a token near the border between two may be either.

Shape suffixes: v vocabulary, n candidates.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeGuard

import numpy as np
import numpy.typing as npt
import torch

from groundup.engine import filters
from groundup.engine.candidates import Candidates, divided
from groundup.engine.constrain import Constraint
from groundup.engine.draws import LIKELIEST, Draw, uniform
from groundup.engine.filters import Floats
from groundup.engine.mirostat import Mirostat
from groundup.engine.penalties import Integers, TokenCounts, banned_endings, penalise
from groundup.engine.rows import Logits, Row, RowReader
from groundup.engine.sampling import Sampling


class Choice(NamedTuple):
    """A token, its log-probability, and the likeliest tokens with theirs, likeliest first; nats."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


class Distribution(NamedTuple):
    """What a token is drawn from: ids (n,) in ascending order, and their probabilities (n,) float64."""

    ids: Integers
    probabilities: npt.NDArray[np.float64]

    def dense(self, vocab_size: int) -> npt.NDArray[np.float64]:
        """(vocab,), 0 for what is left out."""
        probabilities_v = np.zeros(vocab_size)
        probabilities_v[self.ids] = self.probabilities
        return probabilities_v


def make_chooser(sampling: Sampling, prompt_ids: Sequence[int], constraint: Constraint | None = None) -> "Chooser":
    """A chooser for the answer to `prompt_ids`. The constraint is forked: the caller can use it again."""
    return Chooser(
        sampling,
        answer=[],
        first_place=len(prompt_ids),
        counts=TokenCounts(prompt_ids) if sampling.penalises else None,
        mirostat=Mirostat(sampling.mirostat_tau, sampling.mirostat_eta) if sampling.mirostat_tau > 0 else None,
        constraint=None if constraint is None else constraint.fork(),
    )


class Chooser:
    """Chooses the tokens of one answer, one after the other. Made by `make_chooser`.

    answer: the tokens so far, a stop token included.
    end_ids: stop tokens, and those that end what the constraint asks for.
    """

    def __init__(
        self,
        sampling: Sampling,
        *,
        answer: list[int],
        first_place: int,
        counts: TokenCounts | None,
        mirostat: Mirostat | None,
        constraint: Constraint | None,
        stream: int = 0,
    ) -> None:
        self.sampling = sampling
        self.answer = answer
        self._first_place = first_place
        self._stream = stream
        self._counts = counts
        self._mirostat = mirostat
        self._constraint = constraint
        self._bias_ids = np.array(list(sampling.logit_bias), dtype=np.int64)
        self._bias = np.array(list(sampling.logit_bias.values()))
        self._candidates = Candidates(sampling, mirostat)
        self._vocab_size: int | None = None
        self.end_ids = frozenset(sampling.stop_token_ids) | frozenset(() if constraint is None else constraint.end_ids)
        # Until so many tokens are there, stop tokens are banned.
        self._first_end = sampling.min_tokens if sampling.stop_token_ids else 0
        self._is_banning = len(sampling.bad_words) > 0 or constraint is not None
        self._is_changing = self._is_banning or counts is not None or len(self._bias_ids) > 0
        # Whether a `Draw` says how to choose from the logits that are left.
        self._is_drawable = sampling.typical_p == 1 and mirostat is None

    @property
    def has_ended(self) -> bool:
        """Whether the last token is one of `end_ids`."""
        return len(self.answer) > 0 and self.answer[-1] in self.end_ids

    def choose(self, logits: Logits) -> Choice:
        """The next token; the answer then has it.

        logits: (vocab,), any float type. Raises ValueError for logits that are no numbers, where bans and constraint
        together leave no token, and for a token id in the settings that the vocabulary does not have.
        """
        if self._is_settled_by(logits):
            self.answer.append(logits.token)
            if self.sampling.logprobs:
                return self._choice(logits.token, *self._read(logits))
            return Choice(logits.token, logits.logprob, [])
        values_v, normaliser = self._read(logits)
        adjusted_v = self._adjusted(values_v)
        token = self._chosen(adjusted_v)
        self._append(token, adjusted_v)
        return self._choice(token, values_v, normaliser)

    def take(self, logits: Logits, token: int) -> Choice:
        """The same with a token that was chosen elsewhere. Raises ValueError where it is banned, besides."""
        values_v, normaliser = self._read(logits)
        if not 0 <= token < len(values_v):
            raise ValueError(f"token id {token} is outside the vocabulary of {len(values_v)}")
        adjusted_v = self._adjusted(values_v)
        if adjusted_v[token] == -np.inf:
            raise ValueError(f"token id {token} cannot follow here: it is banned")
        self._append(token, adjusted_v)
        return self._choice(token, values_v, normaliser)

    def scores(self, logits: Logits) -> Floats:
        """What beam search adds up, (vocab,): log-probabilities with bias and penalties, -inf for what is banned."""
        values_v, normaliser = self._read(logits)
        return self._changed(values_v)[0] - normaliser

    def distribution(self, logits: Logits) -> Distribution:
        """What `choose` would draw from; the answer stays as it is."""
        adjusted_v = self._adjusted(self._read(logits)[0])
        if self.sampling.temperature == 0:
            return Distribution(np.array([adjusted_v.argmax()]), np.ones(1))
        ids_n, logits_n = self._candidates.of(adjusted_v)
        probabilities_n = filters.probabilities(logits_n)
        drawn = np.flatnonzero(probabilities_n)
        return Distribution(drawn if ids_n is None else ids_n[drawn], probabilities_n[drawn])

    def number(self, ahead: int = 0) -> float:
        """The number from [0, 1) that decides about the token after the next `ahead`."""
        return uniform(self.sampling.seed, self._first_place + len(self.answer) + ahead, self._stream)

    def draw(self, ahead: int = 0) -> Draw | None:
        """How the token after the next `ahead` is chosen, if that depends on nothing but the logits as they are."""
        if self._is_changing or len(self.answer) + ahead < self._first_end or not self._is_drawable:
            return None
        return self._own_draw(ahead)

    def _own_draw(self, ahead: int = 0) -> Draw:
        sampling = self.sampling
        if sampling.temperature == 0:
            return LIKELIEST
        return Draw(sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, self.number(ahead))

    def undo(self, count: int) -> None:
        """Take back the last `count` tokens. Raises ValueError where there are not as many."""
        if not 0 <= count <= len(self.answer):
            raise ValueError(f"an answer of {len(self.answer)} tokens cannot take back {count}")
        for _ in range(count):
            token = self.answer.pop()
            if self._counts is not None:
                self._counts.remove(token)
        if self._mirostat is not None:
            self._mirostat.undo(count)
        if self._constraint is not None:
            self._constraint.undo(count)

    def fork(self, stream: int | None = None) -> "Chooser":
        """Another chooser that goes on from here; `stream`: whose numbers it draws, this one's by default."""
        return Chooser(
            self.sampling,
            answer=list(self.answer),
            first_place=self._first_place,
            counts=None if self._counts is None else self._counts.copy(),
            mirostat=None if self._mirostat is None else self._mirostat.copy(),
            constraint=None if self._constraint is None else self._constraint.fork(),
            stream=self._stream if stream is None else stream,
        )

    def _is_settled_by(self, logits: Logits) -> TypeGuard[Row]:
        """Whether the row has the token that is wanted. Raises ValueError as `_require_vocabulary` does."""
        if not isinstance(logits, Row) or not math.isfinite(logits.normaliser) or logits.draw != self.draw():
            return False
        if self._vocab_size is None:
            self._require_vocabulary(logits.logits_nv.shape[1])
        return True

    def _require_vocabulary(self, vocab_size: int) -> None:
        """Raises ValueError where the settings are for another vocabulary; looked at once."""
        if self._vocab_size != vocab_size:
            self.sampling.require_vocabulary(vocab_size)
            if self._counts is not None:
                self._counts.require_vocabulary(vocab_size)
            self._vocab_size = vocab_size

    def _read(self, logits: Logits) -> tuple[Floats, float]:
        """The logits as an array, which is not to be written to, and their normaliser.

        Raises ValueError where no token can be chosen, and where the settings are for another vocabulary.
        """
        logits_v = logits.logits_v if isinstance(logits, Row) else logits
        if logits_v.ndim != 1:
            raise ValueError(f"a token is chosen from logits of shape (vocab,), not {tuple(logits_v.shape)}")
        self._require_vocabulary(len(logits_v))
        values_v: Floats = logits_v.detach().to("cpu", torch.promote_types(logits_v.dtype, torch.float32)).numpy()
        if isinstance(logits, Row) and math.isfinite(logits.normaliser):
            return values_v, logits.normaliser
        return values_v, filters.log_normaliser(values_v)

    def _adjusted(self, logits_v: Floats) -> Floats:
        """The logits with bias, penalties and bans; -inf for what is banned. Raises ValueError if nothing is left."""
        adjusted_v, is_banning = self._changed(logits_v)
        if is_banning and adjusted_v.max() == -np.inf:
            raise ValueError("`bad_words`, `min_tokens` and the constraint leave no token: change one of them")
        return adjusted_v

    def _changed(self, logits_v: Floats) -> tuple[Floats, bool]:
        """The same, and whether there are bans; the logits themselves where nothing changes them."""
        is_early = len(self.answer) < self._first_end
        if not is_early and not self._is_changing:
            return logits_v, False
        is_banning = is_early or self._is_banning
        changed_v = logits_v.copy()
        changed_v[self._bias_ids] += self._bias
        if self._counts is not None:
            penalise(changed_v, self._counts, self.sampling)
        if is_banning:
            self._ban(changed_v, is_early)
        return changed_v, is_banning

    def _ban(self, logits_v: Floats, is_early: bool) -> None:
        """Write -inf over what must not follow."""
        constraint = self._constraint
        for token in banned_endings(self.sampling.bad_words, self.answer):
            logits_v[token] = -np.inf
        if constraint is not None:
            constraint.restrict(logits_v)
        if is_early and not (constraint is not None and constraint.must_end):
            logits_v[list(self.sampling.stop_token_ids)] = -np.inf

    def _chosen(self, logits_v: Floats) -> int:
        """The token that is drawn from changed logits, or the likeliest."""
        if self.sampling.temperature == 0:
            return int(logits_v.argmax())
        if self._is_drawable:
            (row,) = RowReader().read(torch.from_numpy(np.ascontiguousarray(logits_v))[None], [self._own_draw()])
            if isinstance(row, Row):
                return row.token
        ids_n, logits_n = self._candidates.of(logits_v)
        drawn = filters.draw(filters.weights(logits_n), self.number())
        return drawn if ids_n is None else int(ids_n[drawn])

    def _append(self, token: int, adjusted_v: Floats) -> None:
        """The answer has one more token. Raises ValueError where the constraint has none to follow."""
        if self._constraint is not None:
            self._constraint.accept(token)
        if self._mirostat is not None:
            logits_v = divided(adjusted_v, self.sampling.temperature)
            self._mirostat.observe(float(filters.surprise_bits(logits_v)[token]))
        if self._counts is not None:
            self._counts.add(token)
        self.answer.append(token)

    def _choice(self, token: int, logits_v: Floats, normaliser: float) -> Choice:
        return choice_of(token, logits_v, normaliser, self.sampling.logprobs)


def choice_of(token: int, logits_v: Floats, normaliser: float, top: int) -> Choice:
    """A token that was chosen, with so many of the likeliest. normaliser: log Σ exp of the logits."""
    likeliest = filters.largest(logits_v, top) if top else ()
    found = [(int(one), float(logits_v[one]) - normaliser) for one in likeliest]
    return Choice(token, float(logits_v[token]) - normaliser, found)
