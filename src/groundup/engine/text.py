"""The text of tokens as they come: whole characters, and nothing that might yet be the beginning of a stop string."""

from collections.abc import Sequence

from groundup.tokens.tokenizer import TextStream, Tokenizer


class StoppingText:
    """Text that ends where a stop string begins.

    stopped: whether one has come. It is looked for character by character, so that it does not matter how the text is
    divided into tokens: the one that is complete first counts, and of several that are the longest.
    Raises ValueError for an empty stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        if not all(stops):
            raise ValueError("a stop string needs at least one character")
        self.stopped = False
        self._stream = TextStream(tokenizer)
        self._stops = sorted(stops, key=len, reverse=True)
        self._held = ""

    def push(self, token: int) -> str:
        """The text that can be shown now."""
        return self._add(self._stream.push(token))

    def finish(self) -> str:
        """What was held back, when nothing follows."""
        if self.stopped:
            return ""
        shown = self._add(self._stream.finish())
        rest, self._held = self._held, ""
        return shown + rest

    def _add(self, text: str) -> str:
        shown = ""
        for character in text if not self.stopped else "":
            self._held += character
            found = next((stop for stop in self._stops if self._held.endswith(stop)), None)
            if found is not None:
                self.stopped = True
                shown, self._held = shown + self._held[: -len(found)], ""
                break
            kept = self._beginning()
            shown, self._held = shown + self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return shown

    def _beginning(self) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        sizes = range(min(longest, len(self._held)), 0, -1)
        return next((size for size in sizes if any(stop.startswith(self._held[-size:]) for stop in self._stops)), 0)
