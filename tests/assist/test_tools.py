"""The calculator against Python's own exact arithmetic, and against what a model may throw at it."""

import random
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.assist.tools import TOOLS, calculate


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("12 * 7", "84"),
        ("2 + 3 * 4", "14"),
        ("(2 + 3) * 4", "20"),
        ("10 - 3 - 2", "5"),
        ("100 / 10 / 2", "5"),
        ("2 ** 3 ** 2", "512"),
        ("-2 ** 2", "-4"),
        ("2 ** -1", "0.5"),
        ("2 - -3", "5"),
        ("2^10", "1024"),
        ("7 // 2", "3"),
        ("-7 // 2", "-4"),
        ("-7 % 3", "2"),
        ("3 × 4 ÷ 2", "6"),
        (".5 + 1.", "1.5"),
        ("1.5e3", "1500"),
        ("2 ** 0.5", "1.41421356237"),
    ],
)
def test_reads_arithmetic_as_python_and_people_do(expression: str, value: str) -> None:
    assert calculate(expression) == value


def test_decimals_are_exact_and_only_the_printing_is_rounded() -> None:
    assert calculate("0.1 + 0.2") == "0.3"
    assert calculate("1 / 3") == "0.333333333333"
    assert calculate("2 / 3") == "0.666666666667"
    assert calculate("1 / 3 * 3") == "1"
    assert calculate("12345678901234567 / 2") == "6172839450617283.5"
    assert calculate("1 / 1024") == "0.0009765625"
    assert calculate("1 / 10 ** 9") == "1e-9"


def test_integers_have_all_their_digits() -> None:
    assert calculate("2 ** 200") == str(2**200)
    assert calculate("123456789 * 987654321 - 1") == str(123456789 * 987654321 - 1)


def test_random_expressions_equal_exact_fractions() -> None:
    """Parenthesised and bare operators, evaluated by Python over Fraction."""
    draw = random.Random(0)
    for _ in range(500):
        words = [str(draw.randint(1, 99))]
        for _ in range(draw.randint(1, 5)):
            words += [draw.choice(["+", "-", "*", "/", "//", "%"]), str(draw.randint(1, 99))]
        if len(words) >= 7:
            words[2], words[4] = f"({words[2]}", f"{words[4]})"
        expression = " ".join(words)
        try:
            exact = Fraction(eval(re.sub(r"\d+", r"Fraction(\g<0>)", expression)))
        except ZeroDivisionError:
            assert calculate(expression) == "error: division by zero"
            continue
        result = calculate(expression)
        if exact.denominator == 1:
            assert result == str(exact.numerator)
        else:
            assert abs(Fraction(result) - exact) <= abs(exact) * Fraction(1, 10**11)


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("1 / 0", "division by zero"),
        ("5 % 0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("1 +", "ends too early"),
        ("(1 + 2", "not closed"),
        ("1 + 2)", "unexpected `)`"),
        ("* 3", "unexpected `*`"),
        ("2 3", "unexpected `3`"),
        ("(-8) ** 0.5", "negative number"),
        ("9 ** 9 ** 9", "too large"),
        ("9999999999 ** 200", "too large"),
        ("2 ** 0.5 ** -999", "too large"),
        ("1e999", "too large"),
        ("1" + "0" * 300, "longer than"),
        ("__import__('os').system('true')", "cannot read"),
        ("x + 1", "cannot read"),
        ("'a' * 3", "cannot read"),
        ("(" * 60 + "1" + ")" * 60, "nested more than"),
        ("-" * 100 + "1", "nested more than"),
        ("1e99999999", "cannot read"),
    ],
)
def test_a_bad_call_is_a_result_the_model_can_read(expression: str, why: str) -> None:
    result = calculate(expression)
    assert result.startswith("error: ")
    assert why in result


@given(st.text(alphabet="0123456789.+-*/%^()e ", max_size=60) | st.text(max_size=30))
def test_no_text_whatever_raises(expression: str) -> None:
    assert calculate(expression)


def test_the_registry_calls_the_calculator() -> None:
    assert TOOLS["calculator"].call("6 * 7") == "42"
    assert all(name == tool.name and tool.description for name, tool in TOOLS.items())
