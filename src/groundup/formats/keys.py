"""The keys of a config.json, read one by one: what is not read was not understood.

A config.json is a stranger's: nothing of it reaches the model's arithmetic unchecked.
"""

import sys
from collections.abc import Mapping
from typing import Any

_MISSING = object()
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

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def size(self, *names: str, default: Any = _MISSING) -> int:
        """A positive integer."""
        return int(self._checked(names, default, _is_size, "a positive integer"))

    def count(self, *names: str, default: Any = _MISSING) -> int:
        """An integer from 0 on."""
        return int(self._checked(names, default, lambda one: _is_size(one) or one == 0, "an integer from 0 on"))

    def sizes(self, *names: str, default: Any = _MISSING) -> list[int]:
        """A list of positive integers."""
        found = self._checked(
            names, default, lambda one: isinstance(one, list) and all(map(_is_size, one)), "a list of positive integers"
        )
        return list(found)

    def numbers(self, *names: str, default: Any = _MISSING) -> list[int]:
        """A list of integers from 0 on, such as layer numbers."""
        found = self._checked(
            names,
            default,
            lambda one: isinstance(one, list) and all(_is_size(item) or item == 0 for item in one),
            "a list of layer numbers",
        )
        return list(found)

    def optional_size(self, *names: str, default: int | None = None) -> int | None:
        """A positive integer or null."""
        found = self._checked(names, default, lambda one: one is None or _is_size(one), "a positive integer or null")
        return None if found is None else int(found)

    def positive(self, *names: str, default: Any = _MISSING) -> float:
        """A positive, finite number."""
        return float(self._checked(names, default, _is_positive, "a positive number"))

    def optional_positive(self, *names: str, default: float | None = None) -> float | None:
        """A positive, finite number or null."""
        found = self._checked(names, default, lambda one: one is None or _is_positive(one), "a positive number or null")
        return None if found is None else float(found)

    def positives(self, *names: str, default: Any = _MISSING) -> tuple[float, ...]:
        """A list of positive, finite numbers."""
        found = self._checked(
            names,
            default,
            lambda one: isinstance(one, list) and all(map(_is_positive, one)),
            "a list of positive numbers",
        )
        return tuple(map(float, found))

    def flag(self, *names: str, default: Any = _MISSING) -> bool:
        """True or false."""
        return bool(self._checked(names, default, lambda one: isinstance(one, bool), "true or false"))

    def choice(self, *names: str, among: Mapping[str, Any], default: Any = _MISSING) -> Any:
        """What `among` has for the key's text."""
        text = self._checked(
            names, default, lambda one: isinstance(one, str) and one in among, f"one of {', '.join(among)}"
        )
        return among[text]

    def table(self, *names: str) -> "Keys | None":
        """An object of its own keys, or None where it is absent or null."""
        found = self._checked(names, None, lambda one: one is None or isinstance(one, dict), "an object or null")
        return Keys(found, f"{self._prefix}{names[0]}.") if found else None

    def texts(self, name: str) -> list[str] | None:
        """A list of strings, or None where it is absent or null."""
        found = self._checked(
            (name,),
            None,
            lambda one: one is None or (isinstance(one, list) and all(isinstance(item, str) for item in one)),
            "a list of strings",
        )
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

    def unread(self) -> list[str]:
        """The keys that nobody asked for."""
        return [self._prefix + name for name in sorted(set(self._values) - self._read)]

    def _checked(self, names: tuple[str, ...], default: Any, accepts: Any, accepted: str) -> Any:
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


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max
