"""Generation of targets for sources: the encoder's work is done once, and cache, batch and padding change nothing."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import VOCABULARY, heat, random_ids
from torch import Tensor

from groundup.engine.generate import Generator
from groundup.engine.sampling import Sampling
from groundup.model.config import AudioConfig, EncoderDecoderConfig, ModelConfig, RelativePositions, StackConfig
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.specs import Attention, FeedForward, LayerSpec, Norm

WIDTH, FRAMES, BINS, LIMIT = 32, 24, 5, 60
SOURCES = [random_ids(length, seed=length).tolist() for length in (9, 1, 14, 4)]
PROMPTS = [[3], [3, 7, 8], [3], [3, 5]]


def _config(encoder: str) -> EncoderDecoderConfig:
    seeing = Attention(4, 2, 8, causal=False)
    layer = LayerSpec(seeing, FeedForward(48, "relu", gated=False), Norm())
    relative = RelativePositions(8, 20)
    stack = StackConfig(width=WIDTH, layers=(layer,) * 2, final_norm=Norm(), relative_positions=relative)
    sound = AudioConfig(width=WIDTH, layers=(layer,) * 2, final_norm=Norm(), mel_bins=BINS, positions=FRAMES // 2)
    decoder = ModelConfig(
        family="t5",
        vocab_size=VOCABULARY,
        width=WIDTH,
        layers=(replace(layer, mixer=replace(seeing, causal=True), cross=seeing),) * 2,
        final_norm=Norm(),
        relative_positions=relative,
        tied_head=False,
        max_positions=LIMIT,
    )
    return EncoderDecoderConfig(family="t5", encoder=stack if encoder == "text" else sound, decoder=decoder)


@pytest.fixture(params=["text", "sound"])
def model(request: pytest.FixtureRequest) -> EncoderDecoder:
    """In float64, where rounding never decides between two tokens."""
    built = EncoderDecoder(_config(request.param))
    heat(built, seed=2)
    return built.double().eval()


def _sources(model: EncoderDecoder) -> list[list[int]] | Tensor:
    if isinstance(model.config.encoder, AudioConfig):
        return torch.randn(4, BINS, FRAMES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return SOURCES


def _one(sources: list[list[int]] | Tensor, row: int) -> Tensor:
    return sources[row : row + 1] if isinstance(sources, Tensor) else torch.tensor(sources[row : row + 1])


@torch.no_grad()
def test_greedy_generation_is_the_likeliest_token_of_a_full_forward_each_time(model: EncoderDecoder):
    sources = _sources(model)
    answers = Generator(model, []).generate(PROMPTS, Sampling(max_tokens=25), sources)
    for row, prompt in enumerate(PROMPTS):
        ids = list(prompt)
        for _ in range(25):
            ids.append(int(model(_one(sources, row), torch.tensor([ids]))[0, -1].argmax()))
        assert answers[row] == ids[len(prompt) :]
    assert len({tuple(answer) for answer in answers}) == 4
    assert len(set(answers[0])) > 4


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_a_batch_gives_what_each_source_gives_alone(model: EncoderDecoder, temperature: float):
    generator, sources = Generator(model, []), _sources(model)
    sampling = Sampling(max_tokens=20, temperature=temperature, seed=5)
    alone = [generator.generate([prompt], sampling, sources[row : row + 1])[0] for row, prompt in enumerate(PROMPTS)]
    assert generator.generate(PROMPTS, sampling, sources) == alone
    backwards = sources.flip(0) if isinstance(sources, Tensor) else sources[::-1]
    assert generator.generate(PROMPTS[::-1], sampling, backwards) == alone[::-1]
    assert all(len(answer) == 20 for answer in alone)


def test_the_source_is_read_once(model: EncoderDecoder):
    calls: list[int] = []
    handle = model.encoder.layers[0].register_forward_hook(lambda *_: calls.append(1))
    Generator(model, []).generate(PROMPTS, Sampling(max_tokens=10), _sources(model))
    handle.remove()
    assert len(calls) == 1


def test_a_target_ends_at_a_stop_token_or_at_the_last_position(model: EncoderDecoder):
    sources = _sources(model)
    free = Generator(model, []).generate(PROMPTS, Sampling(max_tokens=500), sources)
    assert [len(answer) for answer in free] == [LIMIT - len(prompt) for prompt in PROMPTS]
    stop = free[0][3]
    answers = Generator(model, [stop]).generate(PROMPTS, Sampling(max_tokens=500), sources)
    cut = [answer[: answer.index(stop)] if stop in answer else answer for answer in free]
    assert answers == cut
    assert Generator(model, []).generate(PROMPTS, Sampling(max_tokens=500, stop_token_ids=[stop]), sources) == cut
    at_least = Sampling(max_tokens=500, min_tokens=len(cut[0]) + 5)
    longer = Generator(model, [stop]).generate(PROMPTS, at_least, sources)[0]
    assert longer[: len(cut[0])] == cut[0] and len(longer) >= len(cut[0]) + 5 and stop not in longer


def test_sources_that_are_not_one_for_each_prompt_are_refused(model: EncoderDecoder):
    generator = Generator(model, [])
    with pytest.raises(ValueError, match="a source for each of the 3 prompts"):
        generator.generate(PROMPTS[:3], Sampling(), _sources(model))
    if model.config == _config("text"):
        with pytest.raises(ValueError, match="a source needs at least one token"):
            generator.generate(PROMPTS[:2], Sampling(), [[1], []])


def test_prompts_that_leave_no_room_and_empty_ones_are_refused(model: EncoderDecoder):
    generator, sources = Generator(model, []), _sources(model)[:2]
    with pytest.raises(ValueError, match=f"{LIMIT} tokens leaves no room: the model holds {LIMIT}"):
        generator.generate([[1], [1] * LIMIT], Sampling(), sources)
    with pytest.raises(ValueError, match="at least one token"):
        generator.generate([[1], []], Sampling(), sources)
    assert generator.generate([], Sampling(), sources[:0]) == []


@pytest.mark.parametrize(
    "settings", [{"n": 2, "temperature": 1.0}, {"best_of": 2, "temperature": 1.0}, {"beams": 2}, {"stop": ["a"]}]
)
def test_settings_that_need_more_than_one_sequence_or_its_text_are_refused(
    model: EncoderDecoder, settings: dict[str, Any]
):
    with pytest.raises(ValueError, match="`n`, `best_of`, `beams` and `stop` are not for this"):
        Generator(model, []).generate(PROMPTS[:1], Sampling(**settings), _sources(model)[:1])
