"""Conversations ⇄ tokens, each token with who said it, whether it is trained on, and whether it is trusted.

Control tokens are written here and nowhere else: a message's text is encoded by a tokenizer that cannot produce them,
so no text, wherever it came from, can open a turn or end one. `template.py` holds the form of a conversation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from reprlib import repr as shortened
from typing import Any

from groundup.errors import UserError
from groundup.tokens.template import TURN_TOKENS
from groundup.tokens.tokenizer import Tokenizer

# {"role": "system" | "user" | "assistant" | "document" | "tool", "content": text, "tool_call": text (assistant only)}
Message = Mapping[str, Any]

# Words that come from outside the conversation: they may inform the assistant, never instruct it.
_UNTRUSTED_ROLES = frozenset({"document", "tool"})
_KEYS = ("role", "content", "tool_call")


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens; the four lists have one entry per token.

    roles: the role of the turn the token belongs to; `begin` for `<|begin_of_text|>`.
    trained: whether the token is one that the assistant has to produce: its words, its tool call, and its `<|end|>`.
    trusted: False for the words of documents and tool results. Control tokens are always trusted.
    """

    ids: list[int] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    trained: list[bool] = field(default_factory=list)
    trusted: list[bool] = field(default_factory=list)

    def _append(self, ids: Sequence[int], role: str, trained: bool = False, trusted: bool = True) -> None:
        self.ids.extend(ids)
        self.roles.extend([role] * len(ids))
        self.trained.extend([trained] * len(ids))
        self.trusted.extend([trusted] * len(ids))


@dataclass(frozen=True)
class Reply:
    """What an assistant has generated.

    tool_call: the text of its call, None where it makes none.
    complete: whether it ended by itself (`<|end|>`) rather than being cut short.
    """

    content: str
    tool_call: str | None
    complete: bool

    def message(self) -> dict[str, Any]:
        """The reply as a message that continues the conversation."""
        return {"role": "assistant", "content": self.content, "tool_call": self.tool_call}


def turn_ends(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end an assistant's turn: whatever control token it writes, but for a tool call's."""
    return frozenset(index for token, index in tokenizer.control.items() if token != "<|tool_call|>")


def render(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = False) -> Rendered:
    """The tokens of a conversation, the same as transformers makes of ordinary text with `chat_template.jinja`.

    add_generation_prompt: end with `<|assistant|>`, from where the assistant is to go on.
    Raises UserError, naming the message, where the messages are not a conversation.
    """
    check_messages(messages)
    if add_generation_prompt and messages[-1]["role"] == "assistant":
        raise UserError(f"messages[{len(messages) - 1}]: an assistant's message cannot be followed by its own reply")
    control = tokenizer.control
    rendered = Rendered()
    rendered._append([tokenizer.bos_id], "begin")
    for message in messages:
        role = message["role"]
        trained, trusted = role == "assistant", role not in _UNTRUSTED_ROLES
        rendered._append([control[TURN_TOKENS[role]]], role)
        rendered._append(tokenizer.encode(message["content"]), role, trained, trusted)
        if message.get("tool_call") is not None:
            call = [control["<|tool_call|>"], *tokenizer.encode(message["tool_call"])]
            rendered._append(call, role, trained)
        rendered._append([tokenizer.end_id], role, trained)
    if add_generation_prompt:
        rendered._append([control["<|assistant|>"]], "assistant")
    return rendered


def parse_assistant(tokenizer: Tokenizer, ids: Sequence[int]) -> Reply:
    """Split what was generated after `<|assistant|>` into words and tool call.

    The reply ends at the first control token other than one `<|tool_call|>`: a model that writes `<|user|>` has left
    its own turn, and what follows is nobody's.
    """
    parts: list[list[int]] = [[]]
    ending: str | None = None
    for index in ids:
        name = tokenizer.control_name(index)
        if name is None:
            parts[-1].append(index)
        elif name == "<|tool_call|>" and len(parts) == 1:
            parts.append([])
        else:
            ending = name
            break
    content, *call = (tokenizer.decode(part) for part in parts)
    return Reply(content, call[0] if call else None, complete=ending == "<|end|>")


def check_messages(messages: Sequence[Message]) -> None:
    """Raises UserError, naming the first message that does not fit and what would."""
    if not isinstance(messages, Sequence):
        raise UserError(f"messages: a conversation must be a list of messages, not {shortened(messages)}")
    if not messages:
        raise UserError("messages: a conversation needs at least one message")
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]")
        role = message["role"]
        is_answer = index > 0 and messages[index - 1].get("tool_call") is not None
        if role == "system" and index > 0:
            raise UserError(f"messages[{index}]: a `system` message can only be the first")
        if role == "tool" and not is_answer:
            raise UserError(
                f"messages[{index}]: a `tool` message must follow an assistant's message with a `tool_call`"
            )
        if role != "tool" and is_answer:
            raise UserError(f"messages[{index}]: a `tool` message must come here, to answer the `tool_call` before it")


def _check_message(message: Message, where: str) -> None:
    if not isinstance(message, Mapping):
        raise UserError(f'{where}: a message must be a mapping such as {{"role": "user", "content": "…"}}')
    for key in message:
        if key not in _KEYS:
            raise UserError(f"{where}: unknown key `{key}`; a message has the keys {', '.join(_KEYS)}")
    if message.get("role") not in tuple(TURN_TOKENS):
        raise UserError(f"{where}: `role` must be one of {', '.join(TURN_TOKENS)}, not {message.get('role')!r}")
    _check_text(message.get("content"), f"{where}: `content`")
    if message.get("tool_call") is not None:
        if message["role"] != "assistant":
            raise UserError(f"{where}: only an `assistant` message may have a `tool_call`, not `{message['role']}`")
        _check_text(message["tool_call"], f"{where}: `tool_call`")


def _check_text(value: object, where: str) -> None:
    if not isinstance(value, str):
        raise UserError(f"{where} must be text, not {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # Half a surrogate pair: what Python makes of bytes on the command line that are not UTF-8.
        raise UserError(f"{where} is not valid Unicode at character {error.start}; send UTF-8 text") from None
