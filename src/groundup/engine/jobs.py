"""What is asked of a decoder: texts to write and texts to score, and what is said of them while they are computed.

Beam search is in `beaming.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from groundup.engine.choose import Choice, Chooser
from groundup.engine.draws import Draw
from groundup.engine.rows import Logits
from groundup.engine.sequence import Sequence as Computed
from groundup.engine.source import Source
from groundup.engine.speculate import verify
from groundup.engine.text import StoppingText
from groundup.model.lora import Adapter

Ending = Literal["stop", "length"]


class Piece(NamedTuple):
    """What one token adds to a text.

    choice: the new token; None where it was a stop token, which belongs to no text.
    logprob: of the new token, that of a stop token too, in nats.
    text: what can be shown of it by now.
    ending: why the text ends here, or None where it goes on.
    cached: tokens of the prompt that were found in the cache.
    """

    choice: Choice | None
    logprob: float
    text: str
    ending: Ending | None
    cached: int


def next_piece(choice: Choice, text: StoppingText | None, *, ends: bool, is_full: bool, cached: int) -> Piece:
    """What a chosen token adds.

    text: what the tokens before it spell; the new one is pushed. ends: whether it is a stop token. is_full: whether
    there may be no other after it.
    """
    if ends:
        return Piece(None, choice.logprob, _rest(text), "stop", cached)
    shown = "" if text is None else text.push(choice.token)
    if text is not None and text.stopped:
        return Piece(choice, choice.logprob, shown, "stop", cached)
    if is_full:
        return Piece(choice, choice.logprob, shown + _rest(text), "length", cached)
    return Piece(choice, choice.logprob, shown, None, cached)


def _rest(text: StoppingText | None) -> str:
    return "" if text is None else text.finish()


@dataclass(eq=False)
class Writing:
    """A text that is being written.

    prompt: its token ids. limit: tokens that it may get.
    text: what its tokens spell; None where there is no tokenizer.
    tell: is given each piece, or the error that ends it.
    adapter: that the model has while it writes this text, if any.
    source: that the text is written for, if the model has an encoder.
    copies: others with the same prompt, which is computed once; they begin when it is.
    """

    prompt: list[int]
    limit: int
    chooser: Chooser
    text: StoppingText | None
    tell: Callable[[Piece | Exception], None]
    adapter: Adapter | None = None
    source: Source | None = None
    copies: list["Writing"] = field(default_factory=list)
    sequence: Computed | None = None
    written: int = 0

    @property
    def most_tokens(self) -> int:
        """Tokens that may have to be computed: all but the last."""
        return len(self.prompt) + self.limit - 1

    @property
    def sequences(self) -> list[Computed]:
        return [] if self.sequence is None else [self.sequence]

    def begin(self, sequence: Computed) -> None:
        """It is to be computed as this sequence."""
        self.sequence = sequence

    def draws(self, count: int) -> list[Draw | None]:
        """How the next tokens are chosen, as far as that is known before."""
        return [self.chooser.draw(ahead) for ahead in range(count)]

    def write(self, logits: Sequence[Logits], guesses: list[int], cached: int) -> tuple[list[int], bool]:
        """Choose the next tokens and tell of them; returns them, and whether the text is at its end.

        logits: guesses + 1 times (vocab,), see `verify`. All tokens but the last are guesses that were right.
        """
        tokens: list[int] = []
        for choice in verify(self.chooser, logits, guesses) if guesses else [self.chooser.choose(logits[0])]:
            tokens.append(choice.token)
            self.written += 1
            is_full = self.written == self.limit
            piece = next_piece(choice, self.text, ends=self.chooser.has_ended, is_full=is_full, cached=cached)
            self.tell(piece)
            if piece.ending is not None:
                return tokens, True
        return tokens, False

    def fail(self, error: Exception) -> None:
        """Tell that there will be no more."""
        for one in (self, *self.copies):
            one.tell(error)


@dataclass(eq=False)
class Scoring:
    """A text that is being scored.

    tell: is given all tokens but the first as choices, or an error.
    top: of how many of the likeliest tokens each of these tells.
    """

    prompt: list[int]
    tell: Callable[[list[Choice] | Exception], None]
    adapter: Adapter | None = None
    source: Source | None = None
    sequence: Computed | None = None
    top: int = 0
    found: list[Choice] = field(default_factory=list)

    @property
    def most_tokens(self) -> int:
        return len(self.prompt)

    @property
    def sequences(self) -> list[Computed]:
        return [] if self.sequence is None else [self.sequence]

    def begin(self, sequence: Computed) -> None:
        """It is to be computed as this sequence."""
        self.sequence = sequence

    def fail(self, error: Exception) -> None:
        """Tell that it cannot be scored."""
        self.tell(error)
