"""The text of tokens as they come: whole characters, and nothing that might yet be the beginning of a stop string."""

from collections.abc import Sequence
from copy import copy

from groundup.engine.stops import StopMatcher
from groundup.tokens.text import TextStream, TextTokenizer


class StoppingText:
    """Text that ends where a stop string begins, however it is divided into tokens; see `StopMatcher`."""

    def __init__(self, tokenizer: TextTokenizer, stops: Sequence[str] = ()) -> None:
        self._stream = TextStream(tokenizer)
        self._matcher = StopMatcher(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._matcher.found is not None

    def push(self, token: int) -> str:
        """The text that can be shown now."""
        return self._add(self._stream.push(token))

    def finish(self) -> str:
        """What was held back, when nothing follows."""
        shown = self._add(self._stream.finish())
        return shown if self.stopped else shown + self._matcher.finish()

    def copy(self) -> "StoppingText":
        """Another one that goes on from here."""
        copied = copy(self)
        copied._stream, copied._matcher = self._stream.copy(), self._matcher.copy()
        return copied

    def _add(self, text: str) -> str:
        return "" if self.stopped else self._matcher.push(text)
