"""Numbers that may be asked for: which are accepted, and what is said of the others."""

import math
import sys
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real
from typing import Any


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`; `low` itself is left out where it is `open`."""

    kind: type[Integral] | type[Real]
    low: float = -math.inf
    high: float = math.inf
    open: bool = False

    def require(self, name: str, value: Any) -> None:
        """Raises ValueError for a value that is none of these."""
        is_number = isinstance(value, self.kind) and not isinstance(value, bool | Fraction)
        # Integers of Python have no largest; what is beyond any float is no number here.
        is_finite = is_number and abs(value) <= sys.float_info.max
        if not is_finite or not self.low <= value <= self.high or (self.open and value == self.low):
            raise ValueError(f"{name} must be {self._described()}, not {value!r}")

    def _described(self) -> str:
        words = "an integer" if self.kind is Integral else "a number"
        if self.low > -math.inf:
            words += f" above {self.low}" if self.open else f" of at least {self.low}"
        if self.high < math.inf:
            words += f" and at most {self.high}"
        return words


# Of things of which there must be one, and of those that may be missing.
COUNT = Range(Integral, 1)
NATURAL = Range(Integral, 0)
