"""Adapters in the engine: each text gets what the model with its adapter merged gives, whatever else is computed."""

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny import greedy, hot_decoder, random_ids, tiny_config

import groundup as gu
from groundup.engine.jobs import Scoring
from groundup.errors import UserError
from groundup.model.language_model import LanguageModel
from groundup.model.lora import Adapter, LowRank

BASE = random_ids(60, seed=3).tolist()
PROMPTS = [random_ids(length, seed=length).tolist() for length in (7, 1, 40, 3, 33)]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """In float64, where rounding never decides between two tokens."""
    return hot_decoder(tiny_config("llama", kv_heads=1, context=100))


@pytest.fixture
def engine(model: LanguageModel, folders: dict[str, Path]) -> Iterator[gu.Engine]:
    """With both adapters; it leaves the model as it was."""
    engine = gu.Engine(model, stop_ids=[], cache_tokens=320, step_tokens=24, most_running=6)
    for kind, folder in folders.items():
        engine.add_adapter(kind, folder)
    yield engine
    for kind in folders:
        engine.drop_adapter(kind)
    assert _hooks(model) == 0


def _hooks(model: LanguageModel) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@torch.no_grad()
def _scores(model: LanguageModel, text: list[int]) -> list[float]:
    logits_tv = model(torch.tensor([text]))[0].log_softmax(-1)
    return logits_tv[:-1].gather(1, torch.tensor(text)[1:, None])[:, 0].tolist()


def _engine_free(engine: gu.Engine) -> bool:
    done = threading.Event()
    engine._worker.do(done.set)
    assert done.wait(60)
    return engine._pool.available == engine._pool.count


def test_texts_with_different_adapters_and_none_go_together(engine: gu.Engine, merged: dict):
    """Several adapters and none in one batch; each is what the merged model alone writes."""
    wishes = [(prompt, kind) for prompt in PROMPTS for kind in (None, "all", "few")]

    async def main() -> list[list[int]]:
        asked = [engine.agenerate([prompt], adapter=kind, max_tokens=20) for prompt, kind in wishes]
        return [one.tokens for (one,) in await asyncio.gather(*asked)]

    found = asyncio.run(main())
    assert found == [greedy(merged[kind], prompt, 20) for prompt, kind in wishes]
    assert len({tuple(found[place]) for place in range(3)}) == 3
    assert _engine_free(engine)


def test_log_probabilities_are_those_of_the_merged_model(engine: gu.Engine, merged: dict):
    for kind in (None, "all", "few"):
        (score,) = engine.score([BASE], adapter=kind)
        torch.testing.assert_close(score.logprobs, _scores(merged[kind], BASE), rtol=1e-9, atol=1e-9)


def test_texts_side_by_side_have_the_head_of_their_own_adapters(model: LanguageModel):
    """Against the sum of both products by hand, for texts with one of two adapters and with none."""
    engine = gu.Engine(model, stop_ids=[])
    changes: dict[str | None, torch.Tensor] = {None: torch.zeros(64, 32, dtype=torch.float64)}
    for seed, name in enumerate(("one", "other")):
        generator = torch.Generator().manual_seed(seed)
        down, up = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 32), (64, 2)))
        engine._loop.adapters.add(Adapter(name, {"head_product": LowRank(down, up)}))
        changes[name] = up @ down

    @torch.no_grad()
    def expected(prompt: list[int], name: str | None) -> list[int]:
        ids = list(prompt)
        for _ in range(10):
            hidden_d = model.hidden(torch.tensor([ids]), torch.arange(len(ids))[None])[0, -1]
            ids.append(int((model(torch.tensor([ids]))[0, -1] + changes[name] @ hidden_d).argmax()))
        return ids[len(prompt) :]

    async def main() -> list[list[int]]:
        asked = [engine.agenerate([PROMPTS[0]], adapter=name, max_tokens=10) for name in changes]
        return [one.tokens for (one,) in await asyncio.gather(*asked)]

    found = asyncio.run(main())
    assert found == [expected(PROMPTS[0], name) for name in changes]
    assert len({tuple(one) for one in found}) == 3
    for name in ("one", "other"):
        engine.drop_adapter(name)


def test_a_cached_beginning_is_never_taken_from_a_text_with_another_adapter(engine: gu.Engine, merged: dict):
    prompt = BASE[:50]
    for kind in (None, "all", "few", None, "all"):
        before = engine.generate([prompt], adapter=kind, max_tokens=1)[0]
        (again,) = engine.generate([prompt], adapter=kind, max_tokens=10)
        assert again.cached == 48
        assert again.tokens == greedy(merged[kind], prompt, 10)
        assert before.tokens == again.tokens[:1]
    (fresh,) = gu.Engine(engine.model, stop_ids=[]).generate([prompt], max_tokens=1)
    assert fresh.cached == 0


def test_another_adapter_of_the_same_name_does_not_find_what_the_first_left(engine: gu.Engine, merged: dict, folders):
    engine.add_adapter("mine", folders["all"])
    engine.generate([BASE[:50]], adapter="mine", max_tokens=1)
    engine.drop_adapter("mine")
    engine.add_adapter("mine", folders["few"])
    (one,) = engine.generate([BASE[:50]], adapter="mine", max_tokens=10)
    assert (one.cached, one.tokens) == (0, greedy(merged["few"], BASE[:50], 10))
    engine.drop_adapter("mine")


def test_copies_and_streams_have_their_adapter(engine: gu.Engine, merged: dict):
    tokens = [piece.choice.token for piece in engine.pieces(PROMPTS[0], adapter="few", max_tokens=15)]
    assert tokens == greedy(merged["few"], PROMPTS[0], 15)
    three = engine.generate([PROMPTS[2]], adapter="all", n=3, temperature=1.0, seed=7, max_tokens=9)
    alone = gu.Engine(merged["all"], stop_ids=[]).generate([PROMPTS[2]], n=3, temperature=1.0, seed=7, max_tokens=9)
    assert [one.tokens for one in three] == [one.tokens for one in alone]
    assert len({tuple(one.tokens) for one in three}) == 3

    async def read() -> list[int]:
        pieces = engine.apieces(PROMPTS[0], adapter="few", max_tokens=15)
        return [piece.choice.token async for piece in pieces]

    assert asyncio.run(read()) == tokens


def test_adapters_come_and_go_while_texts_are_written(model: LanguageModel, folders, merged: dict):
    engine = gu.Engine(model, stop_ids=[])
    plain = engine.pieces(PROMPTS[0], max_tokens=40)
    tokens = [next(plain).choice.token]
    engine.add_adapter("few", folders["few"])
    adapted = engine.pieces(PROMPTS[0], adapter="few", max_tokens=40)
    with_it = [next(adapted).choice.token]
    with pytest.raises(ValueError, match="adapter `few` is in use by 1 texts; wait for their ends or cancel them"):
        engine.drop_adapter("few")
    with_it += [piece.choice.token for piece in adapted]
    engine.drop_adapter("few")
    assert _hooks(model) == 0
    tokens += [piece.choice.token for piece in plain]
    assert tokens == greedy(merged[None], PROMPTS[0], 40)
    assert with_it == greedy(merged["few"], PROMPTS[0], 40)


def test_a_stream_that_is_closed_lets_go_of_its_adapter(engine: gu.Engine, folders):
    engine.add_adapter("mine", folders["all"])
    stream = engine.pieces(PROMPTS[2], adapter="mine", max_tokens=50)
    next(stream)
    stream.close()
    engine.drop_adapter("mine")


def test_mistakes_are_told_in_a_sentence(engine: gu.Engine, folders, tmp_path: Path):
    with pytest.raises(ValueError, match="there is no adapter `other`; there are all, few"):
        engine.generate([[1]], adapter="other")
    with pytest.raises(ValueError, match="there is no adapter `other`; there are all, few"):
        engine.score([[1]], adapter="other")
    with pytest.raises(ValueError, match="there is no adapter `other`"):
        engine.drop_adapter("other")
    with pytest.raises(ValueError, match="there is an adapter `all` already"):
        engine.add_adapter("all", folders["few"])
    with pytest.raises(UserError, match="there is no such file"):
        engine.add_adapter("new", tmp_path)
    with pytest.raises(ValueError, match="no adapter `x`; none has been added"):
        gu.Engine(engine.model, stop_ids=[]).generate([[1]], adapter="x")
    assert _engine_free(engine)


def test_a_text_whose_adapter_was_dropped_before_it_began_is_told(engine: gu.Engine, folders):
    """Between the check in the thread that asks and the engine's own, another thread may have dropped it."""
    engine.add_adapter("mine", folders["all"])
    gone = engine._loop.adapters.named("mine")
    engine.drop_adapter("mine")
    told = []
    engine._desk.submit([Scoring(BASE, told.append, gone)])
    assert _engine_free(engine)
    assert str(told[0]) == "adapter `mine` was dropped before this text was begun"


@pytest.mark.parametrize("tied", [False, True], ids=["two matrices", "one matrix"])
@torch.no_grad()
def test_embedding_and_head_can_be_changed(tied: bool, tmp_path: Path):
    """Beside texts without an adapter, written and scored; of one matrix, each of its two uses by itself."""
    model = hot_decoder(replace(tiny_config("llama", context=100), tied_head=tied))
    merged, generator, tensors = (
        hot_decoder(replace(model.config, tied_head=False)),
        torch.Generator().manual_seed(9),
        {},
    )
    merged.load_state_dict(model.state_dict(), strict=not tied)
    merged.head.weight.copy_(model.head_matrix.weight)
    shapes = {"model.embed_tokens.lora_embedding_": ((2, 64), (32, 2)), "lm_head.lora_": ((2, 32), (64, 2))}
    for (name, (down, up)), matrix in zip(shapes.items(), (merged.embedding, merged.head), strict=True):
        a, b = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in (down, up))
        ending = "" if "embedding" in name else ".weight"
        tensors |= {f"base_model.model.{name}{side}{ending}": one for side, one in (("A", a), ("B", b))}
        matrix.weight += 1.5 * (b @ a if ending else (b @ a).T)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["embed_tokens", "lm_head"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"bias": "none"}))
    engine = gu.Engine(model, stop_ids=[], step_tokens=24, most_running=6)
    engine.add_adapter("outer", tmp_path)

    async def both() -> list[list[list[int]]]:
        asked = (engine.agenerate(PROMPTS, adapter=kind, max_tokens=9) for kind in (None, "outer"))
        return [[one.tokens for one in texts] for texts in await asyncio.gather(*asked)]

    for written, expected in zip(asyncio.run(both()), (model, merged), strict=True):
        assert written == [greedy(expected, prompt, 9) for prompt in PROMPTS]
    assert greedy(model, PROMPTS[0], 9) != greedy(merged, PROMPTS[0], 9)
    (scored,) = engine.score([BASE], adapter="outer")
    torch.testing.assert_close(scored.logprobs, _scores(merged, BASE), rtol=1e-9, atol=1e-9)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    wishes=st.lists(
        st.tuples(st.sampled_from([None, "all", "few"]), st.integers(0, 50), st.integers(1, 8), st.integers(1, 12)),
        min_size=2,
        max_size=8,
    ),
    cache=st.sampled_from([96, 160, 320]),
    step=st.sampled_from([6, 24, 100]),
)
def test_any_workload_gives_each_text_what_its_merged_model_gives(
    wishes: list[tuple[str | None, int, int, int]], cache: int, step: int, model: LanguageModel, folders, merged: dict
):
    """Shared beginnings, chunks and preemption: prompts of all adapters begin alike."""
    engine = gu.Engine(model, stop_ids=[], cache_tokens=cache, step_tokens=step, most_running=4)
    for kind, folder in folders.items():
        engine.add_adapter(kind, folder)
    prompts = [[*BASE[:shared], *((own * 7 + 3 * place) % 64 for place in range(own))] for _, shared, own, _ in wishes]

    async def main() -> list[list[int]]:
        asked = [
            engine.agenerate([prompt], adapter=kind, max_tokens=limit)
            for prompt, (kind, *_, limit) in zip(prompts, wishes, strict=True)
        ]
        return [one.tokens for (one,) in await asyncio.gather(*asked)]

    found = asyncio.run(main())
    for tokens, prompt, (kind, *_, limit) in zip(found, prompts, wishes, strict=True):
        assert tokens == greedy(merged[kind], prompt, limit)
    assert _engine_free(engine)
    for kind in folders:
        engine.drop_adapter(kind)
