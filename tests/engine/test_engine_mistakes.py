"""Mistakes of whoever asks an engine: told in a sentence before anything is computed, and nobody else notices."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from talking import WORDS, is_free, talker
from tiny import VOCABULARY, greedy, hot_decoder, random_ids, tiny_config

import groundup as gu
from groundup.engine.constrain import GrammarCompiler
from groundup.engine.sampling import Sampling
from groundup.errors import UserError
from groundup.model.language_model import LanguageModel

PROMPTS = [random_ids(length, seed=length).tolist() for length in (7, 1)]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """In float64, where rounding never decides between two tokens."""
    return hot_decoder(tiny_config("llama", kv_heads=1, context=100))


# A prompt, what is asked of it, and what is said.
BROKEN: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no tokens": ([], {}, r"prompts\[1\]: a prompt needs at least one token"),
    "a strange token": (
        [3, VOCABULARY],
        {},
        rf"prompts\[1\]: {VOCABULARY} is no token of this model, whose ids are 0 … {VOCABULARY - 1}",
    ),
    "a negative token": ([-1], {}, r"prompts\[1\]: -1 is no token"),
    "too long": ([1] * 100, {}, r"prompts\[1\] has 100 tokens and leaves no room: the model holds 100"),
    "fractions": ([1.5, 2.0] * 10, {}, r"prompts\[1\]: \[1.5, 2.0, .*\] is no list of token ids"),
    "a tensor of fractions": (
        torch.ones(20),
        {},
        r"prompts\[1\]: a llama model goes on from a text or token ids, without a source",
    ),
    "a tensor with another dimension": (
        torch.ones(1, 9, dtype=torch.long),
        {},
        r"prompts\[1\]: tensor\(.* is no list of token ids",
    ),
    "a tensor with none": (torch.tensor(5), {}, r"prompts\[1\]: tensor\(5\) is no list of token ids"),
    "an array of fractions": (np.ones(20), {}, r"prompts\[1\]: array.* is no list of token ids"),
    "a matrix": (np.ones((2, 9), dtype=int), {}, r"prompts\[1\]: array.* is no list of token ids"),
    "an integer beyond 64 bits": ([2**70], {}, r"prompts\[1\]: .* is no list of token ids"),
    "letters": (["a", "b"], {}, r"prompts\[1\]: .'a', 'b'. is no list of token ids"),
    "bytes": (b"12345678", {}, r"prompts\[1\]: b'12345678' is no list of token ids"),
    "a mapping": ({3: 4}, {}, r"prompts\[1\]: {3: 4} is no list of token ids"),
    "None": (None, {}, r"prompts\[1\]: None is no list of token ids"),
    "a number": (7, {}, r"prompts\[1\]: 7 is no list of token ids"),
    "words without a tokenizer": ("abc", {}, "this engine has a model without a tokenizer"),
    "a stop string without a tokenizer": ([1], {"stop": ["x"]}, "this engine has a model without a tokenizer"),
    "a stop that is no list": ([1], {"stop": "x"}, "`stop` must be a list of texts that are not empty, not 'x'"),
    "a stop of another type": ([1], {"stop": [5]}, r"`stop` must be a list of texts that are not empty, not \[5\]"),
    "a strange stop token": ([1], {"stop_token_ids": [64]}, "`stop_token_ids` has the token id 64, but the vocabulary"),
    "a stop token of another type": (
        [1],
        {"stop_token_ids": ["x"]},
        "a token id in `stop_token_ids` must be an integer",
    ),
    "a strange bias": ([1], {"logit_bias": {64: 1.0}}, "`logit_bias` has the token id 64"),
    "out of range": ([1], {"temperature": -1}, "`temperature` must be a number of at least 0, not -1"),
    "no answer": ([1], {"n": 0}, "`n` must be an integer of at least 1, not 0"),
    "more than the cache": ([1] * 4, {"max_tokens": 78}, "a text of up to 81 tokens does not fit .* which holds 80"),
    "no constraint": ([1], {"constraint": "yes"}, "`constraint` must be made by a `GrammarCompiler`, not 'yes'"),
    "another tokenizer's constraint": (
        [1],
        {"constraint": GrammarCompiler(WORDS).choices(["yes"])},
        f"the constraint is for a tokenizer of {WORDS.vocab_size} tokens, but the model has only {VOCABULARY}; make it",
    ),
    "no adapter": ([1], {"adapter": "mine"}, "there is no adapter `mine`"),
    "an adapter of another type": ([1], {"adapter": ["mine"]}, r"there is no adapter `.'mine'.`; none has been added"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_request_fails_alone(name: str, model: LanguageModel):
    """It is told before anything of it is computed; a text that runs meanwhile goes on as if nobody had asked."""
    prompt, options, message = BROKEN[name]
    engine = gu.Engine(model, stop_ids=[], cache_tokens=80)
    running = engine.pieces(PROMPTS[0], max_tokens=20)
    tokens = [next(running).choice.token]
    with pytest.raises((ValueError, UserError), match=message):
        engine.generate([PROMPTS[1], prompt], **{"max_tokens": 4} | options)
    tokens += [piece.choice.token for piece in running]
    assert tokens == greedy(model, PROMPTS[0], 20)
    assert is_free(engine)


@pytest.mark.parametrize("form", ["regex", "lark", "json_schema"])
def test_a_grammar_that_cannot_be_compiled_fails_alone(form: str):
    speaker = talker()
    engine = gu.Engine(speaker, WORDS, stop_ids=[])
    running = engine.pieces(PROMPTS[0], max_tokens=20)
    tokens = [next(running).choice.token]
    broken = {"regex": "(", "lark": "start: nowhere", "json_schema": {"type": "nothing"}}[form]
    with pytest.raises(UserError, match="cannot be compiled: "):
        engine.generate(["abc"], constraint=getattr(GrammarCompiler(WORDS), form)(broken))
    assert tokens + [piece.choice.token for piece in running] == greedy(speaker, PROMPTS[0], 20)


def test_other_mistakes_are_told_in_a_sentence(model: LanguageModel):
    engine = gu.Engine(model, stop_ids=[], cache_tokens=32)
    with pytest.raises(ValueError, match="a list of texts, not one text"):
        engine.generate("abc")
    with pytest.raises(ValueError, match="`texts` must be a list of texts, not 5"):
        engine.score(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`texts` must be a list of texts, not one text"):
        engine.embed("abc")
    with pytest.raises(ValueError, match=r"`prompts` must be a list of texts, not \{'a': 1"):
        engine.generate({"a": 1})  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"`sampling` must be a `Sampling`, or its fields be given by name, not \{'n': 2"
    ):
        engine.generate([[1]], {"n": 2})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"give `sampling` or its fields \(max_tokens\), not both"):
        engine.generate([[1]], Sampling(), max_tokens=3)
    with pytest.raises(
        ValueError, match=r"there is no option `temprature` here: .* accepted are max_tokens, min_tokens"
    ):
        engine.generate([[1]], Sampling(), temprature=3)
    with pytest.raises(
        ValueError, match="there is no option `echo` here: besides `constraint` and `adapter`, accepted"
    ):
        next(engine.stream([1], echo=True))
    with pytest.raises(ValueError, match="a stream is of one text, not of 2"):
        next(engine.pieces([1], n=2, temperature=1.0))
    with pytest.raises(ValueError, match="`pooling` must be one of mean, last"):
        engine.embed([[1]], pooling="max")
    assert engine.generate([]) == [] and engine.score([]) == [] and engine.embed([]).shape == (0, 32)
    assert is_free(engine)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_ids": 5}, "`stop_ids`: 5 is no list of token ids"),
        ({"stop_ids": [1.5]}, "`stop_ids`: .1.5. is no list of token ids"),
        ({"stop_ids": [3, 10**6]}, "`stop_ids`: 1000000 is no token of this model, whose ids are 0 … 63"),
        ({"stop_ids": [-1]}, "`stop_ids`: -1 is no token of this model, whose ids are 0 … 63"),
        ({"tokenizer": "folder"}, "`tokenizer` must be a `Tokenizer`, not 'folder'"),
        ({"speculate": "yes"}, "`speculate` must be a `PromptLookup` or a `DraftModel`, not 'yes'"),
        ({"cache_type": ["int8"]}, r"`cache_type` must be one of float32, bfloat16, int8, not \['int8'\]"),
    ],
)
def test_an_engine_that_cannot_be_is_refused_in_a_sentence(model: LanguageModel, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        gu.Engine(model, **options)


@pytest.mark.parametrize("name", [3, None, b"folder", ["folder"], torch.nn.Linear(1, 1)])
def test_what_names_no_model_is_refused_in_a_sentence(name: Any):
    accepted = "`model` must be a model folder, `hf:org/name` or a model of texts, not "
    with pytest.raises(ValueError, match=accepted) as found:
        gu.Engine(name)
    assert len(str(found.value)) < 130
    with pytest.raises(ValueError, match=accepted):
        gu.DraftModel(name)


def test_a_device_of_another_type_is_refused_in_a_sentence(tmp_path: Path):
    with pytest.raises(UserError, match="`device` must be cpu, cuda, or cuda:1 and so on, not 3"):
        gu.Engine(tmp_path, device=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "folder", "message"),
    [
        (3, 3, "the `name` of an adapter must be a text that is not empty, not 3"),
        ("", "folder", "the `name` of an adapter must be a text that is not empty, not ''"),
        ("mine", 3, "the `folder` of adapter `mine` must be a path, not 3"),
        ("mine", None, "the `folder` of adapter `mine` must be a path, not None"),
    ],
)
def test_what_is_no_adapter_is_refused_in_a_sentence(name: Any, folder: Any, message: str, model: LanguageModel):
    engine = gu.Engine(model, stop_ids=[])
    with pytest.raises(ValueError, match=message):
        engine.add_adapter(name, folder)
    with pytest.raises(ValueError, match=r"there is no adapter `\['mine'\]`; none has been added"):
        engine.drop_adapter(["mine"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (3, "messages: a conversation must be a list of messages, not 3"),
        ({"role": "user", "content": "hi"}, "messages: a conversation must be a list of messages, not {"),
        ([{"role": ["user"], "content": "hi"}], r"messages\[0\]: `role` must be one of system, .*, not \['user'\]"),
    ],
)
def test_what_is_no_conversation_is_refused_in_a_sentence(messages: Any, message: str):
    engine = gu.Engine(talker(), WORDS, stop_ids=[])
    for ask in (engine.chat, engine.stream_chat, engine.chat_prompt):
        with pytest.raises(UserError, match=message):
            ask(messages)
