"""Stop strings in a text that arrives piece by piece."""

from collections.abc import Sequence


class StopMatcher:
    """Gives text on until a stop string is whole, and nothing of the stop string itself.

    What could be the beginning of one is held back until the next piece decides. The text ends before the stop string
    that is whole first, of several that end with the same character before the longest: so the result does not depend
    on how the text was cut into pieces. Pieces are whole characters, as `tokens.text.TextStream` makes them of tokens.

    found: the stop string at which the text has ended, or None.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        # The longest first, so that among those with equal ends it is found first.
        self._stops = sorted(stops, key=len, reverse=True)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """What is certain now to belong to the text. Raises ValueError after its end."""
        if self.found is not None:
            raise ValueError(f"the text has ended before {self.found!r}; nothing can follow")
        text, self._held = self._held + text, ""
        ends = [(place + len(stop), stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if ends:
            end, self.found = min(ends, key=lambda one: one[0])
            return text[: end - len(self.found)]
        kept = len(text) - self._beginning(text)
        self._held = text[kept:]
        return text[:kept]

    def finish(self) -> str:
        """What was held back, once no more text comes."""
        rest, self._held = self._held, ""
        return rest

    def _beginning(self, text: str) -> int:
        """How many characters at the end of `text` could be the beginning of a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0

    def copy(self) -> "StopMatcher":
        """Another one that has read the same."""
        copied = StopMatcher(self._stops)
        copied._held, copied.found = self._held, self.found
        return copied
