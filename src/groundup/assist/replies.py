"""Replies to many conversations at once, calculator calls included: what evaluation asks for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from groundup.assist.chat import MAX_CALLS, next_prompt
from groundup.assist.tools import calculate
from groundup.engine.generate import Generator
from groundup.engine.sampling import Sampling
from groundup.tokens.chat import Reply, parse_assistant
from groundup.tokens.tokenizer import Tokenizer

# Conversations per batch; they are sorted by length first, so that little of a batch is padding.
BATCH = 32


def reply_to_all(
    generator: Generator,
    tokenizer: Tokenizer,
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
            index: next_prompt(tokenizer, conversations[index], said[index], generator.max_positions)
            for index in open_ones
        }
        prompts = {index: prompt for index, prompt in found.items() if prompt is not None}
        advance(len(open_ones) - len(prompts))
        open_ones = []
        for index, reply in _generate(generator, tokenizer, prompts, sampling):
            if reply.tool_call is None:
                answers[index] = reply.content
                advance(1)
            else:
                said[index] += [reply.message(), {"role": "tool", "content": calculate(reply.tool_call)}]
                open_ones.append(index)
    advance(len(open_ones))
    return answers


def _generate(
    generator: Generator, tokenizer: Tokenizer, prompts: Mapping[int, list[int]], sampling: Sampling
) -> Iterator[tuple[int, Reply]]:
    """One turn of the assistant after each of the numbered prompts."""
    by_length = sorted(prompts, key=lambda index: (len(prompts[index]), index))
    for first in range(0, len(by_length), BATCH):
        batch = by_length[first : first + BATCH]
        replies = generator.generate([prompts[index] for index in batch], sampling)
        for index, ids in zip(batch, replies, strict=True):
            yield index, parse_assistant(tokenizer, ids)
