"""Conversations that need no passage: calculations with the tool, and small talk.

A calculation is put in words or in signs, the model writes the expression as a tool call, and answers with the result
that the tool gave; the result is always computed by the tool itself.
"""

from dataclasses import dataclass
from random import Random

FAREWELL = "Goodbye!"  # nothing follows it in a conversation


@dataclass(frozen=True)
class Calculation:
    """A question in words and the expression that answers it."""

    text: str
    expression: str


def draw_calculation(draw: Random) -> Calculation:
    """A calculation with numbers that are mostly small, as people's are."""
    wordings, expression = draw.choice(_CALCULATIONS)
    a, b, c = (_draw_number(draw) for _ in range(3))
    if expression.startswith(("{a} -", "{a} /", "{a} %")) and b > a:
        a, b = b, a
    numbers = {"a": a, "b": b, "c": c, "n": draw.randint(2, 5), "p": draw.choice((5, 10, 15, 20, 25, 30, 50, 75))}
    return Calculation(draw.choice(wordings).format(**numbers), expression.format(**numbers))


def small_talk(knows_python: bool) -> list[tuple[str, str]]:
    """All exchanges of greeting, identity and thanks: (what the user says, the reply)."""
    abilities = _PYTHON_ABILITIES if knows_python else _TEXT_ABILITIES
    return [(said, reply.format(abilities=abilities)) for sayings, reply in _SMALL_TALK for said in sayings]


def _draw_number(draw: Random) -> int:
    return draw.randint(1, 10 ** draw.choice((1, 2, 2, 2, 3, 3, 4)) - 1)


_CALCULATIONS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (
            "What is {a} + {b}?",
            "How much is {a} plus {b}?",
            "Add {a} and {b}.",
            "Compute {a} + {b}.",
            "What is the sum of {a} and {b}?",
            "I have {a} apples and get {b} more. How many apples do I have?",
        ),
        "{a} + {b}",
    ),
    (
        (
            "What is {a} - {b}?",
            "How much is {a} minus {b}?",
            "Subtract {b} from {a}.",
            "What is the difference between {a} and {b}?",
            "There were {a} files and {b} were deleted. How many are left?",
        ),
        "{a} - {b}",
    ),
    (
        (
            "What is {a} * {b}?",
            "How much is {a} times {b}?",
            "Multiply {a} by {b}.",
            "What is the product of {a} and {b}?",
            "A book costs {a} dollars. How much do {b} books cost?",
            "One page holds {a} lines. How many lines do {b} pages hold?",
        ),
        "{a} * {b}",
    ),
    (
        (
            "What is {a} / {b}?",
            "How much is {a} divided by {b}?",
            "Divide {a} by {b}.",
        ),
        "{a} / {b}",
    ),
    (
        (
            "What is the remainder of {a} divided by {b}?",
            "What is {a} modulo {b}?",
            "What does {a} % {b} give?",
        ),
        "{a} % {b}",
    ),
    (("What is {a} to the power of {n}?", "What does {a} ** {n} give?", "Raise {a} to the power {n}."), "{a} ** {n}"),
    (("What is {a} squared?", "What is the square of {a}?"), "{a} ** 2"),
    (("What is {p}% of {a}?", "How much is {p} percent of {a}?"), "{a} * {p} / 100"),
    (("What is ({a} + {b}) * {c}?", "Compute ({a} + {b}) * {c}."), "({a} + {b}) * {c}"),
    (("What is {a} * {b} + {c}?", "Compute {a} * {b} + {c}.", "Multiply {a} by {b} and add {c}."), "{a} * {b} + {c}"),
    (("What is {a} * {b} - {c}?", "Compute {a} * {b} - {c}."), "{a} * {b} - {c}"),
)

_PYTHON_ABILITIES = "I answer questions about Python, quote documents that I am given, and calculate."
_TEXT_ABILITIES = "I quote documents that I am given, continue texts, and calculate."
_SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (
            "Hello!",
            "Hi!",
            "Hello",
            "Hi",
            "Hey",
            "Hi there!",
            "Hello there!",
            "Good morning!",
            "Good evening!",
            "Hey you!",
        ),
        "Hello! {abilities} What would you like to know?",
    ),
    (
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Are you a person?",
            "Are you human?",
            "Are you a robot?",
        ),
        "I am a small language model, trained from raw text up with groundup.",
    ),
    (
        ("Who made you?", "Who trained you?", "How were you made?", "Where do you come from?", "How were you trained?"),
        "I was trained from raw text up with groundup, on an ordinary computer.",
    ),
    (
        ("What can you do?", "What do you do?", "Can you help me?", "Help", "Help me, please.", "How can you help me?"),
        "{abilities} I am small, so check what I say.",
    ),
    (
        (
            "Thanks!",
            "Thank you!",
            "Thank you.",
            "Thanks a lot!",
            "Great, thanks.",
            "Thank you very much!",
            "Perfect, thanks!",
        ),
        "You are welcome.",
    ),
    (("Bye!", "Goodbye!", "Good night!", "See you!", "Bye", "See you later!"), FAREWELL),
    (
        ("How are you?", "How are you doing?", "How is it going?", "Are you well?"),
        "I am a program, so I am always the same. What would you like to know?",
    ),
)
