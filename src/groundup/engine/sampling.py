"""What a request may ask of the choice of its tokens. `choose.py` has what happens with it, in which order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from groundup.engine.ranges import COUNT, NATURAL, Range


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens. The defaults take the likeliest token each time.

    max_tokens, min_tokens: of the answer; before `min_tokens` none of `stop_token_ids` is chosen, unless a constraint
        leaves nothing else.
    temperature: 0 takes the likeliest token, of equally likely ones that of the lowest id; otherwise logits are divided
        by it.
    top_k: draw from the k likeliest tokens only; 0 for all.
    top_p: draw from the fewest likeliest tokens that have this probability together (Holtzman et al. 2020).
    min_p: draw from tokens that have at least this share of the likeliest one's probability (Nguyen et al. 2024).
    typical_p: draw from the fewest tokens with this probability together whose surprise is nearest to what is expected
        (Meister et al. 2023).
    repetition_penalty: logits of tokens in the prompt or in the answer so far are divided by it where positive and
        multiplied by it where negative (CTRL, Keskar et al. 2019; over both texts, as vLLM and transformers do).
    frequency_penalty, presence_penalty: taken off the logit of a token for each time it is in the answer so far, and
        once if it is there at all (OpenAI's definition; the prompt does not count, as in vLLM).
    logit_bias: what is added to the logits of these token ids, before any penalty.
    bad_words: token sequences of which the last token is not chosen where the answer ends with those before it.
    stop_token_ids: tokens that end the answer.
    stop: texts that end the answer; `stops.py` finds them.
    n: answers to a prompt. They draw different numbers: the i-th those of `fork(i)` of the chooser.
    best_of: answers to make, of which the `n` with the highest mean log-probability of a token are given, the best
        first (as OpenAI's; the token that ends an answer counts); None for n.
    beams: above 1, beam search of that width instead of draws, of which the `n` best are given; `beams.py`. Bias and
        penalties count as if they were part of a token's log-probability.
    length_penalty: exponent of the length by which a beam's log-probability is divided.
    mirostat_tau: above 0, the surprise in bits that the answer should have on average, instead of other filters
        (Basu et al. 2021, in the second version, as llama.cpp calls it). mirostat_eta: how fast it is approached.
    seed: the same seed, prompt and settings give the same tokens, whatever else is in the batch, where rounding does
        not depend on it: for quantized models in the kernels, and in float32 for all that shows.
    logprobs: of how many of the likeliest tokens the log-probabilities are told.

    Raises ValueError for a value out of range and for values that exclude each other.
    """

    max_tokens: int = 256
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    bad_words: Sequence[Sequence[int]] = ()
    stop_token_ids: Sequence[int] = ()
    stop: Sequence[str] = ()
    n: int = 1
    best_of: int | None = None
    beams: int = 1
    length_penalty: float = 1.0
    mirostat_tau: float = 0.0
    mirostat_eta: float = 0.1
    seed: int = 0
    logprobs: int = 0

    def __post_init__(self) -> None:
        for name, accepted in _RANGES.items():
            accepted.require(f"`{name}`", getattr(self, name))
        if self.best_of is not None:
            COUNT.require("`best_of`", self.best_of)
        self._check_token_ids()
        if not _is_list(self.stop) or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"`stop` must be a list of texts that are not empty, not {self.stop!r}")
        self._check_together()

    @property
    def has_filters(self) -> bool:
        """Whether there is any filter of the tokens to draw from."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0 or self.typical_p < 1

    @property
    def penalises(self) -> bool:
        """Whether what was said before has an influence on logits."""
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0

    @property
    def written(self) -> int:
        """Answers to a prompt that are written, of which `n` are given."""
        return self.n if self.best_of is None else self.best_of

    def require_vocabulary(self, vocab_size: int) -> None:
        """Raises ValueError where a token id is none of `vocab_size` tokens."""
        named = {
            "logit_bias": self.logit_bias,
            "stop_token_ids": self.stop_token_ids,
            "bad_words": [token for word in self.bad_words for token in word],
        }
        for name, ids in named.items():
            for token in ids:
                if token >= vocab_size:
                    raise ValueError(f"`{name}` has the token id {token}, but the vocabulary ends at {vocab_size - 1}")

    def _check_token_ids(self) -> None:
        if not isinstance(self.logit_bias, Mapping):
            raise ValueError(f"`logit_bias` must map token ids to numbers, not {self.logit_bias!r}")
        for token, bias in self.logit_bias.items():
            _TOKEN_ID.require("a token id in `logit_bias`", token)
            _BIAS.require(f"`logit_bias` of token {token}", bias)
        if not _is_list(self.stop_token_ids):
            raise ValueError(f"`stop_token_ids` must be a list of token ids, not {self.stop_token_ids!r}")
        for token in self.stop_token_ids:
            _TOKEN_ID.require("a token id in `stop_token_ids`", token)
        if not _is_list(self.bad_words) or not all(_is_list(word) and len(word) > 0 for word in self.bad_words):
            raise ValueError(f"`bad_words` must be a list of lists of token ids, none empty, not {self.bad_words!r}")
        for word in self.bad_words:
            for token in word:
                _TOKEN_ID.require("a token id in `bad_words`", token)

    def _check_together(self) -> None:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"`min_tokens` must be at most `max_tokens` ({self.max_tokens}), not {self.min_tokens}")
        if self.best_of is not None and self.best_of < self.n:
            raise ValueError(f"`best_of` must be at least `n` ({self.n}), not {self.best_of}")
        if self.beams > 1:
            self._check_beams()
        elif self.temperature == 0 and max(self.n, self.best_of or 1) > 1:
            name = "n" if self.n > 1 else "best_of"
            raise ValueError(f"`{name}` above 1 needs `temperature` above 0 or `beams`: else all answers are one")
        if self.mirostat_tau > 0:
            if self.temperature == 0:
                raise ValueError("`mirostat_tau` needs `temperature` above 0: without draws there is nothing to steer")
            if self.has_filters:
                raise ValueError(
                    "`mirostat_tau` takes the place of `top_k`, `top_p`, `min_p` and `typical_p`: leave them out"
                )

    def _check_beams(self) -> None:
        if self.temperature != 0:
            raise ValueError(f"`beams` take the likeliest: `temperature` must be 0 with them, not {self.temperature}")
        if self.n > self.beams:
            raise ValueError(f"`n` must be at most `beams` ({self.beams}), not {self.n}")
        if self.best_of is not None:
            raise ValueError("`best_of` is for draws: with `beams` their number decides")


_TOKEN_ID = NATURAL
# Within these, no logit becomes larger than float32 holds, which would leave nothing to choose by.
_BIAS = Range(Real, -1e9, 1e9)
_RANGES = {
    "max_tokens": COUNT,
    "min_tokens": NATURAL,
    "temperature": Range(Real, 0),
    "top_k": NATURAL,
    "top_p": Range(Real, 0, 1, open=True),
    "min_p": Range(Real, 0, 1),
    "typical_p": Range(Real, 0, 1, open=True),
    "repetition_penalty": Range(Real, 1e-3, 1e3),
    "frequency_penalty": Range(Real, -2, 2),
    "presence_penalty": Range(Real, -2, 2),
    "n": COUNT,
    "beams": COUNT,
    "length_penalty": Range(Real, -10, 10),
    "mirostat_tau": Range(Real, 0),
    "mirostat_eta": Range(Real, 0, 1, open=True),
    "seed": Range(Integral, -(2**63), 2**63 - 1),
    "logprobs": NATURAL,
}


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
