"""One reply in a conversation, as it is being written: text, calls of the calculator and their results.

The model writes `<|tool_call|>` expression `<|end|>`, we compute, it goes on with the result in view (`tokens/chat.py`
has the format). What the model writes never reaches an interpreter: `assist/tools.py` does the arithmetic.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from groundup.assist.tools import calculate
from groundup.engine.engine import Engine
from groundup.engine.sampling import Sampling
from groundup.errors import UserError
from groundup.formats.huggingface import load_decoder
from groundup.formats.published import load_tokenizer
from groundup.tokens.chat import Message, render, turn_ends
from groundup.tokens.tokenizer import Tokenizer, require_own

# A model that calls again and again without ever answering is stopped here.
MAX_CALLS = 4
# Part of the context that is kept free for the answer.
ANSWER_SHARE = 0.25


@dataclass(frozen=True)
class Text:
    """A piece of the answer, as soon as its last byte is known."""

    text: str


@dataclass(frozen=True)
class ToolCall:
    """The assistant asks for a calculation; the expression is as it wrote it."""

    expression: str


@dataclass(frozen=True)
class ToolResult:
    """What the tool answered: the number, or in words why there is none."""

    result: str


Event = Text | ToolCall | ToolResult


def load_assistant(folder: Path) -> Engine:
    """The model of a folder, ready to talk. Raises UserError where the folder holds none that goes on from a text."""
    tokenizer = Tokenizer.load(folder)
    return Engine(load_decoder(folder), tokenizer, stop_ids=turn_ends(tokenizer))


def load_writer(folder: Path) -> Engine:
    """The same, ready to go on from texts, whoever trained it; one of groundup's ends where a turn would."""
    tokenizer = load_tokenizer(folder)
    stop_ids = turn_ends(tokenizer) if isinstance(tokenizer, Tokenizer) else tokenizer.end_ids
    return Engine(load_decoder(folder), tokenizer, stop_ids=stop_ids)


def stream_reply(
    engine: Engine, messages: Sequence[Message], sampling: Sampling, adapter: str | None = None
) -> Iterator[Event]:
    """The reply to a conversation, event by event; `messages_of` makes messages of them, also of a reply cut short.

    adapter: of the engine's, the one that the model is to have.
    Raises UserError if the last message alone is longer than the model can read.
    """
    events: list[Event] = []
    for _ in range(MAX_CALLS + 1):
        prompt = next_prompt(require_own(engine.tokenizer), messages, messages_of(events), engine.max_positions)
        if prompt is None:
            return
        for event in _stream_turn(engine, prompt, sampling, adapter):
            events.append(event)
            yield event
        if not events or not isinstance(events[-1], ToolCall):
            return
        events.append(ToolResult(calculate(events[-1].expression)))
        yield events[-1]


def next_prompt(
    tokenizer: Tokenizer, asked: Sequence[Message], said: Sequence[Message], max_positions: int
) -> list[int] | None:
    """The tokens from which the assistant goes on after `asked` and what it has `said` since, its calls with results.

    None if its own calls have filled the context: the reply then ends where it is.
    Raises UserError if what was asked is too long by itself.
    """
    try:
        conversation = fit(tokenizer, [*asked, *said], max_positions)
    except UserError:
        if not said:
            raise
        return None
    return render(tokenizer, conversation, add_generation_prompt=True).ids


def _stream_turn(engine: Engine, prompt: Sequence[int], sampling: Sampling, adapter: str | None) -> Iterator[Event]:
    """Text up to the end of the turn, or up to a call, which is given as one event once it is whole."""
    tokenizer, pieces = require_own(engine.tokenizer), engine.pieces(prompt, sampling, adapter=adapter)
    for piece in pieces:
        if piece.choice is not None and piece.choice.token == tokenizer.control["<|tool_call|>"]:
            called = [one.choice.token for one in pieces if one.choice is not None]
            yield ToolCall(tokenizer.decode(called).strip())
            return
        if piece.text:
            yield Text(piece.text)


def messages_of(events: Sequence[Event]) -> list[Message]:
    """The events of a reply as the messages that they add to the conversation; a call without result is left out."""
    messages: list[Message] = []
    written, call = "", ""
    for event in events:
        match event:
            case Text(text):
                written += text
            case ToolCall(expression):
                call = expression
            case ToolResult(result):
                messages.append({"role": "assistant", "content": written, "tool_call": call})
                messages.append({"role": "tool", "content": result})
                written = ""
    return [*messages, {"role": "assistant", "content": written}] if written else messages


def fit(tokenizer: Tokenizer, messages: Sequence[Message], max_positions: int) -> list[Message]:
    """The messages without as many of the oldest as must go for the rest to leave room for an answer.

    Whole exchanges go first, documents next; what the system said and the last question (with calls made for it) stay.
    Raises UserError if even these are too long.
    """
    limit = int(max_positions * (1 - ANSWER_SHARE))
    kept = list(messages)
    while (length := len(render(tokenizer, kept, add_generation_prompt=True).ids)) > limit:
        questions = [place for place, message in enumerate(kept) if message["role"] == "user"]
        documents = [place for place, message in enumerate(kept) if message["role"] == "document"]
        if len(questions) > 1:
            exchange = range(questions[0], questions[1])
            kept = [one for place, one in enumerate(kept) if place not in exchange or place in documents]
        elif documents:
            del kept[documents[0]]
        else:
            raise UserError(f"the message has {length} tokens with all that belongs to it; this model reads {limit}")
    return kept
