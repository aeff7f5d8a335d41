"""Settings of sampling: each is refused out of its range, in a sentence that names it."""

import math
from dataclasses import FrozenInstanceError
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from groundup.engine.sampling import Sampling

WITHIN_A_BILLION = "must be a number of at least -1000000000.0 and at most 1000000000.0"

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 0}, "`max_tokens` must be an integer of at least 1, not 0"),
    ({"max_tokens": 2.5}, "`max_tokens` must be an integer of at least 1, not 2.5"),
    ({"max_tokens": True}, "`max_tokens` must be an integer of at least 1, not True"),
    ({"min_tokens": -1}, "`min_tokens` must be an integer of at least 0, not -1"),
    ({"temperature": -0.1}, "`temperature` must be a number of at least 0, not -0.1"),
    ({"temperature": math.nan}, "`temperature` must be a number of at least 0, not nan"),
    ({"temperature": math.inf}, "`temperature` must be a number of at least 0, not inf"),
    ({"temperature": "hot"}, "`temperature` must be a number of at least 0, not 'hot'"),
    ({"temperature": 10**400}, f"`temperature` must be a number of at least 0, not {10**400}"),
    ({"top_k": -1}, "`top_k` must be an integer of at least 0, not -1"),
    ({"top_p": 0.0}, "`top_p` must be a number above 0 and at most 1, not 0.0"),
    ({"top_p": 1.1}, "`top_p` must be a number above 0 and at most 1, not 1.1"),
    ({"min_p": -0.1}, "`min_p` must be a number of at least 0 and at most 1, not -0.1"),
    ({"typical_p": 0}, "`typical_p` must be a number above 0 and at most 1, not 0"),
    ({"repetition_penalty": 0}, "`repetition_penalty` must be a number of at least 0.001 and at most 1000.0, not 0"),
    ({"frequency_penalty": 2.1}, "`frequency_penalty` must be a number of at least -2 and at most 2, not 2.1"),
    ({"presence_penalty": -3}, "`presence_penalty` must be a number of at least -2 and at most 2, not -3"),
    ({"logit_bias": [1]}, "`logit_bias` must map token ids to numbers, not [1]"),
    ({"logit_bias": {-1: 1.0}}, "a token id in `logit_bias` must be an integer of at least 0, not -1"),
    ({"logit_bias": {"7": 1.0}}, "a token id in `logit_bias` must be an integer of at least 0, not '7'"),
    ({"logit_bias": {7: -math.inf}}, f"`logit_bias` of token 7 {WITHIN_A_BILLION}, not -inf"),
    ({"logit_bias": {7: 1e39}}, f"`logit_bias` of token 7 {WITHIN_A_BILLION}, not 1e+39"),
    ({"logit_bias": {7: Fraction(1, 3)}}, f"`logit_bias` of token 7 {WITHIN_A_BILLION}, not Fraction(1, 3)"),
    ({"bad_words": [3]}, "`bad_words` must be a list of lists of token ids, none empty, not [3]"),
    ({"bad_words": [[]]}, "`bad_words` must be a list of lists of token ids, none empty, not [[]]"),
    ({"bad_words": "no"}, "`bad_words` must be a list of lists of token ids, none empty, not 'no'"),
    ({"bad_words": [[1, -2]]}, "a token id in `bad_words` must be an integer of at least 0, not -2"),
    ({"stop_token_ids": 7}, "`stop_token_ids` must be a list of token ids, not 7"),
    ({"stop_token_ids": [7.0]}, "a token id in `stop_token_ids` must be an integer of at least 0, not 7.0"),
    ({"stop": "\n"}, "`stop` must be a list of texts that are not empty, not '\\n'"),
    ({"stop": ["a", ""]}, "`stop` must be a list of texts that are not empty, not ['a', '']"),
    ({"stop": [b"a"]}, "`stop` must be a list of texts that are not empty, not [b'a']"),
    ({"n": 0}, "`n` must be an integer of at least 1, not 0"),
    ({"best_of": 0, "temperature": 1.0}, "`best_of` must be an integer of at least 1, not 0"),
    ({"beams": 0}, "`beams` must be an integer of at least 1, not 0"),
    ({"length_penalty": 11}, "`length_penalty` must be a number of at least -10 and at most 10, not 11"),
    ({"mirostat_tau": -1.0}, "`mirostat_tau` must be a number of at least 0, not -1.0"),
    ({"mirostat_eta": 0.0}, "`mirostat_eta` must be a number above 0 and at most 1, not 0.0"),
    ({"seed": 2**63}, f"`seed` must be an integer of at least {-(2**63)} and at most {2**63 - 1}, not {2**63}"),
    ({"seed": None}, f"`seed` must be an integer of at least {-(2**63)} and at most {2**63 - 1}, not None"),
    ({"logprobs": -1}, "`logprobs` must be an integer of at least 0, not -1"),
    ({"max_tokens": 5, "min_tokens": 6}, "`min_tokens` must be at most `max_tokens` (5), not 6"),
    ({"n": 3, "best_of": 2, "temperature": 1.0}, "`best_of` must be at least `n` (3), not 2"),
    ({"n": 2}, "`n` above 1 needs `temperature` above 0 or `beams`: else all answers are one"),
    ({"best_of": 2}, "`best_of` above 1 needs `temperature` above 0 or `beams`: else all answers are one"),
    ({"beams": 2, "temperature": 0.5}, "`beams` take the likeliest: `temperature` must be 0 with them, not 0.5"),
    ({"beams": 2, "n": 3}, "`n` must be at most `beams` (2), not 3"),
    ({"beams": 2, "best_of": 2}, "`best_of` is for draws: with `beams` their number decides"),
    ({"mirostat_tau": 3.0}, "`mirostat_tau` needs `temperature` above 0: without draws there is nothing to steer"),
    (
        {"mirostat_tau": 3.0, "temperature": 1.0, "top_k": 5},
        "`mirostat_tau` takes the place of `top_k`, `top_p`, `min_p` and `typical_p`: leave them out",
    ),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[str(settings) for settings, _ in REFUSED])
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError) as refused:
        Sampling(**settings)
    assert str(refused.value) == message


def test_what_is_in_range_is_taken():
    Sampling(
        max_tokens=np.int64(3),
        min_tokens=3,
        temperature=1,
        top_k=0,
        top_p=1,
        min_p=1,
        typical_p=1.0,
        repetition_penalty=0.5,
        frequency_penalty=-2,
        presence_penalty=2,
        logit_bias={0: -100, 9: 100.0},
        bad_words=[[1], (2, 3)],
        stop_token_ids=[0],
        stop=["\n", "ü"],
        n=2,
        best_of=2,
        seed=-(2**63),
        logprobs=20,
    )
    Sampling(beams=4, n=4, length_penalty=-1)
    with pytest.raises(FrozenInstanceError):
        Sampling().seed = 3  # type: ignore[misc]
