"""Conversations with an engine: what a reply shows, what may be asked of it, and where it ends."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from talking import WORDS, is_free, talker

import groundup as gu
from groundup.engine.completion import Completion
from groundup.engine.conversing import reply_of
from groundup.engine.sampling import Sampling
from groundup.engine.text import StoppingText
from groundup.tokens.chat import Reply

MESSAGES = [{"role": "user", "content": "Hello"}]
# A reply of small letters alone.
OTHERS = set(range(WORDS.vocab_size)) - set(WORDS.encode("abcdefghijklmnopqrstuvwxyz"))
LIVELY: dict[str, Any] = {"temperature": 1.0, "seed": 4, "max_tokens": 30, "bad_words": [[token] for token in OTHERS]}


@pytest.fixture(scope="module")
def engine() -> gu.Engine:
    return gu.Engine(talker(), WORDS)


async def whole(stream: AsyncIterator[str]) -> str:
    return "".join([text async for text in stream])


def test_all_verbs_show_a_reply_up_to_a_stop_string(engine: gu.Engine):
    free = engine.chat(MESSAGES, **LIVELY).content
    stop = free[12:15]
    asked = {**LIVELY, "stop": [stop]}
    shown = free[: free.index(stop)]
    reply = engine.chat(MESSAGES, **asked)
    assert (reply.content, reply.tool_call, reply.complete) == (shown, None, True)
    assert asyncio.run(engine.achat(MESSAGES, **asked)) == reply
    assert "".join(engine.stream_chat(MESSAGES, **asked)) == shown
    assert asyncio.run(whole(engine.astream_chat(MESSAGES, **asked))) == shown


@pytest.mark.parametrize(
    ("stop", "content", "call"),
    [("b", "a", None), ("bc", "a", None), ("cd", "ab", ""), ("e", "ab", "cd"), ("x", "ab", "cdef")],
)
def test_a_stop_string_ends_words_or_call_wherever_it_is(stop: str, content: str, call: str | None):
    text, tokens, shown = StoppingText(WORDS, [stop]), [], ""
    for token in [*WORDS.encode("ab"), WORDS.control["<|tool_call|>"], *WORDS.encode("cdef")]:
        if not text.stopped:
            tokens.append(token)
            shown += text.push(token)
    reply = reply_of(WORDS, Completion([], tokens, shown + text.finish(), [], "stop", 0))
    assert reply == Reply(content, call, complete=True)


def test_a_reply_can_be_asked_for_with_a_sampling_as_a_whole(engine: gu.Engine):
    reply, lively = engine.chat(MESSAGES, **LIVELY), Sampling(**LIVELY)
    assert engine.chat(MESSAGES, lively) == reply
    assert asyncio.run(engine.achat(MESSAGES, sampling=lively)) == reply
    assert "".join(engine.stream_chat(MESSAGES, sampling=lively)) == reply.content
    assert asyncio.run(whole(engine.astream_chat(MESSAGES, lively))) == reply.content
    with pytest.raises(ValueError, match=r"give `sampling` or its fields \(seed\), not both"):
        engine.chat(MESSAGES, lively, seed=3)


def test_a_reply_ends_at_stop_tokens_of_ones_own_and_at_the_end_of_the_turn(engine: gu.Engine):
    free = engine.chat(MESSAGES, **LIVELY).content
    (own,) = WORDS.encode(free[8])
    reply = engine.chat(MESSAGES, **LIVELY, stop_token_ids=[own])
    assert reply.content == free[: free.index(free[8])] and reply.complete
    ended = engine.chat(MESSAGES, stop_token_ids=[own], logit_bias={WORDS.end_id: 100.0})
    assert ended.content == "" and ended.complete
    lively = Sampling(**LIVELY, stop_token_ids=[own])
    assert "".join(engine.stream_chat(MESSAGES, lively)) == reply.content


@pytest.mark.parametrize(
    ("asked", "texts"), [({"n": 2, "temperature": 1.0}, 2), ({"best_of": 3, "temperature": 1.0}, 3), ({"beams": 4}, 4)]
)
def test_a_reply_is_one_text_and_several_are_refused_at_once(asked: dict[str, Any], texts: int, engine: gu.Engine):
    asks = (
        engine.chat,
        lambda *messages, **asked: asyncio.run(engine.achat(*messages, **asked)),
        engine.stream_chat,
        engine.astream_chat,
    )
    for ask in asks:
        with pytest.raises(ValueError, match=f"a reply is of one text, not of {texts}: `n`, `best_of` and `beams` are"):
            ask(MESSAGES, **asked)
    assert is_free(engine)
