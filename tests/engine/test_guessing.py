"""Guesses in the engine: what is written is the same with and without, and wrong guesses come to an end."""

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sourced import WIDTH, contents, sourced_config, sourced_model
from talking import WORDS, is_free, talker
from tiny import hot_decoder, random_ids, tiny_config

import groundup as gu
from groundup.engine.completion import Completion
from groundup.engine.constrain import GrammarCompiler
from groundup.engine.draft import DraftModel
from groundup.engine.guessing import PromptLookup, Speculation, Trust
from groundup.engine.jobs import Writing
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.language_model import LanguageModel
from groundup.model.presets import build_config
from groundup.quantize.convert import quantize_model
from groundup.quantize.matrix import WEIGHT_FORMATS

PROMPTS = ["to be or not to be or not to be or not to", "a", "one two three one two three one two"]


@dataclass
class Verdicts:
    """What became of guesses: how many were right, and how often one was wrong."""

    right: int = 0
    wrong: int = 0


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> Verdicts:
    """Those of the test: one whose texts have no guesses says nothing of them."""
    found, learn = Verdicts(), Speculation.learn

    def counting(self: Speculation, text: Writing, guessed: int, right: int) -> None:
        found.right += right
        found.wrong += right < guessed
        learn(self, text, guessed, right)

    monkeypatch.setattr(Speculation, "learn", counting)
    return found


@torch.no_grad()
def _blurred(model: LanguageModel, amount: float) -> LanguageModel:
    """A draft that mostly says the same."""
    draft = talker(context=160)
    draft.load_state_dict(model.state_dict())
    for parameter in draft.parameters():
        parameter += amount * parameter.std() * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return draft


TALKER = talker(context=160)
ENGINES = {
    "without": gu.Engine(TALKER, WORDS, stop_ids=[]),
    "lookup": gu.Engine(TALKER, WORDS, stop_ids=[], speculate=PromptLookup(shortest=1)),
    "draft": gu.Engine(TALKER, WORDS, stop_ids=[], speculate=DraftModel(_blurred(TALKER, 0.05), guesses=3)),
    "wrong draft": gu.Engine(TALKER, WORDS, stop_ids=[], speculate=DraftModel(talker(seed=5, depth=1, context=160))),
    "crowded": gu.Engine(
        TALKER, WORDS, stop_ids=[], cache_tokens=176, step_tokens=11, most_running=3, speculate=DraftModel(TALKER)
    ),
}


def _same(found: list[Completion], expected: list[Completion]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.tokens, one.text, one.ending) == (other.tokens, other.text, other.ending)
        assert one.logprobs == pytest.approx(other.logprobs, rel=1e-9)
        assert [choice.top for choice in one.choices] == [
            [(token, pytest.approx(logprob, rel=1e-9)) for token, logprob in choice.top] for choice in other.choices
        ]


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "cold": {"temperature": 0.3},
    "nucleus": {"temperature": 1.0, "top_p": 0.9, "logprobs": 3},
    "penalties": {"temperature": 0.7, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.4},
    "mirostat": {"temperature": 1.0, "mirostat_tau": 3.0},
    "copies": {"temperature": 0.8, "n": 3},
    "best": {"temperature": 0.8, "n": 2, "best_of": 4},
    "stop token": {"temperature": 0.6, "stop_token_ids": tuple(range(40, 60)), "min_tokens": 4},
    "bans": {"bad_words": [(70,), (71, 72)], "logit_bias": {80: 2.0}},
    "search": {"beams": 3, "n": 2},
}


# The crowded engine has no room for a search.
PAIRS = [pair for pair in product(ENGINES, SETTINGS) if pair[0] != "without" and pair != ("crowded", "search")]


@pytest.mark.parametrize(("engine", "name"), PAIRS)
def test_what_is_written_is_the_same_with_and_without_guesses(engine: str, name: str, verdicts: Verdicts):
    asked = {"max_tokens": 40, "seed": 3, **SETTINGS[name]}
    _same(ENGINES[engine].generate(PROMPTS, **asked), ENGINES["without"].generate(PROMPTS, **asked))
    # Nothing is guessed in a search; the crowded engine's draft is the model itself, the wrong one says nothing alike.
    assert verdicts.right > 0 or engine == "wrong draft" or name == "search"
    assert verdicts.wrong > 0 or engine == "crowded" or name == "search"
    assert is_free(ENGINES[engine])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(st.sampled_from(sorted(ENGINES)), st.integers(0, 10**6), st.floats(0, 1.5), st.data())
def test_stop_strings_end_a_text_in_the_midst_of_guesses(
    engine: str, seed: int, temperature: float, data: st.DataObject
):
    asked = {"max_tokens": 50, "seed": seed, "temperature": temperature}
    free = ENGINES["without"].generate(PROMPTS[:1], **asked)[0].text
    start = data.draw(st.integers(0, max(0, len(free) - 3)))
    stop = free[start : start + data.draw(st.integers(1, 3))] or "x"
    expected = ENGINES["without"].generate(PROMPTS, stop=[stop], **asked)
    _same(ENGINES[engine].generate(PROMPTS, stop=[stop], **asked), expected)
    assert expected[0].text == free.partition(stop)[0]


@pytest.mark.parametrize("engine", ["lookup", "draft", "wrong draft"])
def test_guesses_and_forms_go_together(engine: str):
    form = GrammarCompiler(WORDS).json_schema(
        {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 6, "maxItems": 6}
    )
    asked: dict[str, Any] = {"max_tokens": 80, "temperature": 1.0, "seed": 8, "constraint": form}
    expected = ENGINES["without"].generate(PROMPTS, **asked)
    assert all(one.ending == "stop" for one in expected)
    _same(ENGINES[engine].generate(PROMPTS, **asked), expected)


def test_a_text_that_repeats_takes_few_steps():
    """A bias that leaves one token: what follows is the same as before, and eight are chosen at a time."""
    steps = []
    handle = TALKER.layers[0].register_forward_pre_hook(lambda _, arguments: steps.append(arguments[0].shape[1]))
    (one,) = ENGINES["lookup"].generate([[7, 7, 7]], max_tokens=100, logit_bias={7: 1000.0})
    handle.remove()
    assert one.tokens == [7] * 100
    assert steps == [3, 3, 5, *[9] * 10, 1]


def test_what_was_guessed_right_is_in_the_cache():
    engine = gu.Engine(TALKER, WORDS, stop_ids=[], speculate=DraftModel(TALKER))
    (one,) = engine.generate([list(range(50, 70))], max_tokens=40)
    (two,) = engine.generate([[*one.prompt, *one.tokens, 9]], max_tokens=20)
    assert two.cached == 48  # 59 of the 60 tokens were computed: three whole blocks
    _same([two], ENGINES["without"].generate([two.prompt], max_tokens=20))


def test_steps_that_are_programs_take_tokens_back_too(compiled: None):
    """Quantized models, in the kernels: there a token's numbers do not depend on what is computed beside it, at all."""
    model, draft = (hot_decoder(tiny_config("llama", kv_heads=1, context=100)).float() for _ in range(2))
    for one, bits in ((model, "w8"), (draft, "w4_g32")):
        quantize_model(one, WEIGHT_FORMATS[bits])
    prompts = [random_ids(length, seed=length).tolist() for length in (7, 1, 40)]
    asked: dict[str, Any] = {"max_tokens": 50, "temperature": 0.5, "seed": 2}
    expected = gu.Engine(model, stop_ids=[]).generate(prompts, **asked)
    for speculate in (PromptLookup(shortest=1), DraftModel(draft)):
        engine = gu.Engine(model, stop_ids=[], step_tokens=40, most_running=4, speculate=speculate)
        assert [one.choices for one in engine.generate(prompts, **asked)] == [one.choices for one in expected]


def _three_tokens(seed: int) -> LanguageModel:
    return hot_decoder(build_config("llama", depth=2, vocab_size=3, context=20, width=32, head_dim=16), seed)


@pytest.mark.parametrize("name", ["lookup", "draft"])
def test_drawn_texts_have_the_distribution_of_the_model(name: str, verdicts: Verdicts):
    """All texts of five tokens from three, against their probabilities, by a chi-square test.

    Texts that are expected fewer than five times are counted as one.
    """
    model, prompt, length, texts, temperature = _three_tokens(2), [0, 1, 2, 0, 1, 2], 5, 2000, 12.0
    guesser = PromptLookup(shortest=1, step_guesses=1000)
    speculate = guesser if name == "lookup" else DraftModel(_three_tokens(5), step_guesses=1000)
    engine = gu.Engine(model, stop_ids=[], speculate=speculate)
    written = engine.generate([prompt], n=texts, max_tokens=length, temperature=temperature, seed=1)
    assert verdicts.right > 1000 and verdicts.wrong > 1000

    every = list(product(range(3), repeat=length))
    with torch.no_grad():
        logits_nlv = model(torch.tensor([[*prompt, *text] for text in every]))[:, len(prompt) - 1 : -1]
    logprobs_nlv = (logits_nlv / temperature).log_softmax(-1)
    expected_n = texts * logprobs_nlv.gather(2, torch.tensor(every)[:, :, None]).sum((1, 2)).exp()
    counts = Counter(tuple(one.tokens) for one in written)
    found_n = torch.tensor([counts[text] for text in every], dtype=torch.float64)
    rare_n = expected_n < 5
    expected_k, found_k = (torch.cat([one[~rare_n], one[rare_n].sum()[None]]) for one in (expected_n, found_n))
    statistic = ((found_k - expected_k) ** 2 / expected_k).sum()
    freedom = torch.tensor(len(expected_k) - 1, dtype=torch.float64)
    assert torch.special.gammaincc(freedom / 2, statistic / 2) > 1e-6


def test_a_text_whose_guesses_are_wrong_is_soon_left_alone():
    trust = Trust(8)
    attempts = []
    for step in range(1000):
        if trust.count():
            attempts.append(step)
            trust.learn(trust._count, 0)
    assert attempts == [2**power - 2 for power in range(1, 10)]


def test_a_text_whose_guesses_are_right_has_as_many_as_there_may_be():
    trust = Trust(7)
    counts = []
    for _ in range(4):
        counts.append(trust.count())
        trust.learn(counts[-1], counts[-1])
    assert counts == [2, 4, 7, 7]
    trust.learn(7, 2)
    assert [trust.count() for _ in range(3)] == [0, 2, 2]
    trust.learn(2, 1)
    assert trust.count() == 2


REFUSED = {
    "mamba": "no speculation with this mamba model: what it computed of a guess cannot be taken back",
    "qwen3_next": "no speculation with this qwen3_next model",
}


@pytest.mark.parametrize("preset", REFUSED)
def test_what_cannot_take_tokens_back_is_refused(preset: str):
    model = hot_decoder(tiny_config(preset))
    with pytest.raises(ValueError, match=REFUSED[preset]):
        gu.Engine(model, speculate=PromptLookup())
    with pytest.raises(ValueError, match=REFUSED[preset]):
        gu.Engine(hot_decoder(tiny_config("llama")), speculate=DraftModel(model))


@pytest.mark.parametrize("kind", ["text", "sound"])
@pytest.mark.parametrize("name", ["greedy", "nucleus", "penalties", "copies", "search"])
def test_texts_for_sources_are_the_same_with_and_without_a_draft(kind: str, name: str):
    model = sourced_model(kind)
    asked = {"max_tokens": 40, "seed": 3, **SETTINGS[name]}
    expected = gu.Engine(model, stop_ids=[]).generate(contents(kind), **asked)
    for draft in (model, _blurred_encoder_decoder(model)):
        _same(gu.Engine(model, stop_ids=[], speculate=DraftModel(draft)).generate(contents(kind), **asked), expected)


@torch.no_grad()
def _blurred_encoder_decoder(model: EncoderDecoder) -> EncoderDecoder:
    draft = deepcopy(model)
    for parameter in draft.parameters():
        parameter += 0.05 * parameter.std() * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return draft


UNLIKE: dict[str, tuple[Callable[[], Any], Callable[[], Any], str]] = {
    "decoder": (
        lambda: sourced_model("text"),
        lambda: hot_decoder(tiny_config("llama")),
        "a draft for this t5 model must be an encoder-decoder, as it is; this one is a llama model",
    ),
    "encoder-decoder": (
        lambda: hot_decoder(tiny_config("llama")),
        lambda: sourced_model("text"),
        "a draft for this llama model must be a decoder, as it is; this one is a t5 model",
    ),
    "ears": (
        lambda: sourced_model("text"),
        lambda: sourced_model("sound"),
        "a draft for this t5 model must read text, not sound of 5 mel bins and up to 60 frames",
    ),
    "eyes": (
        lambda: sourced_model("sound"),
        lambda: sourced_model("text"),
        "a draft for this t5 model must read sound of 5 mel bins and up to 60 frames, not text",
    ),
    "bins": (lambda: sourced_model("sound"), lambda: _listener(mel_bins=6), "not sound of 6 mel bins and up to 60"),
    "frames": (lambda: sourced_model("sound"), lambda: _listener(positions=29), "not sound of 5 mel bins and up to 58"),
    "tokens": (
        lambda: sourced_model("text"),
        lambda: sourced_model("text", 65),
        "the vocabulary of the model, which has 64 tokens; this one has 65",
    ),
    "experts": (lambda: sourced_model("text"), lambda: sourced_model("experts"), "no speculation with this t5 model"),
}


def _listener(**changes: int) -> EncoderDecoder:
    config = sourced_config("sound")
    return EncoderDecoder(replace(config, encoder=replace(config.encoder, **changes)))


@pytest.mark.parametrize("name", UNLIKE)
def test_a_draft_that_is_unlike_the_model_is_refused_in_a_sentence(name: str):
    model, draft, message = UNLIKE[name]
    with pytest.raises(ValueError, match=message):
        gu.Engine(model(), stop_ids=[], speculate=DraftModel(draft()))


def test_a_draft_hears_more_than_the_model_needs(verdicts: Verdicts):
    """Of sound, more frames than the model reads do not matter."""
    model, draft = sourced_model("sound"), _listener(positions=31).double().eval()
    weights, table = model.state_dict(), "encoder.positions.weight"
    weights[table] = torch.cat([weights[table], torch.ones(1, WIDTH)])
    draft.load_state_dict(weights)
    engine = gu.Engine(model, stop_ids=[], speculate=DraftModel(draft))
    expected = gu.Engine(model, stop_ids=[]).generate(contents("sound"), max_tokens=9)
    _same(engine.generate(contents("sound"), max_tokens=9), expected)
    assert verdicts.right > 0 and verdicts.wrong == 0


def test_other_mistakes_are_told_in_a_sentence():
    with pytest.raises(ValueError, match="a draft model needs the vocabulary of the model, which has 64 tokens"):
        gu.Engine(hot_decoder(tiny_config("llama")), speculate=DraftModel(TALKER))
    with pytest.raises(ValueError, match="`guesses` must be an integer of at least 1, not 0"):
        DraftModel(TALKER, guesses=0)
    with pytest.raises(ValueError, match="`longest` must be at least `shortest` \\(4\\), not 3"):
        PromptLookup(shortest=4, longest=3)


def test_a_draft_with_fewer_positions_guesses_as_far_as_they_go():
    config = tiny_config("gpt2", context=20)
    model = hot_decoder(tiny_config("gpt2", context=90))
    engine = gu.Engine(model, stop_ids=[], speculate=DraftModel(hot_decoder(config)))
    prompts = [random_ids(15, seed=1).tolist(), random_ids(30, seed=2).tolist()]
    expected = gu.Engine(model, stop_ids=[]).generate(prompts, max_tokens=40)
    _same(engine.generate(prompts, max_tokens=40), expected)
