"""An engine with a tokenizer: texts in and out, stop strings, forms, conversations."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from talking import WORDS, is_free, talker

import groundup as gu
from groundup.engine.completion import Completion
from groundup.engine.constrain import GrammarCompiler
from groundup.errors import UserError
from groundup.model.language_model import LanguageModel
from groundup.tokens.chat import render, turn_ends
from groundup.tokens.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def speaker() -> LanguageModel:
    """A model whose tokens are bytes."""
    return talker()


def test_text_streams_in_whole_characters_up_to_a_stop_string(speaker: LanguageModel):
    engine = gu.Engine(speaker, WORDS, stop_ids=[])
    (free,) = engine.generate(["Hello"], max_tokens=60, temperature=1.0, seed=1)
    assert free.prompt == [WORDS.bos_id, *WORDS.encode("Hello")]
    assert free.text == WORDS.decode(free.tokens)
    assert "".join(engine.stream("Hello", max_tokens=60, temperature=1.0, seed=1)) == free.text
    stop = free.text[10:12]
    cut = free.text[: free.text.index(stop)]
    (one,) = engine.generate(["Hello"], stop=[stop, "never there"], max_tokens=60, temperature=1.0, seed=1)
    assert (one.text, one.ending) == (cut, "stop")
    pieces = list(engine.stream("Hello", stop=[stop], max_tokens=60, temperature=1.0, seed=1))
    assert "".join(pieces) == cut and len(pieces) > 1


def test_tokens_beyond_the_tokenizers_vocabulary_spell_nothing():
    """The tables of many models have more rows than their tokenizers have tokens."""
    engine = gu.Engine(talker(more_tokens=50), WORDS, stop_ids=[])
    beyond = WORDS.vocab_size + 20
    asked = {"logit_bias": {beyond: 8.0}, "temperature": 1.5, "seed": 2, "max_tokens": 40}
    (one,) = engine.generate(["Hello"], **asked)
    inside = [token for token in one.tokens if token < WORDS.vocab_size]
    assert beyond in one.tokens and inside
    assert one.text == WORDS.decode(inside)
    assert engine.generate(["Hello"], stop=["never there"], **asked)[0].text == one.text
    assert "".join(engine.stream("Hello", **asked)) == one.text
    beams = engine.generate(["Hello"], beams=2, logit_bias={beyond: 100.0}, max_tokens=5)
    assert beams[0].tokens == [beyond] * 5 and beams[0].text == ""
    said = engine.chat([{"role": "user", "content": "Hello"}], logit_bias={beyond: 100.0}, max_tokens=5)
    assert said.content == ""


def test_texts_with_a_form_and_free_ones_go_together(speaker: LanguageModel):
    engine = gu.Engine(speaker, WORDS, stop_ids=[])
    settings = {"max_tokens": 30, "temperature": 1.0, "seed": 3}
    (free,) = engine.generate(["Hello"], **settings)
    form = GrammarCompiler(WORDS).regex("(yes|no)[0-9]{4}")

    async def main() -> list[list[Completion]]:
        bound = engine.agenerate(["Hello", "again"], constraint=form, n=2, **settings)
        return await asyncio.gather(bound, engine.agenerate(["Hello"], **settings))

    bound, others = asyncio.run(main())
    assert [one.tokens for one in others] == [free.tokens]
    assert all(re.fullmatch("(yes|no)[0-9]{4}", one.text) and one.ending == "stop" for one in bound)
    assert len({one.text for one in bound}) > 1
    assert is_free(engine)


def test_a_folder_brings_its_tokenizer_its_stops_and_its_chat_format(pretrained: Callable[[str], Path]):
    folder = pretrained("nanochat")
    engine = gu.Engine(folder)
    words = Tokenizer.load(folder)
    assert engine.stop_ids == {words.eos_id, words.end_id}
    messages = [{"role": "user", "content": "Hi"}]
    prompt = render(words, messages, add_generation_prompt=True).ids
    (written,) = engine.generate([prompt], max_tokens=12, stop_token_ids=tuple(turn_ends(words)))
    reply = engine.chat(messages, max_tokens=12)
    assert reply.complete == (written.ending == "stop")
    assert asyncio.run(engine.achat(messages, max_tokens=12)) == reply
    if words.control["<|tool_call|>"] not in written.tokens:
        assert reply.content == written.text == "".join(engine.stream_chat(messages, max_tokens=12))
    assert words.end_id in turn_ends(words) and words.control["<|tool_call|>"] not in turn_ends(words)
    with pytest.raises(UserError, match="at least one message"):
        engine.chat([])
