"""What is asked of a decoder: texts to write and texts to score, and what is said of them while they are computed.

Shape suffixes: t tokens, d model width, v vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from groundup.engine.choose import Choice, Chooser
from groundup.engine.scheduler import Sequence
from groundup.engine.text import StoppingText
from groundup.model.lora import Adapter

Ending = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """What one step adds to a text.

    choice: the new token; None where it was a stop token, which belongs to no text.
    text: what can be shown of it by now.
    ending: why the text ends here, or None where it goes on.
    cached: tokens of the prompt that were found in the cache.
    """

    choice: Choice | None
    text: str
    ending: Ending | None
    cached: int


@dataclass(eq=False)
class Writing:
    """A text that is being written.

    prompt: its token ids. limit: tokens that it may get.
    text: what its tokens spell; None where there is no tokenizer.
    tell: is given each piece, or the error that ends it.
    adapter: that the model has while it writes this text, if any.
    copies: others with the same prompt, which is computed once; they begin when it is.
    """

    prompt: list[int]
    limit: int
    chooser: Chooser
    text: StoppingText | None
    tell: Callable[[Piece | Exception], None]
    adapter: Adapter | None = None
    copies: list["Writing"] = field(default_factory=list)
    sequence: Sequence | None = None
    written: int = 0

    @property
    def most_tokens(self) -> int:
        """Tokens that may have to be computed: all but the last."""
        return len(self.prompt) + self.limit - 1

    def write(self, sequence: Sequence, logits_v: Tensor) -> bool:
        """Choose the next token and tell of it; returns whether the text is at its end."""
        choice = self.chooser.choose(logits_v)
        if self.chooser.has_ended:
            self.tell(Piece(None, self._rest(), "stop", sequence.cached or 0))
            return True
        sequence.tokens.append(choice.token)
        self.written += 1
        shown = "" if self.text is None else self.text.push(choice.token)
        ending: Ending | None = None
        if self.text is not None and self.text.stopped:
            ending = "stop"
        elif self.written == self.limit:
            ending, shown = "length", shown + self._rest()
        self.tell(Piece(choice, shown, ending, sequence.cached or 0))
        return ending is not None

    def _rest(self) -> str:
        return "" if self.text is None else self.text.finish()


@dataclass(eq=False)
class Scoring:
    """A text that is being scored.

    tell: is given the log-probabilities of all tokens but the first, in nats, or an error.
    """

    prompt: list[int]
    tell: Callable[[list[float] | Exception], None]
    adapter: Adapter | None = None
    sequence: Sequence | None = None
    found: list[float] = field(default_factory=list)

    @property
    def most_tokens(self) -> int:
        return len(self.prompt)


Job = Writing | Scoring
