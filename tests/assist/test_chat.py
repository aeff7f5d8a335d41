"""One reply: streamed text, calls of the calculator, and what is forgotten when the context is full."""

from collections.abc import Iterator, Sequence

import pytest

from groundup.assist.chat import MAX_CALLS, Text, ToolCall, ToolResult, fit, messages_of, stream_reply
from groundup.engine.choose import Choice
from groundup.engine.jobs import Piece
from groundup.engine.sampling import Sampling
from groundup.errors import UserError
from groundup.tokens.chat import render
from groundup.tokens.config import CONTROL_TOKENS, PATTERNS
from groundup.tokens.text import TextStream
from groundup.tokens.tokenizer import Tokenizer, train


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train(iter([["any text"]]), len(CONTROL_TOKENS) + 256, PATTERNS["code"]))


class ScriptedModel:
    """Stands for an engine: says what it is told, and keeps the prompts it was given."""

    def __init__(self, tokenizer: Tokenizer, turns: Sequence[list[int]], max_positions: int = 400) -> None:
        self.tokenizer = tokenizer
        self.turns = iter(turns)
        self.prompts: list[list[int]] = []
        self.max_positions = max_positions

    def pieces(self, prompt: Sequence[int], sampling: Sampling, adapter: str | None = None) -> Iterator[Piece]:
        self.prompts.append(list(prompt))
        text = TextStream(self.tokenizer)
        for token in next(self.turns):
            yield Piece(Choice(token, 0.0, []), 0.0, text.push(token), None, 0)
        yield Piece(None, 0.0, text.finish(), "stop", 0)


QUESTION = {"role": "user", "content": "6*7?"}


def _call(tokenizer: Tokenizer, before: str, expression: str) -> list[int]:
    return [*tokenizer.encode(before), tokenizer.control["<|tool_call|>"], *tokenizer.encode(expression)]


def test_text_arrives_in_whole_characters(tokenizer: Tokenizer):
    model = ScriptedModel(tokenizer, [tokenizer.encode("naïve ✓")])  # bytes alone are tokens here: ✓ takes three
    events = list(stream_reply(model, [QUESTION], Sampling()))
    assert [event.text for event in events] == list("naïve ✓")


def test_a_call_is_computed_and_the_model_goes_on_with_the_result_in_view(tokenizer: Tokenizer):
    model = ScriptedModel(tokenizer, [_call(tokenizer, "Let me see: ", " 6*7 "), tokenizer.encode("42.")])
    events = list(stream_reply(model, [QUESTION], Sampling()))
    assert [event for event in events if not isinstance(event, Text)] == [ToolCall("6*7"), ToolResult("42")]
    said = messages_of(events)
    assert said == [
        {"role": "assistant", "content": "Let me see: ", "tool_call": "6*7"},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "42."},
    ]
    assert model.prompts[1] == render(tokenizer, [QUESTION, *said[:2]], add_generation_prompt=True).ids


def test_a_model_that_only_calls_is_stopped(tokenizer: Tokenizer):
    model = ScriptedModel(tokenizer, [_call(tokenizer, "", "1+1")] * 50)
    events = list(stream_reply(model, [QUESTION], Sampling()))
    assert sum(isinstance(event, ToolCall) for event in events) == MAX_CALLS + 1


def test_a_call_that_was_cut_short_leaves_a_conversation_that_can_go_on(tokenizer: Tokenizer):
    said = messages_of([Text("Let me "), Text("see"), ToolCall("6*7")])
    assert said == [{"role": "assistant", "content": "Let me see"}]
    render(tokenizer, [QUESTION, *said, QUESTION], add_generation_prompt=True)


def _exchange(number: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"question {number}"},
        {"role": "assistant", "content": "", "tool_call": "1+1"},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": f"answer {number}"},
    ]


def test_the_oldest_exchanges_are_forgotten_first_then_documents(tokenizer: Tokenizer):
    system = {"role": "system", "content": "be brief"}
    document = {"role": "document", "content": "d" * 40}
    messages = [system, document, *_exchange(1), *_exchange(2), QUESTION]
    sizes = [
        len(render(tokenizer, kept, add_generation_prompt=True).ids)
        for kept in (
            messages,
            [system, document, *_exchange(2), QUESTION],
            [system, document, QUESTION],
            [system, QUESTION],
        )
    ]
    kept_at = [fit(tokenizer, messages, -(-size * 4 // 3)) for size in sizes]
    assert kept_at[0] == messages
    assert kept_at[1] == [system, document, *_exchange(2), QUESTION]
    assert kept_at[2] == [system, document, QUESTION]
    assert kept_at[3] == [system, QUESTION]
    with pytest.raises(UserError, match="this model reads 15"):
        fit(tokenizer, messages, 20)
