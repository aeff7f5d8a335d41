"""Whether an answer is right: pure functions of (prediction, reference).

Exact match and token F1 compare after the normalisation of SQuAD's evaluation script (Rajpurkar et al. 2016): lower
case, ASCII punctuation removed, the articles a, an and the removed, runs of white space made one space. Punctuation
inside names goes too: `json.dumps` and `jsondumps` are equal, and so are `f(a, *, b)` and `f(a, b)`.
"""

import re
import string
from collections import Counter
from decimal import Decimal

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?", re.IGNORECASE)
_REFUSAL = "i dont know"


def normalise(text: str) -> str:
    """SQuAD's normalisation."""
    words = re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split()
    return " ".join(words)


def is_exact_match(prediction: str, reference: str) -> bool:
    """Whether both are equal once normalised."""
    return normalise(prediction) == normalise(reference)


def token_f1(prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the normalised words, each counted as often as it occurs.

    If either side has no word left, 1 where both have none and 0 otherwise.
    """
    predicted, expected = normalise(prediction).split(), normalise(reference).split()
    if not predicted or not expected:
        return float(predicted == expected)
    shared = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * shared / (len(predicted) + len(expected))


def is_refusal(prediction: str) -> bool:
    """Whether the answer begins with "I don't know"."""
    return normalise(prediction).startswith(_REFUSAL)


def is_same_number(prediction: str, reference: str) -> bool:
    """Whether the last number of the answer is the reference: `2 + 2 is 4.` for `4`."""
    numbers = _NUMBER.findall(prediction)
    return bool(numbers) and Decimal(numbers[-1].replace(",", "")) == Decimal(reference)
