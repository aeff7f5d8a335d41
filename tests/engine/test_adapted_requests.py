"""Adapters beside all else that the engine does: vectors, searches, guesses, quantized models."""

import asyncio
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapted import merged_with, write_adapter
from tiny import greedy, hot_decoder, random_ids, tiny_config

import groundup as gu
from groundup.engine.completion import Completion
from groundup.model.language_model import LanguageModel
from groundup.model.lora import Adapter, LowRank
from groundup.quantize.convert import quantize_model
from groundup.quantize.matrix import WEIGHT_FORMATS

PROMPTS = [random_ids(length, seed=length).tolist() for length in (7, 1, 40, 3, 33)]
POOLINGS = ("mean", "last")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """In float64, where rounding never decides between two tokens."""
    return hot_decoder(tiny_config("llama", context=100))


@pytest.fixture
def engine(model: LanguageModel, folders: dict[str, Path]) -> Iterator[gu.Engine]:
    """With both adapters; it leaves the model as it was."""
    engine = gu.Engine(model, stop_ids=[])
    for kind, folder in folders.items():
        engine.add_adapter(kind, folder)
    yield engine
    for kind in folders:
        engine.drop_adapter(kind)


@torch.no_grad()
def _vectors(model: LanguageModel, pooling: str) -> torch.Tensor:
    """Of each prompt alone."""
    hidden = [model.encode(torch.tensor([prompt]))[0] for prompt in PROMPTS]
    return torch.stack([one_td.mean(0) if pooling == "mean" else one_td[-1] for one_td in hidden])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_are_those_of_the_merged_model(engine: gu.Engine, merged: dict, pooling: str):
    for kind in (None, "all", "few", None):
        expected_bd = _vectors(merged[kind], pooling)
        torch.testing.assert_close(engine.embed(PROMPTS, pooling, adapter=kind), expected_bd, rtol=1e-9, atol=1e-9)


def test_vectors_with_different_adapters_are_asked_for_together(engine: gu.Engine, merged: dict):
    async def main() -> list[torch.Tensor]:
        asked = [engine.aembed(PROMPTS, adapter=kind) for kind in (None, "all", "few")]
        written = engine.agenerate(PROMPTS, adapter="few", max_tokens=8)
        *vectors, texts = await asyncio.gather(*asked, written)
        assert [one.tokens for one in texts] == [greedy(merged["few"], prompt, 8) for prompt in PROMPTS]
        return vectors

    for found_bd, kind in zip(asyncio.run(main()), (None, "all", "few"), strict=True):
        torch.testing.assert_close(found_bd, _vectors(merged[kind], "mean"), rtol=1e-9, atol=1e-9)


def test_vectors_whose_adapter_was_dropped_before_they_were_begun_are_refused(engine: gu.Engine, folders):
    with pytest.raises(ValueError, match="there is no adapter `other`; there are all, few"):
        engine.embed(PROMPTS, adapter="other")
    engine.add_adapter("mine", folders["all"])
    gone = engine._loop.adapters.named("mine")
    engine.drop_adapter("mine")
    with pytest.raises(ValueError, match="adapter `mine` was dropped before this text was begun"):
        engine._loop.embed(engine.model, PROMPTS, "mean", gone)


def test_a_search_is_that_of_the_merged_model(engine: gu.Engine, merged: dict):
    for kind in ("all", "few"):
        found = engine.generate(PROMPTS, beams=3, n=3, max_tokens=6, adapter=kind)
        expected = gu.Engine(merged[kind], stop_ids=[]).generate(PROMPTS, beams=3, n=3, max_tokens=6)
        assert [one.tokens for one in found] == [one.tokens for one in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, rel=1e-9)


@pytest.mark.parametrize("guesses_come_from", ["lookup", "the model itself"])
def test_guesses_change_nothing_that_a_text_with_an_adapter_says(
    guesses_come_from: str, model: LanguageModel, folders: dict[str, Path], merged: dict
):
    """A draft model has no adapter: its guesses are wrong where the adapter matters, and cost time alone."""
    speculate = gu.PromptLookup() if guesses_come_from == "lookup" else gu.DraftModel(hot_decoder(model.config))
    engine = gu.Engine(model, stop_ids=[], speculate=speculate)
    engine.add_adapter("all", folders["all"])
    prompts = [PROMPTS[2] + PROMPTS[2], PROMPTS[0] * 4]

    async def main() -> list[list[int]]:
        asked = [engine.agenerate(prompts, adapter=kind, max_tokens=16) for kind in (None, "all")]
        return [one.tokens for texts in await asyncio.gather(*asked) for one in texts]

    assert asyncio.run(main()) == [greedy(merged[kind], prompt, 16) for kind in (None, "all") for prompt in prompts]
    engine.drop_adapter("all")


@torch.no_grad()
def test_guesses_are_judged_by_the_head_that_the_adapter_has():
    """The draft has another head, which says the same of most tokens: some guesses are right, some wrong."""
    model = hot_decoder(replace(tiny_config("llama", context=100), tied_head=False))
    merged, generator = deepcopy(model), torch.Generator().manual_seed(4)
    down, up = (torch.randn(shape, generator=generator, dtype=torch.float64) / 4 for shape in ((2, 32), (64, 2)))
    merged.head.weight += up @ down
    engine = gu.Engine(model, stop_ids=[], speculate=gu.DraftModel(deepcopy(model), guesses=4))
    engine._loop.adapters.add(Adapter("one", {"head_product": LowRank(down, up)}))
    expected = [greedy(merged, prompt, 20) for prompt in PROMPTS]
    assert [one.tokens for one in engine.generate(PROMPTS, adapter="one", max_tokens=20)] == expected
    whole = [torch.tensor([[*prompt, *text]]) for prompt, text in zip(PROMPTS, expected, strict=True)]
    alike = torch.cat([(model(ids).argmax(-1) == merged(ids).argmax(-1))[0, -21:-1] for ids in whole])
    assert 0.6 < alike.double().mean() < 1


@torch.no_grad()
@pytest.mark.parametrize("preset", ["llama", "nanochat"])
def test_a_quantized_model_takes_adapters_too(preset: str, tmp_path: Path):
    """What an adapter adds is not rounded. Of a nanochat model nothing at all stays in floating point."""
    model = hot_decoder(tiny_config(preset, context=100), dtype=torch.float32)
    folder = write_adapter(tmp_path, model, "attention")
    changed = merged_with(model, folder, "attention")
    quantize_model(model, WEIGHT_FORMATS["w8"])
    engine = gu.Engine(model, stop_ids=[], cache_type="float32")
    engine.add_adapter("one", folder)
    expected_bd, plain_bd, found_bd = (
        _vectors(changed, "mean"),
        engine.embed(PROMPTS),
        engine.embed(PROMPTS, adapter="one"),
    )
    assert (found_bd - expected_bd).norm() < 0.1 * (plain_bd - expected_bd).norm()
    (plain,), (found,) = engine.score([PROMPTS[2]]), engine.score([PROMPTS[2]], adapter="one")
    logprobs_tv = changed(torch.tensor([PROMPTS[2]]))[0].log_softmax(-1)
    expected_t = logprobs_tv[:-1].gather(1, torch.tensor(PROMPTS[2])[1:, None])[:, 0]
    off, apart = (torch.tensor(one.logprobs) - expected_t for one in (found, plain))
    assert off.norm() < 0.1 * apart.norm()


def test_texts_with_and_without_an_adapter_are_the_same_to_the_bit_beside_each_other(tmp_path: Path):
    """The kernels compute both in one program, and add up each text's numbers in an order of its own."""
    model = hot_decoder(tiny_config("llama", context=100), dtype=torch.float32)
    folder = write_adapter(tmp_path, model, "all")
    quantize_model(model, WEIGHT_FORMATS["w4_g32"])
    expected = gu.Engine(model, stop_ids=[]).generate(PROMPTS, max_tokens=12)
    engine = gu.Engine(model, stop_ids=[])
    engine.add_adapter("one", folder)

    async def main() -> list[list[Completion]]:
        asked = [engine.agenerate(PROMPTS, adapter=kind, max_tokens=12) for kind in ("one", None)]
        return list(await asyncio.gather(*asked))

    adapted, plain = asyncio.run(main())
    alone = [engine.generate([prompt], adapter="one", max_tokens=12)[0] for prompt in PROMPTS]
    assert [(one.tokens, one.logprobs) for one in adapted] == [(one.tokens, one.logprobs) for one in alone]
    assert [(one.tokens, one.logprobs) for one in plain] == [(one.tokens, one.logprobs) for one in expected]
    assert all(one.logprobs != other.logprobs for one, other in zip(adapted, plain, strict=True))
