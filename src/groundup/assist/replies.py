"""Replies to many conversations at once, calculator calls included: what evaluation asks for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from groundup.assist.chat import MAX_CALLS, fit
from groundup.assist.tools import calculate
from groundup.engine.generate import Generator
from groundup.engine.sampling import Sampling
from groundup.tokens.chat import Reply, parse_assistant, render
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
    messages = [list(conversation) for conversation in conversations]
    answers = [""] * len(messages)
    open_ones = list(range(len(messages)))
    for _ in range(MAX_CALLS + 1):
        calling = []
        for index, reply in _generate(generator, tokenizer, messages, open_ones, sampling):
            if reply.tool_call is None:
                answers[index] = reply.content
                advance(1)
            else:
                messages[index] += [reply.message(), {"role": "tool", "content": calculate(reply.tool_call)}]
                calling.append(index)
        open_ones = sorted(calling)
    advance(len(open_ones))
    return answers


def _generate(
    generator: Generator,
    tokenizer: Tokenizer,
    messages: Sequence[Sequence[Mapping[str, Any]]],
    indices: Sequence[int],
    sampling: Sampling,
) -> Iterator[tuple[int, Reply]]:
    """One turn of the assistant for each of the conversations numbered `indices`."""
    prompts = {
        index: render(
            tokenizer, fit(tokenizer, messages[index], generator.max_positions), add_generation_prompt=True
        ).ids
        for index in indices
    }
    by_length = sorted(indices, key=lambda index: (len(prompts[index]), index))
    for first in range(0, len(by_length), BATCH):
        batch = by_length[first : first + BATCH]
        replies = generator.generate([prompts[index] for index in batch], sampling)
        for index, ids in zip(batch, replies, strict=True):
            yield index, parse_assistant(tokenizer, ids)
