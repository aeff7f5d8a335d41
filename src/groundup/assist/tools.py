"""What the assistant can do besides speaking: today a calculator.

A tool takes the text of a call and returns the text of a result. Whatever a model writes as a call is untrusted input:
a tool answers a bad call with a result that begins with `error:`, which the model can read, and never raises for it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction

MAX_CHARACTERS = 200
MAX_DEPTH = 40
MAX_BITS = 1024  # of a numerator or a denominator: about 300 digits
SIGNIFICANT_DIGITS = 12

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?(?![\w.])"
_TOKEN = re.compile(rf"\s*(?:({_NUMBER})|(\*\*|//|[-+*/%^()]))", re.ASCII)
_SYNONYMS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"})
# Binding strength of each operator; unary minus stands between `*` and `**`, as in Python and in print: -2**2 is -4.
_STRENGTH = {"+": 1, "-": 1, "*": 2, "/": 2, "//": 2, "%": 2, "**": 4, "^": 4}
_UNARY = 3


@dataclass(frozen=True)
class Tool:
    """A name for the log, a sentence for people and models, and the function from call to result."""

    name: str
    description: str
    call: Callable[[str], str]


def calculate(expression: str) -> str:
    """The value of an arithmetic expression as text, or `error: …`.

    Knows + - * / // % ** (also ^), parentheses and decimal numbers. The arithmetic is exact (rational), so 0.1 + 0.2 is
    0.3 and integers have all their digits; only what is printed is rounded, to 12 significant digits. Powers with a
    fractional exponent alone go through floating point.
    """
    try:
        return _format(_Parser(expression).parse())
    except _CalculationError as error:
        return f"error: {error}"


TOOLS: Mapping[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool("calculator", "Evaluates an arithmetic expression such as `12 * (3 + 4)`.", calculate),
        # Later issues add search, memory and sandboxed code here.
    )
}


class _CalculationError(Exception):
    """Why an expression has no value; becomes the text of the result."""


class _Parser:
    """Precedence climbing over the tokens of one expression: each method consumes what it understands."""

    def __init__(self, expression: str) -> None:
        self.tokens = _split(expression)
        self.position = 0
        self.depth = 0

    def parse(self) -> Fraction:
        value = self.expression(0)
        if self.peek():
            raise _CalculationError(f"unexpected `{self.peek()}`")
        return value

    def expression(self, weakest: int) -> Fraction:
        """An operand and all that follows it by operators that bind more strongly than `weakest`."""
        value = self.operand()
        while _STRENGTH.get(self.peek(), 0) > weakest:
            operator = self.take()
            strength = _STRENGTH[operator]
            is_power = operator in ("**", "^")
            right = self.expression(strength - 1 if is_power else strength)  # a power groups from the right
            value = _apply(operator, value, right)
        return value

    def operand(self) -> Fraction:
        """A number, one with a sign, or an expression in parentheses. Raises `_CalculationError` where none stands."""
        token = self.take()
        if token in ("-", "+"):
            value = self.nested(_UNARY)
            return -value if token == "-" else value
        if token == "(":
            value = self.nested(0)
            if self.take() != ")":
                raise _CalculationError("a parenthesis is not closed")
            return value
        if not token:
            raise _CalculationError("the expression ends too early")
        if token in _STRENGTH or token == ")":
            raise _CalculationError(f"unexpected `{token}`")
        return _bounded(Fraction(token))

    def nested(self, weakest: int) -> Fraction:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _CalculationError(f"nested more than {MAX_DEPTH} deep")
        value = self.expression(weakest)
        self.depth -= 1
        return value

    def peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.position += 1
        return token


def _split(expression: str) -> list[str]:
    if len(expression) > MAX_CHARACTERS:
        raise _CalculationError(f"longer than {MAX_CHARACTERS} characters")
    text = expression.translate(_SYNONYMS).strip()
    if not text:
        raise _CalculationError("the expression is empty")
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _CalculationError(
                f"cannot read `{text[position:].strip()[:20]}`; only numbers and + - * / // % ** ( )"
            )
        tokens.append(match[1] or match[2])
        position = match.end()
    return tokens


def _apply(operator: str, left: Fraction, right: Fraction) -> Fraction:
    if operator in ("/", "//", "%") and right == 0:
        raise _CalculationError("division by zero")
    match operator:
        case "+":
            value = left + right
        case "-":
            value = left - right
        case "*":
            value = left * right
        case "/":
            value = left / right
        case "//":
            value = Fraction(left // right)
        case "%":
            value = left % right
        case _:
            value = _power(left, right)
    return _bounded(value)


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if base == 0 and exponent < 0:
        raise _CalculationError("division by zero")
    if exponent.denominator == 1:
        # The size is judged before the power is computed: 9 ** 9 ** 9 would fill the memory first.
        if base not in (-1, 0, 1) and abs(exponent) * (_bits(base) - 1) > MAX_BITS:
            raise _CalculationError("the number is too large")
        return base**exponent.numerator
    if base < 0:
        raise _CalculationError("a negative number has no real fractional power")
    try:
        return Fraction(float(base) ** float(exponent))
    except OverflowError:
        raise _CalculationError("the number is too large") from None


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _bounded(value: Fraction) -> Fraction:
    if _bits(value) > MAX_BITS:
        raise _CalculationError("the number is too large")
    return value


def _format(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    # The part before the point is never rounded away, however long it is.
    whole_digits = len(str(abs(int(value))))
    context = Context(prec=max(SIGNIFICANT_DIGITS, whole_digits + 2))
    rounded = context.divide(Decimal(value.numerator), Decimal(value.denominator)).normalize(context)
    return f"{rounded:f}" if rounded.adjusted() >= -6 else str(rounded).lower()
