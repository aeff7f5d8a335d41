"""Marks against SQuAD's own rules, worked out by hand."""

import pytest

from groundup.evaluate.answers import is_exact_match, is_refusal, is_same_number, normalise, token_f1


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The  Quick, brown\nfox!", "quick brown fox"),
        ("an apple a day", "apple day"),
        ("another theory", "another theory"),
        ("json.dumps(obj, *, indent=None)", "jsondumpsobj indentnone"),
        ("a-n the", ""),
        ("...", ""),
    ],
)
def test_normalisation_is_squads(text: str, normalised: str) -> None:
    assert normalise(text) == normalised


def test_exact_match_ignores_case_punctuation_and_articles_only() -> None:
    assert is_exact_match("Return the string", "return a string.")
    assert not is_exact_match("Return string now", "Return string")


@pytest.mark.parametrize(
    ("prediction", "reference", "f1"),
    [
        ("return string", "return string", 1),
        ("return", "return string", 2 / 3),
        ("return return", "return string", 1 / 2),
        ("nothing shared", "return string", 0),
        ("one two three four", "two three", 2 * (2 / 4) * 1 / (2 / 4 + 1)),
        ("", "", 1),
        ("...", "word", 0),
    ],
)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(prediction: str, reference: str, f1: float) -> None:
    assert token_f1(prediction, reference) == pytest.approx(f1)
    assert token_f1(reference, prediction) == pytest.approx(f1)


def test_a_refusal_begins_with_the_admission() -> None:
    assert is_refusal("I don't know. The given documents do not say.")
    assert is_refusal("i dont know")
    assert not is_refusal("Return what I don't know.")


@pytest.mark.parametrize(
    ("prediction", "reference", "same"),
    [
        ("The answer is 84.", "84", True),
        ("12 * 7 = 84", "84", True),
        ("The answer is 84.0.", "84", True),
        ("The answer is 1,234.", "1234", True),
        ("The answer is -5.", "-5", True),
        ("The answer is 5.", "-5", False),
        ("The answer is 0.333333333333.", "0.333333333333", True),
        ("1e-9", "1e-9", True),
        ("The answer is 840.", "84", False),
        ("84 is 12 * 7", "84", False),
        ("I cannot tell.", "84", False),
        ("", "0", False),
    ],
)
def test_the_last_number_counts(prediction: str, reference: str, same: bool) -> None:
    assert is_same_number(prediction, reference) == same
