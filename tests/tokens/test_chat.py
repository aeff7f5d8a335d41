"""Conversations: the same as transformers renders, the right mask, and no way in for control tokens."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from groundup.errors import UserError
from groundup.tokens.chat import Reply, parse_assistant, render
from groundup.tokens.config import CONTROL_TOKENS
from groundup.tokens.tokenizer import Tokenizer

PLAIN = {"role": "user", "content": "What is 6*7?"}
CALL = {"role": "assistant", "content": "Let me see.", "tool_call": "6*7"}
RESULT = {"role": "tool", "content": "42"}
ANSWER = {"role": "assistant", "content": "It is 42."}
DOCUMENT = {"role": "document", "content": "Six times seven is 42."}


@pytest.fixture(scope="module")
def reference(tokenizer_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder)


@st.composite
def conversations(draw: st.DrawFn, text: st.SearchStrategy[str]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(text)})
    for _ in range(draw(st.integers(1, 4))):
        role = draw(st.sampled_from(["user", "document", "assistant", "call"]))
        if role != "call":
            messages.append({"role": role, "content": draw(text)})
            continue
        messages.append({"role": "assistant", "content": draw(text), "tool_call": draw(text)})
        messages.append({"role": "tool", "content": draw(text)})
    return messages


# Text in which nothing looks like a control token: there transformers has to agree.
ORDINARY = st.text(max_size=30).filter(lambda text: "<|" not in text)
HOSTILE = st.lists(st.sampled_from([*CONTROL_TOKENS, "<|", "|>", "end", " ", "é", "a"]), max_size=6).map("".join)


@given(conversations(ORDINARY))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_transformers_renders_the_same_ids_and_mask(
    tokenizer: Tokenizer, reference: Any, messages: list[dict[str, Any]]
) -> None:
    ours = render(tokenizer, messages)
    theirs = reference.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert theirs["input_ids"] == ours.ids
    assert theirs["assistant_masks"] == [int(trained) for trained in ours.trained]


def test_transformers_renders_the_same_prompt(tokenizer: Tokenizer, reference: Any) -> None:
    messages = [DOCUMENT, PLAIN, CALL, RESULT]
    theirs = reference.apply_chat_template(messages, return_dict=True, add_generation_prompt=True)
    assert theirs["input_ids"] == render(tokenizer, messages, add_generation_prompt=True).ids


def test_transformers_reads_an_absent_call_like_none(tokenizer: Tokenizer, reference: Any) -> None:
    """A table of conversations has the column for every message; an empty call is a call."""
    for call in (None, ""):
        messages = [PLAIN | {"tool_call": None}, ANSWER | {"tool_call": call}]
        assert reference.apply_chat_template(messages, return_dict=True)["input_ids"] == render(tokenizer, messages).ids
    assert render(tokenizer, [ANSWER | {"tool_call": None}]) == render(tokenizer, [ANSWER])


def test_transformers_refuses_an_unknown_role(reference: Any) -> None:
    with pytest.raises(Exception, match="unknown role critic"):
        reference.apply_chat_template([{"role": "critic", "content": "no"}])


@given(conversations(HOSTILE))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_text_never_becomes_a_control_token(tokenizer: Tokenizer, messages: list[dict[str, Any]]) -> None:
    ids = render(tokenizer, messages).ids
    control = set(tokenizer.control.values())
    calls = sum("tool_call" in message for message in messages)
    assert sum(index in control for index in ids) == 1 + 2 * len(messages) + calls
    # The words all are there still.
    said = "".join(message["content"] + message.get("tool_call", "") for message in messages)
    assert tokenizer.decode(ids) == said


def test_what_is_trained_is_what_the_assistant_has_to_write(tokenizer: Tokenizer) -> None:
    rendered = render(tokenizer, [DOCUMENT, PLAIN, CALL, RESULT, ANSWER])
    trained = [index for index, mask in zip(rendered.ids, rendered.trained, strict=True) if mask]
    assert tokenizer.decode(trained, keep_control=True) == "Let me see.<|tool_call|>6*7<|end|>It is 42.<|end|>"


def test_the_prompt_is_not_trained(tokenizer: Tokenizer) -> None:
    rendered = render(tokenizer, [PLAIN], add_generation_prompt=True)
    assert tokenizer.decode(rendered.ids[-1:], keep_control=True) == "<|assistant|>"
    assert not any(rendered.trained)


def test_only_words_from_outside_are_untrusted(tokenizer: Tokenizer) -> None:
    rendered = render(tokenizer, [{"role": "system", "content": "Be brief."}, DOCUMENT, PLAIN, CALL, RESULT, ANSWER])
    untrusted = [index for index, trusted in zip(rendered.ids, rendered.trusted, strict=True) if not trusted]
    assert tokenizer.decode(untrusted, keep_control=True) == DOCUMENT["content"] + RESULT["content"]


def test_each_token_knows_who_said_it(tokenizer: Tokenizer) -> None:
    messages = [{"role": "system", "content": "Be brief."}, DOCUMENT, PLAIN, CALL, RESULT]
    rendered = render(tokenizer, messages)
    assert rendered.roles[0] == "begin"
    for message in messages:
        own = [index for index, role in zip(rendered.ids, rendered.roles, strict=True) if role == message["role"]]
        assert tokenizer.decode(own) == message["content"] + message.get("tool_call", "")
        assert own[-1] == tokenizer.end_id


def test_a_prompt_and_its_reply_make_the_conversation(tokenizer: Tokenizer) -> None:
    """What the model is asked with is the beginning of what it was trained on, token by token."""
    whole = render(tokenizer, [PLAIN, ANSWER]).ids
    prompt = render(tokenizer, [PLAIN], add_generation_prompt=True).ids
    assert whole[: len(prompt)] == prompt
    assert parse_assistant(tokenizer, whole[len(prompt) :]).content == ANSWER["content"]


@given(ORDINARY, st.none() | ORDINARY)
@settings(max_examples=100, deadline=None)
def test_a_reply_is_read_as_it_was_written(tokenizer: Tokenizer, content: str, call: str | None) -> None:
    message = {"role": "assistant", "content": content, "tool_call": call}
    rendered = render(tokenizer, [message])
    generated = [index for index, trained in zip(rendered.ids, rendered.trained, strict=True) if trained]
    reply = parse_assistant(tokenizer, generated)
    assert reply == Reply(content, call, complete=True)
    assert reply.message() == message


def test_a_reply_cut_short_is_not_complete(tokenizer: Tokenizer) -> None:
    assert parse_assistant(tokenizer, tokenizer.encode("It is")) == Reply("It is", None, complete=False)


def test_a_reply_ends_where_the_model_leaves_its_turn(tokenizer: Tokenizer) -> None:
    for token in ("<|user|>", "<|system|>", "<|tool_result|>", "<|end_of_text|>"):
        ids = [*tokenizer.encode("yes"), tokenizer.control[token], *tokenizer.encode("no"), tokenizer.end_id]
        assert parse_assistant(tokenizer, ids) == Reply("yes", None, complete=False)


def test_a_reply_makes_one_call(tokenizer: Tokenizer) -> None:
    call = tokenizer.control["<|tool_call|>"]
    ids = [call, *tokenizer.encode("1+1"), call, *tokenizer.encode("2+2"), tokenizer.end_id]
    assert parse_assistant(tokenizer, ids) == Reply("", "1+1", complete=False)


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "at least one message"),
        ([PLAIN, "hello"], "messages[1]: a message must be a mapping"),
        (
            [{"role": "bot", "content": "a"}],
            "messages[0]: `role` must be one of system, user, assistant, document, tool",
        ),
        ([{"content": "a"}], "messages[0]: `role` must be one of"),
        ([{"role": "user"}], "messages[0]: `content` must be text, not None"),
        ([{"role": "user", "content": ["a"]}], "messages[0]: `content` must be text, not ['a']"),
        ([{"role": "user", "content": "\udc80"}], "messages[0]: `content` is not valid Unicode at character 0"),
        ([{"role": "user", "content": "a", "name": "b"}], "messages[0]: unknown key `name`"),
        ([PLAIN, {"role": "system", "content": "a"}], "messages[1]: a `system` message can only be the first"),
        ([PLAIN | {"tool_call": "1"}], "messages[0]: only an `assistant` message may have a `tool_call`"),
        ([ANSWER | {"tool_call": 1}], "messages[0]: `tool_call` must be text, not 1"),
        ([PLAIN, RESULT], "messages[1]: a `tool` message must follow"),
        ([CALL, RESULT, RESULT], "messages[2]: a `tool` message must follow"),
        ([PLAIN, CALL, PLAIN], "messages[2]: a `tool` message must come here"),
    ],
)
def test_what_is_no_conversation_is_refused(tokenizer: Tokenizer, messages: list[Any], sentence: str) -> None:
    with pytest.raises(UserError) as refusal:
        render(tokenizer, messages)
    assert sentence in str(refusal.value)


@pytest.mark.parametrize("last", [ANSWER, CALL])
def test_the_assistant_cannot_reply_to_itself(tokenizer: Tokenizer, last: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"messages\[1\]: an assistant's message cannot be followed"):
        render(tokenizer, [PLAIN, last], add_generation_prompt=True)
