"""Replies to many conversations at once, calculator calls included: what evaluation asks for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from groundup.assist.chat import MAX_CALLS, next_prompt
from groundup.assist.tools import calculate
from groundup.engine.engine import Engine
from groundup.engine.sampling import Sampling
from groundup.tokens.chat import Reply, parse_assistant
from groundup.tokens.tokenizer import require_own

# Conversations that are asked at a time: progress is seen when they have their replies.
TOGETHER = 128


def reply_to_all(
    engine: Engine,
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    sampling: Sampling,
    advance: Callable[[float], None] = lambda amount: None,
) -> list[str]:
    """The last words of the assistant in each conversation, in their order; as `chat.stream_reply` gives one by one.

    advance: called with the number of conversations that have their reply.
    """
    said: list[list[Mapping[str, Any]]] = [[] for _ in conversations]
    answers = [""] * len(conversations)
    open_ones = list(range(len(conversations)))
    for _ in range(MAX_CALLS + 1):
        found = {
            index: next_prompt(require_own(engine.tokenizer), conversations[index], said[index], engine.max_positions)
            for index in open_ones
        }
        prompts = {index: prompt for index, prompt in found.items() if prompt is not None}
        advance(len(open_ones) - len(prompts))
        open_ones = []
        for index, reply in _turns(engine, prompts, sampling):
            if reply.tool_call is None:
                answers[index] = reply.content
                advance(1)
            else:
                said[index] += [reply.message(), {"role": "tool", "content": calculate(reply.tool_call)}]
                open_ones.append(index)
    advance(len(open_ones))
    return answers


def _turns(engine: Engine, prompts: Mapping[int, list[int]], sampling: Sampling) -> Iterator[tuple[int, Reply]]:
    """One turn of the assistant after each of the numbered prompts."""
    numbers = list(prompts)
    for first in range(0, len(numbers), TOGETHER):
        asked = numbers[first : first + TOGETHER]
        written = engine.generate([prompts[number] for number in asked], sampling)
        for number, one in zip(asked, written, strict=True):
            yield number, parse_assistant(require_own(engine.tokenizer), one.tokens)
