"""Calculations in words mean what their expression says."""

import re
from random import Random

import pytest

from groundup.align.exercises import draw_calculation, small_talk
from groundup.assist.tools import calculate

MEANINGS = [
    (r"(?:sum of|Add|How much is) (\d+) (?:and|plus) (\d+)", lambda a, b: a + b),
    (r"I have (\d+) apples and get (\d+) more", lambda a, b: a + b),
    (r"Subtract (\d+) from (\d+)", lambda a, b: b - a),
    (r"difference between (\d+) and (\d+)", lambda a, b: a - b),
    (r"There were (\d+) files and (\d+) were deleted", lambda a, b: a - b),
    (r"(?:product of|Multiply|How much is) (\d+) (?:and|by|times) (\d+)[.?]", lambda a, b: a * b),
    (r"A book costs (\d+) dollars. How much do (\d+)", lambda a, b: a * b),
    (r"remainder of (\d+) divided by (\d+)", lambda a, b: a % b),
    (r"What is (\d+) squared", lambda a: a * a),
    (r"(\d+) to the power of (\d+)", lambda a, b: a**b),
    (r"Multiply (\d+) by (\d+) and add (\d+)", lambda a, b, c: a * b + c),
]


@pytest.mark.parametrize(("pattern", "meaning"), MEANINGS)
def test_an_expression_means_what_its_question_says(pattern, meaning) -> None:  # type: ignore[no-untyped-def]
    found = 0
    for seed in range(4000):
        calculation = draw_calculation(Random(seed))
        if match := re.search(pattern, calculation.text):
            assert calculate(calculation.expression) == str(meaning(*map(int, match.groups())))
            found += 1
    assert found > 3


def test_percent_is_of_the_number() -> None:
    drawn = [draw_calculation(Random(seed)) for seed in range(2000)]
    percents = [(re.findall(r"\d+", one.text), one) for one in drawn if "%" in one.text and " of " in one.text]
    assert len(percents) > 20
    for (part, whole), calculation in percents:
        assert float(calculate(calculation.expression)) == pytest.approx(int(part) / 100 * int(whole))


def test_expressions_in_signs_are_copied_from_the_question_and_all_have_values() -> None:
    for seed in range(2000):
        calculation = draw_calculation(Random(seed))
        assert not calculate(calculation.expression).startswith("error")
        if calculation.text.startswith("Compute"):
            assert calculation.text == f"Compute {calculation.expression}."


def test_small_talk_speaks_of_what_the_model_knows() -> None:
    assert any("Python" in reply for _, reply in small_talk(knows_python=True))
    assert not any("Python" in reply or "{" in reply for _, reply in small_talk(knows_python=False))
    said = [said for said, _ in small_talk(knows_python=True)]
    assert len(said) == len(set(said))
