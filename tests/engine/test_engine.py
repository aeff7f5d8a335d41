"""`groundup.Engine`: what is asked is answered, alone or in company, blocking or awaited; mistakes hurt nobody else."""

import asyncio
import re
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import VOCABULARY, greedy, hot_decoder, random_ids, tiny_config

import groundup as gu
from groundup.engine.cache import KeyValueCache
from groundup.engine.choose import make_chooser
from groundup.engine.completion import Completion
from groundup.engine.constrain import GrammarCompiler
from groundup.engine.sampling import Sampling
from groundup.errors import UserError
from groundup.model.config import ModelConfig
from groundup.model.language_model import LanguageModel
from groundup.model.presets import build_config
from groundup.model.rotary import DynamicScaling
from groundup.tokens.batches import Rows
from groundup.tokens.chat import render, turn_ends
from groundup.tokens.config import CONTROL_TOKENS, PATTERNS
from groundup.tokens.tokenizer import Tokenizer, train
from groundup.train.learner import Learner

PROMPTS = [random_ids(length, seed=length).tolist() for length in (7, 1, 40, 3, 33)]
WORDS = Tokenizer(train(iter([["any text"]]), len(CONTROL_TOKENS) + 256, PATTERNS["code"]))


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """In float64, where rounding never decides between two tokens."""
    return hot_decoder(tiny_config("llama", kv_heads=1, context=100))


@pytest.fixture(scope="module")
def talker() -> LanguageModel:
    """A model whose tokens are bytes."""
    config = build_config("llama", depth=2, vocab_size=WORDS.vocab_size, context=120, width=32, head_dim=16)
    assert isinstance(config, ModelConfig)
    return hot_decoder(config)


def _free(engine: gu.Engine) -> bool:
    """Whether no block is held, once the engine's thread has done all that it was asked before."""
    done = threading.Event()
    engine._worker.do(done.set)
    assert done.wait(60)
    return engine._pool.available == engine._pool.count


def test_together_is_one_by_one_and_the_likeliest_token_each_time(model: LanguageModel):
    expected = [greedy(model, prompt, 30) for prompt in PROMPTS]
    assert len(set(expected[0])) > 5
    engine = gu.Engine(model, stop_ids=[], cache_tokens=160, step_tokens=24, most_running=4)
    assert [one.tokens for one in engine.generate(PROMPTS, max_tokens=30)] == expected
    assert [engine.generate([prompt], max_tokens=30)[0].tokens for prompt in PROMPTS] == expected
    assert [[piece.choice.token for piece in engine.pieces(prompt, max_tokens=30)] for prompt in PROMPTS] == expected
    assert _free(engine)


def test_a_seed_gives_the_same_text_whatever_else_is_computed(model: LanguageModel):
    settings = {"max_tokens": 20, "temperature": 1.0, "seed": 4}
    alone = gu.Engine(model, stop_ids=[]).generate(PROMPTS[2:3], **settings)[0]
    engine = gu.Engine(model, stop_ids=[], cache_tokens=112, step_tokens=7, most_running=3)
    crowd = engine.generate([*PROMPTS[:2], PROMPTS[2][:39], PROMPTS[2], PROMPTS[4]], **settings)
    assert crowd[3].tokens == alone.tokens
    again = engine.generate(PROMPTS[2:3], **settings)[0]
    assert again.tokens == alone.tokens and again.cached == 32
    other = engine.generate(PROMPTS[2:3], **{**settings, "seed": 5})[0]
    assert other.tokens != alone.tokens


def test_copies_draw_their_own_numbers_and_their_prompt_is_computed_once(model: LanguageModel):
    calls: list[int] = []
    engine = gu.Engine(model, stop_ids=[])
    watch = model.layers[0].register_forward_pre_hook(lambda _, arguments: calls.append(arguments[0].shape[1]))
    three = engine.generate([PROMPTS[2]], n=3, max_tokens=9, temperature=1.0, seed=7)
    watch.remove()
    assert calls == [40] + [1] * 8
    sampling = Sampling(max_tokens=9, temperature=1.0, seed=7)
    expected = [_written_alone(model, PROMPTS[2], sampling, stream) for stream in range(3)]
    assert [one.tokens for one in three] == expected
    assert len({tuple(one) for one in expected}) == 3


def _written_alone(model: LanguageModel, prompt: list[int], sampling: Sampling, stream: int) -> list[int]:
    """The tokens of one text, each from all before it, without a cache."""
    chooser = make_chooser(sampling, prompt).fork(stream)
    for _ in range(sampling.max_tokens):
        with torch.no_grad():
            chooser.choose(model(torch.tensor([prompt + chooser.answer]))[0, -1])
    return chooser.answer


def test_log_probabilities_are_those_of_the_model(model: LanguageModel):
    (one,) = gu.Engine(model, stop_ids=[]).generate([PROMPTS[0]], max_tokens=12, temperature=1.0, seed=2)
    with torch.no_grad():
        logits_tv = model(torch.tensor([one.prompt + one.tokens]))[0].log_softmax(-1)
    expected = [float(logits_tv[len(one.prompt) - 1 + place, token]) for place, token in enumerate(one.tokens)]
    torch.testing.assert_close(one.logprobs, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("preset", ["groundup", "gemma2", "mamba2"])
def test_scores_are_the_trainers_loss(preset: str):
    model = hot_decoder(tiny_config(preset, context=100))
    texts = [random_ids(length, seed=length).tolist() for length in (90, 2, 31)]
    scores = gu.Engine(model, stop_ids=[], step_tokens=20, most_running=2).score(texts)
    for text, score in zip(texts, scores, strict=True):
        ids = np.array([text])
        places = np.arange(len(text) - 1)[None]
        rows = Rows(ids[:, :-1], ids[:, 1:], places, np.zeros_like(places, dtype=np.int32))
        assert -score.total == pytest.approx(float(Learner(model).loss(rows).total.detach()), rel=1e-10)
        assert len(score.logprobs) == len(text) - 1 and score.tokens == text


def test_a_text_ends_before_a_stop_token_and_at_its_limits(model: LanguageModel):
    engine = gu.Engine(model, stop_ids=[])
    (free,) = engine.generate([PROMPTS[0]], max_tokens=25)
    stop = free.tokens[6]
    (one,) = engine.generate([PROMPTS[0]], max_tokens=25, stop_token_ids=(stop,))
    assert (one.tokens, one.ending) == (free.tokens[: free.tokens.index(stop)], "stop")
    assert gu.Engine(model, stop_ids=[stop]).generate([PROMPTS[0]], max_tokens=25)[0].tokens == one.tokens
    assert (free.ending, len(free.tokens)) == ("length", 25)
    (full,) = engine.generate([PROMPTS[2]], max_tokens=500)
    assert len(full.tokens) == 60 and full.ending == "length"


def test_text_streams_in_whole_characters_up_to_a_stop_string(talker: LanguageModel):
    engine = gu.Engine(talker, WORDS, stop_ids=[])
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
    config = build_config("llama", depth=2, vocab_size=WORDS.vocab_size + 50, context=120, width=32, head_dim=16)
    engine = gu.Engine(hot_decoder(config), WORDS, stop_ids=[])
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


def test_texts_with_a_form_and_free_ones_go_together(talker: LanguageModel):
    engine = gu.Engine(talker, WORDS, stop_ids=[])
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
    assert _free(engine)


BROKEN = [
    ([], "prompts.1.: a prompt needs at least one token"),
    ([3, VOCABULARY], f"prompts.1.: {VOCABULARY} is no token of this model, whose ids are 0 … {VOCABULARY - 1}"),
    ([-1], "prompts.1.: -1 is no token"),
    ([1] * 100, "prompts.1. has 100 tokens and leaves no room: the model holds 100"),
]


@pytest.mark.parametrize(("prompt", "message"), BROKEN)
def test_a_broken_prompt_fails_alone(model: LanguageModel, prompt: list[int], message: str):
    engine = gu.Engine(model, stop_ids=[])
    expected = [piece.choice.token for piece in engine.pieces(PROMPTS[0], max_tokens=20)]
    other = engine.pieces(PROMPTS[0], max_tokens=20)
    tokens = [next(other).choice.token]
    with pytest.raises(ValueError, match=message):
        engine.generate([PROMPTS[1], prompt])
    tokens += [piece.choice.token for piece in other]
    assert tokens == expected
    assert _free(engine)


def test_other_mistakes_are_told_in_a_sentence(model: LanguageModel):
    engine = gu.Engine(model, stop_ids=[], cache_tokens=32)
    with pytest.raises(ValueError, match="up to 33 tokens does not fit into the cache of this engine, which holds 32"):
        engine.generate([[1] * 4], max_tokens=30)
    with pytest.raises(ValueError, match="`n` must be"):
        engine.generate([[1]], n=0)
    with pytest.raises(ValueError, match="`temperature` must be a number of at least 0"):
        engine.generate([[1]], temperature=-1)
    with pytest.raises(ValueError, match="a list of texts, not one text"):
        engine.generate("abc")
    with pytest.raises(UserError, match="without a tokenizer"):
        engine.generate(["abc"])
    with pytest.raises(UserError, match="without a tokenizer"):
        engine.generate([[1]], stop=["x"])
    with pytest.raises(ValueError, match="`stop`"):
        engine.generate([[1]], stop="x")
    with pytest.raises(ValueError, match=r"give `sampling` or its fields \(max_tokens\), not both"):
        engine.generate([[1]], Sampling(), max_tokens=3)
    with pytest.raises(ValueError, match="a stream is of one text, not of 2"):
        next(engine.pieces([1], n=2, temperature=1.0))
    with pytest.raises(ValueError, match="`pooling` must be one of mean, last"):
        engine.embed([[1]], pooling="max")
    assert engine.generate([]) == [] and engine.score([]) == [] and engine.embed([]).shape == (0, 32)
    assert _free(engine)


def test_what_has_to_give_way_comes_back_from_the_host(model: LanguageModel):
    """Beginnings that other texts have displaced are found again, and the texts are the same."""
    engine = gu.Engine(model, stop_ids=[], cache_tokens=112, host_tokens=320, step_tokens=24, most_running=4)
    plain = gu.Engine(model, stop_ids=[], cache_tokens=112, step_tokens=24, most_running=4)
    expected = [greedy(model, prompt, 30) for prompt in PROMPTS]
    for _ in range(2):
        assert [one.tokens for one in engine.generate(PROMPTS, max_tokens=30)] == expected
        plain.generate(PROMPTS, max_tokens=30)
    assert [one.cached for one in engine.generate(PROMPTS, max_tokens=30)] == [0, 0, 32, 0, 32]
    assert sum(one.cached for one in plain.generate(PROMPTS, max_tokens=30)) < 64
    assert _free(engine)


def test_a_stream_that_is_closed_frees_its_blocks(model: LanguageModel):
    engine = gu.Engine(model, stop_ids=[])
    stream = engine.pieces(PROMPTS[2], max_tokens=50)
    next(stream)
    stream.close()
    assert _free(engine)


def test_many_tasks_share_the_engine_and_those_cancelled_are_gone(model: LanguageModel):
    engine = gu.Engine(model, stop_ids=[], cache_tokens=320, step_tokens=24, most_running=6)
    expected = [one.tokens for one in engine.generate(PROMPTS, max_tokens=30)]

    async def read(prompt: list[int]) -> list[int]:
        return [piece.choice.token async for piece in engine.apieces(prompt, max_tokens=30)]

    async def main() -> None:
        pairs = [engine.agenerate([PROMPTS[4]], n=2, temperature=1.0, max_tokens=60) for _ in range(3)]
        doomed = [asyncio.create_task(pair) for pair in pairs]
        stream = engine.astream(PROMPTS[4], max_tokens=60)
        reading = asyncio.create_task(anext(stream, None))
        tasks = [asyncio.create_task(read(prompt)) for prompt in PROMPTS]
        together = asyncio.create_task(engine.agenerate(PROMPTS, max_tokens=30))
        await asyncio.sleep(0)
        for task in (*doomed, reading):
            task.cancel()
        assert await asyncio.gather(*tasks) == expected
        assert [one.tokens for one in await together] == expected
        ends = await asyncio.gather(*doomed, reading, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends)
        with pytest.raises(ValueError, match="at least one token"):
            await engine.agenerate([[]])

    asyncio.run(main())
    assert _free(engine)


def test_scores_and_vectors_are_awaited_beside_texts(model: LanguageModel):
    engine = gu.Engine(model, stop_ids=[], step_tokens=24, most_running=4)
    scores, vectors_bd = engine.score(PROMPTS[2:]), engine.embed(PROMPTS)
    expected = [one.tokens for one in engine.generate(PROMPTS, max_tokens=20)]

    async def main() -> None:
        texts, found, vectors, none = await asyncio.gather(
            engine.agenerate(PROMPTS, max_tokens=20),
            engine.ascore(PROMPTS[2:]),
            engine.aembed(PROMPTS),
            engine.aembed([]),
        )
        assert [one.tokens for one in texts] == expected
        for one, other in zip(found, scores, strict=True):
            assert one.tokens == other.tokens and one.logprobs == pytest.approx(other.logprobs, rel=1e-9)
        torch.testing.assert_close(vectors, vectors_bd, rtol=1e-9, atol=1e-9)
        assert none.shape == (0, 32)
        for ask in (engine.ascore, engine.aembed):
            with pytest.raises(ValueError, match=r"texts\[1\]: a prompt needs at least one token"):
                await ask([[1], []])

    asyncio.run(main())
    assert _free(engine)


def test_what_is_no_longer_awaited_is_not_computed(model: LanguageModel):
    """Scores of 40 texts of 90 tokens need 150 steps, their vectors 40 calls: after the first, no more begin."""
    texts = [random_ids(90, seed=seed).tolist() for seed in range(40)]
    engine = gu.Engine(model, stop_ids=[], step_tokens=24, most_running=4)
    calls: list[int] = []
    begun, cancelled = threading.Event(), threading.Event()

    def watch(_: object, arguments: tuple[torch.Tensor, ...]) -> None:
        calls.append(arguments[0].shape[1])
        begun.set()
        assert cancelled.wait(60)

    async def main(ask: Callable[..., Awaitable[object]]) -> None:
        task = asyncio.ensure_future(ask(texts))
        await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        cancelled.set()
        assert await asyncio.to_thread(_free, engine)

    handle = model.layers[0].register_forward_pre_hook(watch)
    for ask, most in ((engine.ascore, 4), (engine.aembed, 1)):
        asyncio.run(main(ask))
        assert 1 <= len(calls) <= most
        calls.clear()
        begun.clear()
        cancelled.clear()
    handle.remove()


def test_threads_share_the_engine(model: LanguageModel):
    engine = gu.Engine(model, stop_ids=[])
    expected = [one.tokens for one in engine.generate(PROMPTS, max_tokens=15)]
    found: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        found[number] = engine.generate([PROMPTS[number % 5]], max_tokens=15)[0].tokens

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(10)] == expected * 2
    assert _free(engine)


def test_frequencies_that_depend_on_the_length_are_those_of_each_text_alone():
    """Dynamic scaling turns by the last position of a call, which must be nobody else's."""
    config = tiny_config("llama", context=100)
    scaling = DynamicScaling(2.0, 16)
    layers = tuple(
        replace(one, mixer=replace(one.attention, rope=replace(one.attention.rope, scaling=scaling)))
        for one in config.layers
    )
    model = hot_decoder(replace(config, layers=layers))
    expected = [_greedy_with_a_cache(model, prompt, 20) for prompt in PROMPTS]
    engine = gu.Engine(model, stop_ids=[], step_tokens=16, most_running=4)
    assert [one.tokens for one in engine.generate(PROMPTS, max_tokens=20)] == expected


@torch.no_grad()
def _greedy_with_a_cache(model: LanguageModel, prompt: list[int], count: int) -> list[int]:
    """Keys stay turned by the frequencies of the call that they were computed in."""
    cache, ids, written = KeyValueCache(model), prompt, []
    for _ in range(count):
        ids = [int(model(torch.tensor([ids]), cache=cache)[0, -1].argmax())]
        written += ids
    return written


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
    if words.control["<|tool_call|>"] not in written.tokens:
        assert reply.content == written.text == "".join(engine.stream_chat(messages, max_tokens=12))
    assert words.end_id in turn_ends(words) and words.control["<|tool_call|>"] not in turn_ends(words)
    with pytest.raises(UserError, match="at least one message"):
        engine.chat([])
