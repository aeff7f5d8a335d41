"""The verbs of an engine that take a conversation, made of those that take prompts; `tokens/chat.py` has its form."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from groundup.engine.asking import asked, of_one_text
from groundup.engine.completion import Completion
from groundup.engine.constrain import Constraint
from groundup.engine.prompts import Prompt
from groundup.engine.sampling import Sampling
from groundup.tokens.chat import Message, Reply, parse_assistant, render, turn_ends
from groundup.tokens.text import TextTokenizer
from groundup.tokens.tokenizer import Tokenizer, require_own


class Conversing(ABC):
    """What an engine answers to conversations.

    sampling, options: as for `generate`, of one text; it ends at `stop_token_ids` and at the tokens that end a turn.
    All verbs raise UserError where the messages are no conversation or the tokenizer knows none, ValueError where they
    are too long.
    """

    def chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        *,
        constraint: Constraint | None = None,
        adapter: str | None = None,
        **options: Any,
    ) -> Reply:
        """The assistant's reply to a conversation; `reply.message()` continues it."""
        prompt, wanted = self._turn(messages, sampling, options, turn_ends)
        (written,) = self.generate([prompt], wanted, constraint=constraint, adapter=adapter)
        return reply_of(require_own(self.tokenizer), written)

    async def achat(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        *,
        constraint: Constraint | None = None,
        adapter: str | None = None,
        **options: Any,
    ) -> Reply:
        """As `chat`; cancelled as `agenerate` is."""
        prompt, wanted = self._turn(messages, sampling, options, turn_ends)
        (written,) = await self.agenerate([prompt], wanted, constraint=constraint, adapter=adapter)
        return reply_of(require_own(self.tokenizer), written)

    def stream_chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        *,
        constraint: Constraint | None = None,
        adapter: str | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """The words of the reply as they come, up to a tool call if it makes one."""
        prompt, wanted = self._turn(messages, sampling, options, word_ends)
        return self.stream(prompt, wanted, constraint=constraint, adapter=adapter)

    def astream_chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        *,
        constraint: Constraint | None = None,
        adapter: str | None = None,
        **options: Any,
    ) -> AsyncIterator[str]:
        """As `stream_chat`; it ends as `astream` does."""
        prompt, wanted = self._turn(messages, sampling, options, word_ends)
        return self.astream(prompt, wanted, constraint=constraint, adapter=adapter)

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens from which the assistant goes on."""
        return render(require_own(self.tokenizer), messages, add_generation_prompt=True).ids

    def _turn(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None,
        options: Mapping[str, Any],
        ends: Callable[[Tokenizer], Collection[int]],
    ) -> tuple[list[int], Sampling]:
        """From where the assistant goes on, and what is asked of it. ends: of a tokenizer, the tokens it ends at."""
        return self.chat_prompt(messages), reply_wanted(sampling, options, ends(require_own(self.tokenizer)))

    @property
    @abstractmethod
    def tokenizer(self) -> TextTokenizer: ...

    @abstractmethod
    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, constraint: Constraint | None, adapter: str | None
    ) -> list[Completion]: ...

    @abstractmethod
    async def agenerate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, constraint: Constraint | None, adapter: str | None
    ) -> list[Completion]: ...

    @abstractmethod
    def stream(
        self, prompt: Prompt, sampling: Sampling, *, constraint: Constraint | None, adapter: str | None
    ) -> Iterator[str]: ...

    @abstractmethod
    def astream(
        self, prompt: Prompt, sampling: Sampling, *, constraint: Constraint | None, adapter: str | None
    ) -> AsyncIterator[str]: ...


def reply_wanted(sampling: Sampling | None, options: Mapping[str, Any], ends: Collection[int]) -> Sampling:
    """What is asked of a reply, as a whole. Raises ValueError if it is several texts.

    ends: tokens at which it ends besides those that are asked for.
    """
    wanted = of_one_text(asked(sampling, options, stop_ids=()), "a reply")
    return replace(wanted, stop_token_ids=(*wanted.stop_token_ids, *ends))


def word_ends(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end the words of an assistant's turn: those that end it, and that of a tool call."""
    return turn_ends(tokenizer) | {tokenizer.control["<|tool_call|>"]}


def reply_of(tokenizer: Tokenizer, written: Completion) -> Reply:
    """Words and tool call of what was written, as far as it is shown: up to a stop string, in whichever it is."""
    reply = replace(parse_assistant(tokenizer, written.tokens), complete=written.ending == "stop")
    if written.text == tokenizer.decode(written.tokens):
        return reply
    # A stop string may begin in the words and end in the call: then there is no call.
    in_call = len(written.text) - len(reply.content)
    call = None if reply.tool_call is None or in_call < 0 else reply.tool_call[:in_call]
    return replace(reply, content=reply.content[: len(written.text)], tool_call=call)
