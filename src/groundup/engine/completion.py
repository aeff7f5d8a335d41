"""What the engine's thread tells, as those who wait for it hear it: one by one or at once, blocking or awaited."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, TypeVar

from groundup.engine.choose import Choice
from groundup.engine.jobs import Ending, Piece
from groundup.engine.sampling import Sampling

Event = TypeVar("Event")
Heard = Piece | Exception
# The text of token ids.
Spell = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Completion:
    """What followed a prompt.

    prompt: its token ids. tokens: what followed; stop tokens are not part of it, those of a stop string are.
    text: what they spell, up to a stop string; empty where the engine has no tokenizer.
    choices: of each token, with its log-probability. ending: `stop`, or `length` where it was cut short.
    cached: tokens of the prompt that did not have to be computed for the text.
    prompt_choices: likewise of each token of the prompt but the first, where they were asked for.
    """

    prompt: list[int]
    tokens: list[int]
    text: str
    choices: list[Choice]
    ending: Ending
    cached: int
    prompt_choices: list[Choice] | None = None

    @property
    def logprobs(self) -> list[float]:
        """Of each token, in nats."""
        return [choice.logprob for choice in self.choices]

    @property
    def prompt_logprobs(self) -> list[float] | None:
        """Of each token of the prompt but the first, in nats, where they were asked for."""
        return None if self.prompt_choices is None else [choice.logprob for choice in self.prompt_choices]


@dataclass(frozen=True)
class Score:
    """How likely a text is. choices: of each of its tokens but the first, given those before it."""

    tokens: list[int]
    choices: list[Choice]

    @property
    def logprobs(self) -> list[float]:
        """Of each token but the first, in nats."""
        return [choice.logprob for choice in self.choices]

    @property
    def total(self) -> float:
        """The log-probability of the text, given its first token, in nats."""
        return sum(self.logprobs)


def completions(
    prompts: Sequence[list[int]],
    texts: Sequence[Sequence[Piece]],
    sampling: Sampling,
    spell: Spell,
    echoes: Sequence[list[Choice]] = (),
) -> list[Completion]:
    """What is given of the texts that were written, `sampling.written` for each prompt in turn.

    spell: the text of token ids, where no stop strings had it made on the way.
    echoes: the tokens of each prompt as choices, where they were asked for.
    """
    found: list[Completion] = []
    for number, prompt in enumerate(prompts):
        own = texts[number * sampling.written : (number + 1) * sampling.written]
        if sampling.best_of is not None:
            own = sorted(own, key=_mean_logprob, reverse=True)[: sampling.n]
        echo = echoes[number] if echoes else None
        found += [_completion(prompt, pieces, None if sampling.stop else spell, echo) for pieces in own]
    return found


def _completion(
    prompt: list[int], pieces: Sequence[Piece], spell: Spell | None, echo: list[Choice] | None
) -> Completion:
    """All pieces of a text as one."""
    choices = [piece.choice for piece in pieces if piece.choice is not None]
    last = pieces[-1]
    assert last.ending is not None
    tokens = [one.token for one in choices]
    text = "".join(piece.text for piece in pieces) if spell is None else spell(tokens)
    return Completion(prompt, tokens, text, choices, last.ending, last.cached, echo)


def _mean_logprob(pieces: Sequence[Piece]) -> float:
    return sum(piece.logprob for piece in pieces) / len(pieces)


class Gathering:
    """Takes the pieces of a text one by one, and tells all of them at its end: nobody is woken up for each."""

    def __init__(self, tell: "Callable[[Sequence[Piece] | Exception], None]") -> None:
        self._tell = tell
        self._pieces: list[Piece] = []

    def __call__(self, told: Heard) -> None:
        if isinstance(told, Exception):
            self._tell(told)
            return
        self._pieces.append(told)
        if told.ending is not None:
            self._tell(self._pieces)


class Inboxes(Generic[Event]):
    """One for each event that a thread waits for, in the order in which they were opened."""

    def __init__(self) -> None:
        self._inboxes: list[SimpleQueue[Event | Exception]] = []

    def open(self) -> Callable[[Event | Exception], None]:
        """A way into another inbox."""
        self._inboxes.append(SimpleQueue())
        return self._inboxes[-1].put

    def heard(self) -> list[Event]:
        """Waits for all events; raises the first that is an error."""
        return [heard(inbox.get()) for inbox in self._inboxes]


class AwaitedInboxes(Generic[Event]):
    """The same in an event loop."""

    def __init__(self) -> None:
        self._inboxes: list[asyncio.Queue[Event | Exception]] = []

    def open(self) -> Callable[[Event | Exception], None]:
        """A way into another inbox, for another thread than that of the running event loop."""
        self._inboxes.append(asyncio.Queue())
        return from_other_thread(self._inboxes[-1])

    async def heard(self) -> list[Event]:
        """Waits for all events; raises the first that is an error."""
        return [heard(await inbox.get()) for inbox in self._inboxes]


def pieces_of(inbox: "SimpleQueue[Heard]") -> Iterator[Piece]:
    """The pieces of a text up to its last; raises what went wrong."""
    while True:
        piece = heard(inbox.get())
        yield piece
        if piece.ending is not None:
            return


async def awaited_pieces_of(inbox: "asyncio.Queue[Heard]") -> AsyncIterator[Piece]:
    """The same in an event loop."""
    while True:
        piece = heard(await inbox.get())
        yield piece
        if piece.ending is not None:
            return


def heard(event: Event | Exception) -> Event:
    """What was told, unless it is an error, which is raised."""
    if isinstance(event, Exception):
        raise event
    return event


def from_other_thread(inbox: "asyncio.Queue[Event | Exception]") -> Callable[[Event | Exception], None]:
    """A way into the inbox for another thread than that of the running event loop."""
    loop = asyncio.get_running_loop()

    def tell(event: Event | Exception) -> None:
        with suppress(RuntimeError):  # the event loop is closed: nobody listens any more
            loop.call_soon_threadsafe(inbox.put_nowait, event)

    return tell
