"""Generation: a cache, a batch and padding save time and change nothing."""

from typing import Any

import pytest
import torch
from tiny import TYPICAL, hot_decoder, random_ids, tiny_config

from groundup.engine.cache import KeyValueCache
from groundup.engine.generate import Generator
from groundup.engine.sampling import Sampling
from groundup.model.language_model import LanguageModel

TYPICAL_PRESETS = pytest.mark.parametrize("preset", TYPICAL)
PROMPTS = [random_ids(length, seed=length).tolist() for length in (7, 1, 12, 3)]
NO_STOP: list[int] = []


@pytest.fixture(params=TYPICAL)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    """In float64, where rounding never decides between two tokens."""
    return hot_decoder(tiny_config(request.param, kv_heads=1, context=100))


@torch.no_grad()
def _greedy_without_cache(model: LanguageModel, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("chunks", [(90,), (1,) * 90, (5, 1, 1, 60, 23)], ids=["at once", "one by one", "in chunks"])
@torch.no_grad()
def test_logits_through_the_cache_are_those_without(model: LanguageModel, chunks: tuple[int, ...]):
    ids, cache = random_ids(2, 90), KeyValueCache(model)
    pieces = [model(piece, cache=cache) for piece in ids.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), rtol=1e-11, atol=1e-11)
    assert cache.length == 90


@torch.no_grad()
def test_left_padding_changes_nothing_behind_the_cache(model: LanguageModel):
    ids, padding, cache = random_ids(3, 20), (0, 4, 9), KeyValueCache(model)
    padded = torch.stack(
        [torch.cat((random_ids(pad, seed=5), row[pad:])) for pad, row in zip(padding, ids, strict=True)]
    )
    mask = torch.stack([torch.arange(20) >= pad for pad in padding]).int()
    pieces, seen = [], 0
    for piece in padded.split((12, 1, 1, 6), dim=1):
        seen += piece.shape[1]
        pieces.append(model(piece, attention_mask=mask[:, :seen], cache=cache))
    for row, pad in enumerate(padding):
        alone = model(ids[row : row + 1, pad:])[0]
        torch.testing.assert_close(torch.cat(pieces, dim=1)[row, pad:], alone, rtol=1e-11, atol=1e-11)


def test_greedy_generation_is_the_likeliest_token_each_time(model: LanguageModel):
    expected = _greedy_without_cache(model, PROMPTS[0], 80)
    assert len(set(expected)) > 5
    assert list(Generator(model, NO_STOP).stream(PROMPTS[0], Sampling(max_tokens=80))) == expected


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_a_batch_gives_what_each_prompt_gives_alone(model: LanguageModel, temperature: float):
    generator = Generator(model, NO_STOP)
    sampling = Sampling(max_tokens=30, temperature=temperature, seed=11)
    alone = [list(generator.stream(prompt, sampling)) for prompt in PROMPTS]
    assert generator.generate(PROMPTS, sampling) == alone
    assert generator.generate(PROMPTS[::-1], sampling) == alone[::-1]
    assert all(len(answer) == 30 for answer in alone)


def test_a_seed_decides_the_text(model: LanguageModel):
    generator = Generator(model, NO_STOP)
    first, again, other = (
        generator.generate(PROMPTS[:1], Sampling(max_tokens=30, temperature=1.0, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_a_sequence_ends_before_its_stop_token_and_the_others_go_on(model: LanguageModel):
    sampling = Sampling(max_tokens=25)
    free = Generator(model, NO_STOP).generate(PROMPTS, sampling)
    stop = next(token for token in free[0][1:] if any(token not in answer for answer in free))
    answers = Generator(model, [stop]).generate(PROMPTS, sampling)
    assert answers == [answer[: answer.index(stop)] if stop in answer else answer for answer in free]
    assert len(answers[0]) < max(map(len, answers)) == 25
    assert list(Generator(model, [stop, 63]).stream(PROMPTS[0], sampling)) == answers[0]


def test_generation_fills_the_context_of_each_prompt_and_no_more(model: LanguageModel):
    prompts = [random_ids(length, seed=length).tolist() for length in (99, 40, 96)]
    generator = Generator(model, NO_STOP)
    together = generator.generate(prompts, Sampling(max_tokens=500))
    assert [len(answer) for answer in together] == [1, 60, 4]
    assert together == [list(generator.stream(prompt, Sampling(max_tokens=500))) for prompt in prompts]


@pytest.mark.parametrize("length", [100, 101])
def test_a_prompt_that_leaves_no_room_is_refused(model: LanguageModel, length: int):
    generator = Generator(model, NO_STOP)
    with pytest.raises(ValueError, match=f"{length} tokens leaves no room: the model holds 100"):
        generator.generate([[1], [1] * length], Sampling())
    with pytest.raises(ValueError, match="no room"):
        next(generator.stream([1] * length, Sampling()))


@pytest.mark.parametrize(
    "settings", [{"n": 2, "temperature": 1.0}, {"best_of": 2, "temperature": 1.0}, {"beams": 2}, {"stop": ["a"]}]
)
def test_settings_that_need_more_than_one_sequence_or_its_text_are_refused(settings: dict[str, Any]):
    generator = Generator(hot_decoder(tiny_config("llama")), NO_STOP)
    with pytest.raises(ValueError, match="`n`, `best_of`, `beams` and `stop` are not for this"):
        generator.generate([[1]], Sampling(**settings))


def test_stop_tokens_of_the_settings_count_too_and_none_comes_before_min_tokens(model: LanguageModel):
    free = Generator(model, NO_STOP).generate(PROMPTS[:1], Sampling(max_tokens=25))[0]
    stop = free[4]
    cut = free[: free.index(stop)]
    assert Generator(model, NO_STOP).generate(PROMPTS[:1], Sampling(stop_token_ids=[stop]))[0] == cut
    longer = Generator(model, [stop]).generate(PROMPTS[:1], Sampling(max_tokens=25, min_tokens=len(cut) + 5))[0]
    assert longer[: len(cut)] == cut
    assert len(longer) >= len(cut) + 5
    assert stop not in longer


def test_an_empty_prompt_is_refused_and_no_prompts_are_no_work(model: LanguageModel):
    generator = Generator(model, NO_STOP)
    with pytest.raises(ValueError, match="at least one token"):
        generator.generate([[1], []], Sampling())
    assert generator.generate([], Sampling()) == []


def test_a_stream_gives_each_token_as_soon_as_it_is_chosen(model: LanguageModel):
    calls: list[int] = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    stream = Generator(model, NO_STOP).stream(PROMPTS[0], Sampling(max_tokens=9))
    for count in range(1, 4):
        next(stream)
        assert len(calls) == count
    handle.remove()
