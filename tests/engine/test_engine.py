"""`groundup.Engine` on token ids: what is asked is answered as the model says it, alone or in company."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch
from talking import is_free
from tiny import greedy, hot_decoder, random_ids, tiny_config

import groundup as gu
from groundup.engine.choose import Choice, make_chooser
from groundup.engine.sampling import Sampling
from groundup.model.cache import KeyValueCache
from groundup.model.language_model import LanguageModel
from groundup.model.rotary import DynamicScaling
from groundup.tokens.batches import Rows
from groundup.train.learner import Learner

PROMPTS = [random_ids(length, seed=length).tolist() for length in (7, 1, 40, 3, 33)]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """In float64, where rounding never decides between two tokens."""
    return hot_decoder(tiny_config("llama", kv_heads=1, context=100))


def test_together_is_one_by_one_and_the_likeliest_token_each_time(model: LanguageModel):
    expected = [greedy(model, prompt, 30) for prompt in PROMPTS]
    assert len(set(expected[0])) > 5
    engine = gu.Engine(model, stop_ids=[], cache_tokens=160, step_tokens=24, most_running=4)
    assert [one.tokens for one in engine.generate(PROMPTS, max_tokens=30)] == expected
    assert [engine.generate([prompt], max_tokens=30)[0].tokens for prompt in PROMPTS] == expected
    assert [[piece.choice.token for piece in engine.pieces(prompt, max_tokens=30)] for prompt in PROMPTS] == expected
    assert is_free(engine)


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


@pytest.mark.parametrize("preset", ["llama", "gemma2", "mamba2", "groundup"])
def test_prompts_tell_their_log_probabilities_and_leave_the_answer_as_it_is(preset: str):
    """Their whole blocks are computed once, for the answer finds these in the cache."""
    model = hot_decoder(tiny_config(preset, context=100))
    plain, engine = (gu.Engine(model, stop_ids=[], step_tokens=24, most_running=4) for _ in range(2))
    asked = {"n": 2, "temperature": 1.0, "seed": 3, "max_tokens": 9}
    expected, found = plain.generate(PROMPTS, **asked), engine.generate(PROMPTS, echo=True, logprobs=3, **asked)
    for one, other in zip(found, expected, strict=True):
        with torch.no_grad():
            log_probs_tv = model(torch.tensor([one.prompt]))[0].log_softmax(-1)
        wanted_t = log_probs_tv[:-1].gather(1, torch.tensor(one.prompt)[1:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(one.prompt_logprobs).double(), wanted_t, rtol=1e-5, atol=1e-5)
        assert one.tokens == other.tokens and one.cached == (len(one.prompt) - 1) // 16 * 16
        assert other.prompt_logprobs is None
        assert [choice.token for choice in one.prompt_choices] == one.prompt[1:]
        _check_likeliest(one.prompt_choices, log_probs_tv[:-1], count=3)
    awaited = asyncio.run(engine.agenerate(PROMPTS[:1], echo=True, beams=2, max_tokens=3))
    assert awaited[0].prompt_logprobs == pytest.approx(found[0].prompt_logprobs, rel=1e-9)
    assert is_free(engine)


def _check_likeliest(choices: list[Choice], log_probs_tv: torch.Tensor, count: int):
    for choice, log_probs_v in zip(choices, log_probs_tv, strict=True):
        top = log_probs_v.topk(count)
        assert [token for token, _ in choice.top] == top.indices.tolist()
        assert [logprob for _, logprob in choice.top] == pytest.approx(top.values.tolist(), abs=1e-5)


def test_scores_tell_the_likeliest_tokens(model: LanguageModel):
    engine, text = gu.Engine(model, stop_ids=[], step_tokens=20, most_running=2), random_ids(61, seed=3).tolist()
    (score,) = engine.score([text], logprobs=4)
    with torch.no_grad():
        _check_likeliest(score.choices, model(torch.tensor([text]))[0, :-1].log_softmax(-1), count=4)
    (plain,) = asyncio.run(engine.ascore([text]))
    assert plain.logprobs == pytest.approx(score.logprobs, rel=1e-9) and not any(choice.top for choice in plain.choices)
    with pytest.raises(ValueError, match="`logprobs` must be an integer of at least 0, not -1"):
        engine.score([text], logprobs=-1)


def test_a_prompt_whose_log_probabilities_nobody_waits_for_begins_no_answer(model: LanguageModel):
    engine = gu.Engine(model, stop_ids=[], step_tokens=24, most_running=4)

    async def main() -> None:
        task = asyncio.create_task(engine.agenerate(PROMPTS * 9, echo=True, max_tokens=50))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert is_free(engine) and not engine._loop.is_busy


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


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64])
def test_token_ids_come_in_arrays_of_any_integers(model: LanguageModel, dtype: type):
    engine = gu.Engine(model, stop_ids=[])
    expected = greedy(model, PROMPTS[2], 5)
    together = engine.generate([PROMPTS[2], np.array(PROMPTS[2], dtype=dtype)], max_tokens=5)
    assert [one.tokens for one in together] == [expected, expected]
    assert all(type(token) is int for token in together[1].prompt)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64])
def test_token_ids_come_in_tensors_too(model: LanguageModel, dtype: torch.dtype):
    engine, ids = gu.Engine(model, stop_ids=[]), torch.tensor(PROMPTS[2], dtype=dtype)
    expected = greedy(model, PROMPTS[2], 5)
    assert [one.tokens for one in engine.generate(torch.stack([ids, ids]), max_tokens=5)] == [expected, expected]
    assert engine.score([ids])[0].logprobs == engine.score([PROMPTS[2]])[0].logprobs
    assert engine.embed([ids]).equal(engine.embed([PROMPTS[2]]))


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
    assert is_free(engine)


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
