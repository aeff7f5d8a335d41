"""The keys of a config.json, read one by one: what is not read was not understood.

A config.json is a stranger's: nothing of it reaches the model's arithmetic unchecked.
"""

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

Accepts = Callable[[Any], bool]

_MISSING = object()
# How transformers 5 writes infinity, for which JSON has no word.
INFINITE = {"__float__": "Infinity"}
# Beyond this a float, in which some keys are computed with, is no longer exact.
_LARGEST = 2**53
# Layers are written out one by one before any tensor is looked for.
_MOST_LAYERS = 10_000


class Keys:
    """Typed access to the keys, which remembers what was asked for.

    Every reader takes a key, then older names of it, and a default for a file that has none of them. Raises ValueError,
    naming the key, for a value that is not of the kind asked for, and KeyError for a missing key without a default.
    """

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        self._values = values
        self._prefix = prefix
        self._read: set[str] = set()
        self._without_effect: set[str] = set()
        self._sections: list[Keys] = []

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def holds_number(self, name: str) -> bool:
        """Whether the key is there with a number, where it may also be an object."""
        return isinstance(self._values.get(name), int | float)

    def size(self, *names: str, default: Any = _MISSING) -> int:
        """A positive integer."""
        return int(self._checked(names, default, _is_size, "a positive integer"))

    def count(self, *names: str, default: Any = _MISSING) -> int:
        """An integer from 0 on."""
        return int(self._checked(names, default, _is_count, "an integer from 0 on"))

    def sizes(self, *names: str, default: Any = _MISSING) -> list[int]:
        """A list of positive integers."""
        return list(self._checked(names, default, _list_of(_is_size), "a list of positive integers"))

    def numbers(self, *names: str, default: Any = _MISSING) -> list[int]:
        """A list of integers from 0 on, such as layer numbers."""
        return list(self._checked(names, default, _list_of(_is_count), "a list of layer numbers"))

    def size_or_auto(self, *names: str, auto: int) -> int:
        """A positive integer, or the one given where the key is absent or says `auto`."""
        accepted = "a positive integer or the word auto"
        found = self._checked(names, "auto", lambda one: one == "auto" or _is_size(one), accepted)
        return auto if found == "auto" else int(found)

    def optional_numbers(self, name: str) -> list[int] | None:
        """A list of integers from 0 on, such as layer numbers, or None where it is absent or null."""
        self._read.add(name)
        return None if self._values.get(name) is None else self.numbers(name)

    def optional_size(self, *names: str, default: int | None = None) -> int | None:
        """A positive integer or null."""
        found = self._checked(names, default, _or_null(_is_size), "a positive integer or null")
        return None if found is None else int(found)

    def positive(self, *names: str, default: Any = _MISSING) -> float:
        """A positive, finite number."""
        return float(self._checked(names, default, _is_positive, "a positive number"))

    def optional_positive(self, *names: str, default: float | None = None) -> float | None:
        """A positive, finite number or null."""
        found = self._checked(names, default, _or_null(_is_positive), "a positive number or null")
        return None if found is None else float(found)

    def positives(self, *names: str, default: Any = _MISSING) -> tuple[float, ...]:
        """A list of positive, finite numbers."""
        return tuple(map(float, self._checked(names, default, _list_of(_is_positive), "a list of positive numbers")))

    def limits(self, *names: str) -> tuple[float, float]:
        """Two numbers from 0 on, the lower first; from 0 to infinity where the key is absent."""
        found = self._checked(names, [0.0, INFINITE], _is_limits, "a lower and an upper limit from 0 on")
        low, high = map(_limit, found)
        return low, high

    def flag(self, *names: str, default: Any = _MISSING) -> bool:
        """True or false."""
        return bool(self._checked(names, default, _is_a(bool), "true or false"))

    def flags(self, name: str, *, default: list[bool]) -> list[bool]:
        """A list of true and false."""
        return list(self._checked((name,), default, _list_of(_is_a(bool)), "a list of true and false"))

    def choice(self, *names: str, among: Mapping[str, Any], default: Any = _MISSING) -> Any:
        """What `among` has for the key's text."""
        return among[self._checked(names, default, _is_among(among), f"one of {', '.join(among)}")]

    def optional_choice(self, *names: str, among: Mapping[str, Any]) -> Any:
        """The same, or None where the key is absent or null."""
        text = self._checked(names, None, _or_null(_is_among(among)), f"one of {', '.join(among)} or null")
        return None if text is None else among[text]

    def mapping(self, name: str) -> dict[str, Any] | None:
        """An object of any keys, such as the names of classes, or None where it is absent or null."""
        found = self._checked((name,), None, _or_null(_is_a(dict)), "an object or null")
        return None if found is None else dict(found)

    def table(self, name: str) -> "Keys | None":
        """An object of its own keys, or None where it is absent, null or empty."""
        found = self.mapping(name)
        return Keys(found, f"{self._prefix}{name}.") if found else None

    def section(self, name: str, defaults: Mapping[str, Any] | None = None) -> "Keys":
        """An object that is the configuration of a part; empty where it is absent or null.

        Keys without effect here have none there either, and those that nobody reads there count as unread here.
        defaults: the values of keys that the object leaves out.
        """
        part = Keys({**(defaults or {}), **(self.mapping(name) or {})}, f"{self._prefix}{name}.")
        part.without_effect(*self._without_effect)
        self._sections.append(part)
        return part

    def pair(self, name: str, default: int) -> tuple[int, int]:
        """A positive integer, which stands for two equal ones, or a list of two."""

        def accepts(one: Any) -> bool:
            return _is_size(one) or (_list_of(_is_size)(one) and len(one) == 2)

        found = self._checked((name,), default, accepts, "a positive integer or a list of two")
        first, second = (found, found) if isinstance(found, int) else found
        return first, second

    def integers(self, name: str, default: int) -> list[int]:
        """An integer, which stands for a list of one, or a list of them; negative ones too."""

        def accepts(one: Any) -> bool:
            return _is_integer(one) or (_list_of(_is_integer)(one) and bool(one))

        found = self._checked((name,), default, accepts, "an integer or a list of them")
        return list(found) if isinstance(found, list) else [int(found)]

    def texts(self, name: str) -> list[str] | None:
        """A list of strings, or None where it is absent or null."""
        found = self._checked((name,), None, _or_null(_list_of(_is_a(str))), "a list of strings")
        return None if found is None else list(found)

    def fixed(self, **expected: Any) -> None:
        """Refuse a key with another value than the one our parts stand for; an absent one is fine."""
        for name, value in expected.items():
            self._read.add(name)
            if name in self._values and self._values[name] != value:
                raise ValueError(f"`{self._prefix}{name}` is {self._values[name]!r}, only {value!r} is supported")

    def off(self, *names: str) -> None:
        """Refuse switches that are on: absent, null and false are what our parts stand for."""
        for name in names:
            self._read.add(name)
            if self._values.get(name):
                raise ValueError(f"`{self._prefix}{name}` is {self._values[name]!r}, which is not supported")

    def without_effect(self, *names: str) -> None:
        """Keys that change nothing in what the model computes."""
        self._read.update(names)
        self._without_effect.update(names)

    def unread(self) -> list[str]:
        """The keys that nobody asked for."""
        own = [self._prefix + name for name in sorted(set(self._values) - self._read)]
        return own + [name for part in self._sections for name in part.unread()]

    def _checked(self, names: tuple[str, ...], default: Any, accepts: Accepts, accepted: str) -> Any:
        self._read.update(names)
        for name in names:
            if name in self._values:
                value = self._values[name]
                if not accepts(value):
                    raise ValueError(f"`{self._prefix}{name}` must be {accepted}, not {value!r}")
                limit = _MOST_LAYERS if "layer" in name else _LARGEST
                if isinstance(value, int) and value > limit:
                    raise ValueError(f"`{self._prefix}{name}` must be at most {limit:,}, not {value:,}")
                return value
        if default is _MISSING:
            raise KeyError(f"{self._prefix}{names[0]}")
        return default


def _is_a(kind: type) -> Accepts:
    return lambda one: isinstance(one, kind)


def _is_among(words: Mapping[str, Any]) -> Accepts:
    return lambda one: isinstance(one, str) and one in words


def _or_null(accepts: Accepts) -> Accepts:
    return lambda one: one is None or accepts(one)


def _list_of(accepts: Accepts) -> Accepts:
    return lambda one: isinstance(one, list) and all(map(accepts, one))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_integer(value) and value >= 0


def _is_size(value: Any) -> bool:
    return _is_integer(value) and value > 0


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def _limit(value: Any) -> float:
    """A number as a float; what is none is NaN."""
    if value == INFINITE:
        return math.inf
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _is_limits(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and 0 <= _limit(value[0]) <= _limit(value[1])
