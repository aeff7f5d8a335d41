"""Encoder-decoders in `groundup.Engine`: a prompt is a source, and all that decoders can do is done for it."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sourced import BINS, LIMIT, START, TEXTS, contents, greedy_target, sound, sourced_config, sourced_model
from sourced import target_logits as logits_of
from talking import WORDS, is_free
from tiny import VOCABULARY, hot_decoder, hot_model, random_ids, tiny_config

import groundup as gu
from groundup.engine.choose import make_chooser
from groundup.engine.constrain import GrammarCompiler
from groundup.engine.sampling import Sampling
from groundup.errors import UserError
from groundup.formats.huggingface import save_model
from groundup.model.config import EncoderDecoderConfig
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.presets import build_config

KINDS = pytest.mark.parametrize("kind", ["text", "sound", "experts"])
TARGET = random_ids(37, seed=8).tolist()


@pytest.fixture(scope="module")
def talker() -> EncoderDecoder:
    """A model whose tokens are bytes."""
    return sourced_model("text", WORDS.vocab_size)


def _engine(kind: str, **options: Any) -> gu.Engine:
    return gu.Engine(sourced_model(kind), stop_ids=[], **options)


@KINDS
def test_together_is_one_by_one_and_the_likeliest_token_each_time(kind: str):
    model, sources = sourced_model(kind), contents(kind)
    expected = [greedy_target(model, source, 30) for source in sources]
    assert len({tuple(one) for one in expected}) == 4 and max(len(set(one)) for one in expected) > 2
    engine = _engine(kind, cache_tokens=208, step_tokens=24, most_running=3)
    assert [one.tokens for one in engine.generate(sources, max_tokens=30)] == expected
    assert [engine.generate([source], max_tokens=30)[0].tokens for source in sources] == expected
    assert [[piece.choice.token for piece in engine.pieces(one, max_tokens=30)] for one in sources] == expected
    assert engine.generate([], max_tokens=3) == []
    assert is_free(engine)


@KINDS
def test_a_target_goes_on_from_where_it_was_begun_up_to_the_last_position(kind: str):
    model, sources = sourced_model(kind), contents(kind)
    pairs = [gu.Pair(source, TARGET) for source in sources]
    found = _engine(kind).generate(pairs, max_tokens=500)
    for one, source in zip(found, sources, strict=True):
        assert one.prompt == TARGET and one.ending == "length"
        assert one.tokens == greedy_target(model, source, LIMIT - len(TARGET), TARGET)


@KINDS
def test_equal_targets_share_what_was_computed_for_equal_sources_alone(kind: str):
    engine, (first, *others) = _engine(kind), contents(kind)
    assert engine.generate([gu.Pair(first, TARGET)], max_tokens=4)[0].cached == 0
    again, changed, other = engine.generate(
        [gu.Pair(first, TARGET), gu.Pair(first, [*TARGET[:20], *TARGET[:17]]), gu.Pair(others[1], TARGET)], max_tokens=4
    )
    # Where experts have room for a few tokens, a beginning is of use only with what they had taken, kept after 32.
    assert again.cached == 32 and changed.cached == (0 if kind == "experts" else 16) and other.cached == 0
    for one, source in ((again, first), (changed, first), (other, others[1])):
        assert one.tokens == greedy_target(sourced_model(kind), source, 4, one.prompt)


@KINDS
def test_a_seed_gives_the_same_text_whatever_else_is_computed(kind: str):
    sources, drawn = contents(kind), {"max_tokens": 20, "temperature": 1.0, "seed": 4}
    alone = _engine(kind).generate(sources[2:3], **drawn)[0]
    sampling = Sampling(**drawn)
    chooser = make_chooser(sampling, [START])
    for _ in range(20):
        chooser.choose(logits_of(sourced_model(kind), sources[2], [START, *chooser.answer])[-1])
    assert alone.tokens == chooser.answer
    crowd = _engine(kind, cache_tokens=160, step_tokens=7, most_running=3).generate(sources, sampling)
    assert crowd[2].tokens == alone.tokens
    assert _engine(kind).generate(sources[2:3], replace(sampling, seed=5))[0].tokens != alone.tokens


@KINDS
def test_copies_beams_and_the_best_of_some(kind: str):
    model, source, engine = sourced_model(kind), contents(kind)[0], _engine(kind)
    drawn = Sampling(max_tokens=9, temperature=1.0, seed=7, n=3)
    three = engine.generate([source], drawn)
    for stream, one in enumerate(three):
        chooser = make_chooser(drawn, [START]).fork(stream)
        for _ in range(9):
            chooser.choose(logits_of(model, source, [START, *chooser.answer])[-1])
        assert one.tokens == chooser.answer
    (best,) = engine.generate([source], replace(drawn, n=1, best_of=3))
    assert best.tokens == max(three, key=lambda one: np.mean(one.logprobs)).tokens
    # With as many beams as tokens, the best of all answers of two tokens is found.
    wide = _engine(kind, cache_tokens=2400)
    (found,) = wide.generate([source], beams=VOCABULARY, max_tokens=2, length_penalty=0.0)
    first = logits_of(model, source, [START])[-1].log_softmax(-1)
    second = [logits_of(model, source, [START, token])[-1].log_softmax(-1) for token in range(VOCABULARY)]
    totals = first[:, None] + torch.stack(second)
    assert tuple(found.tokens) == divmod(int(totals.argmax()), VOCABULARY)
    assert sum(found.logprobs) == pytest.approx(float(totals.max()), rel=1e-9)
    assert is_free(engine) and is_free(wide)


@KINDS
def test_beams_that_share_one_source_fit_where_their_targets_do(kind: str):
    """A cache of exactly what a search needs; one block less is refused."""
    source = contents(kind)[2]
    blocks = 3 * 1 + 2 + (2 if kind == "sound" else 3)
    expected = _engine(kind).generate([source], beams=3, n=3, max_tokens=12)
    tight = _engine(kind, cache_tokens=16 * blocks).generate([source], beams=3, n=3, max_tokens=12)
    assert [one.tokens for one in tight] == [one.tokens for one in expected]
    with pytest.raises(ValueError, match="a search with 3 beams of up to 12 tokens for a source of "):
        _engine(kind, cache_tokens=16 * (blocks - 1)).generate([source], beams=3, max_tokens=12)


@KINDS
def test_scores_are_the_models(kind: str):
    sources = contents(kind)
    engine = _engine(kind, step_tokens=20, most_running=2)
    scores = engine.score([gu.Pair(source, TARGET[: 9 * number + 2]) for number, source in enumerate(sources)])
    for number, (score, source) in enumerate(zip(scores, sources, strict=True)):
        target = TARGET[: 9 * number + 2]
        rows = logits_of(sourced_model(kind), source, target).log_softmax(-1)
        expected = [float(row[token]) for row, token in zip(rows, target[1:], strict=False)]
        assert score.tokens == target and score.logprobs == pytest.approx(expected, rel=1e-9)
    (awaited,) = asyncio.run(engine.ascore([gu.Pair(sources[0], TARGET[:2])]))
    assert awaited.logprobs == pytest.approx(scores[0].logprobs, rel=1e-9)


@torch.no_grad()
def test_vectors_are_what_leaves_the_encoder():
    model, engine = sourced_model("text"), _engine("text")
    vectors, last = engine.embed(TEXTS), engine.embed(TEXTS, pooling="last")
    for number, ids in enumerate(TEXTS):
        hidden_td = model.read(torch.tensor([ids])).hidden_bsd[0]
        torch.testing.assert_close(vectors[number], hidden_td.mean(0), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(last[number], hidden_td[-1], rtol=1e-9, atol=1e-9)


def test_texts_are_read_and_written_in_words(talker: EncoderDecoder):
    """A source ends with the end of text, as those the model learned from; a target begins with its first token."""
    engine = gu.Engine(talker, WORDS, stop_ids=[])
    (likeliest,) = engine.generate(["Hello"], max_tokens=40)
    source = [*WORDS.encode("Hello"), WORDS.eos_id]
    assert likeliest.prompt == [START] and likeliest.tokens == greedy_target(talker, source, 40)
    drawn = Sampling(max_tokens=60, temperature=2.0, seed=1)
    (free,) = engine.generate(["Hello"], drawn)
    assert free.text == WORDS.decode(free.tokens) == "".join(engine.stream("Hello", drawn))
    stop = next(letter for letter in free.text[3:] if letter.isascii())
    (cut,) = engine.generate(["Hello"], replace(drawn, stop=[stop]))
    assert cut.ending == "stop" and cut.text == free.text.partition(stop)[0]
    (begun,) = engine.generate([gu.Pair("Hello", "So ")], max_tokens=9)
    assert begun.prompt == [START, *WORDS.encode("So ")]
    assert begun.tokens == greedy_target(talker, source, 9, begun.prompt)
    (score,) = engine.score([gu.Pair("Hello", "So ")])
    assert score.tokens == begun.prompt


def test_forms_and_guesses_go_together_with_free_texts(talker: EncoderDecoder):
    pytest.importorskip("llguidance")
    form = GrammarCompiler(WORDS).regex("(yes|no)[0-3]{2}")

    async def both(engine: gu.Engine) -> list[str]:
        asked = [engine.agenerate(["Hello"], max_tokens=9, constraint=form), engine.agenerate(["Hello"], max_tokens=30)]
        return [written.text for (written,) in await asyncio.gather(*asked)]

    bound, free = asyncio.run(both(gu.Engine(talker, WORDS, stop_ids=[])))
    assert bound in [f"{word}{ten}{one}" for word in ("yes", "no") for ten in range(4) for one in range(4)]
    guessing = gu.Engine(talker, WORDS, stop_ids=[], speculate=gu.PromptLookup(shortest=1))
    assert asyncio.run(both(guessing)) == [bound, free]
    with pytest.raises(ValueError, match="what it computed of a guess cannot be taken back"):
        _engine("experts", speculate=gu.PromptLookup())


@KINDS
def test_what_nobody_waits_for_any_more_frees_its_source(kind: str):
    engine, source = _engine(kind), contents(kind)[2]
    stream = engine.pieces(source, max_tokens=90)
    next(stream)
    stream.close()
    assert is_free(engine)

    async def cancelled() -> None:
        task = asyncio.create_task(engine.agenerate([source, source], max_tokens=90, n=2, temperature=1.0))
        async for _ in engine.astream(source, max_tokens=3):
            pass
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert is_free(engine)


BROKEN: dict[str, tuple[str, Any, str]] = {
    "nothing": ("text", [], r"prompts\[1\]: a prompt needs at least one token"),
    "strange source": ("text", [1, 64], r"prompts\[1\]: 64 is no token of this model, whose ids are 0 … 63"),
    "strange target": ("text", gu.Pair([1], [-1]), r"prompts\[1\]: -1 is no token of this model"),
    "empty target": ("sound", gu.Pair(sound(9, 0), []), r"prompts\[1\]: a prompt needs at least one token"),
    "full target": ("text", gu.Pair([1], [1] * LIMIT), r"prompts\[1\] has 100 tokens and leaves no room"),
    "long source": ("text", [1] * 400, "of up to 8 tokens for a source of 400 does not fit into the cache"),
    "sound for text": ("text", sound(9, 0), r"prompts\[1\]: the encoder of this t5 model reads a text or token ids"),
    "text for sound": ("sound", [1, 2], r"prompts\[1\]: the encoder of this t5 model reads a log-mel spectrogram"),
    "bins": ("sound", sound(9, 0)[:4], rf"prompts\[1\]: sound must come as \({BINS} mel bins, at most 60 frames\)"),
    "frames": ("sound", sound(61, 0), r"at most 60 frames\), not \(5, 61\)"),
    "silence": ("sound", sound(0, 0), r"at most 60 frames\), not \(5, 0\)"),
    "batch": ("sound", sound(9, 0)[None], r"at most 60 frames\), not \(1, 5, 9\)"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_prompt_fails_alone(name: str):
    kind, prompt, message = BROKEN[name]
    good, engine = contents(kind)[0], _engine(kind, cache_tokens=320)
    running = engine.pieces(good, max_tokens=20)
    found = [next(running)]
    with pytest.raises(ValueError, match=message):
        engine.generate([good, prompt], max_tokens=8)
    assert [piece.choice.token for piece in (*found, *running)] == greedy_target(sourced_model(kind), good, 20)
    assert is_free(engine)


def test_sources_and_targets_of_token_ids_come_in_tensors_too():
    engine = _engine("text")
    for source in TEXTS:
        expected = engine.generate([source, gu.Pair(source, [START, 5])], max_tokens=4)
        pair = gu.Pair(torch.tensor(source), torch.tensor([START, 5]))
        found = engine.generate([torch.tensor(source), pair], max_tokens=4)
        assert [one.tokens for one in found] == [one.tokens for one in expected]


def test_numbers_that_are_none_fail_alone():
    """A clip of sound that is not a number gives no logits; others in the same step never notice."""
    engine, broken = _engine("sound"), torch.full((BINS, 24), float("nan"), dtype=torch.float64)

    async def both() -> list[Any]:
        asked = [engine.agenerate([one], max_tokens=20) for one in (contents("sound")[0], broken)]
        return await asyncio.gather(*asked, return_exceptions=True)

    (good,), failed = asyncio.run(both())
    assert good.tokens == greedy_target(sourced_model("sound"), contents("sound")[0], 20)
    assert isinstance(failed, ValueError)
    (again,) = engine.generate([contents("sound")[1]], max_tokens=20)
    assert again.tokens == greedy_target(sourced_model("sound"), contents("sound")[1], 20)
    assert is_free(engine)


def test_what_is_not_for_this_kind_is_told_in_a_sentence(tmp_path: Path):
    with pytest.raises(
        ValueError, match="adapters are for decoders and encoders; a t5 model is both and can have none here"
    ):
        _engine("text").add_adapter("mine", tmp_path)
    with pytest.raises(ValueError, match="the encoder of this t5 model reads a log-mel spectrogram"):
        _engine("sound").embed([[1]])
    decoder = gu.Engine(hot_decoder(tiny_config("llama")), stop_ids=[])
    for prompt in (gu.Pair([1], [2]), torch.ones(2, 2)):
        with pytest.raises(ValueError, match=r"prompts\[0\]: a llama model goes on from a text or token ids, without"):
            decoder.generate([prompt])  # type: ignore[list-item]
    config = sourced_config("text")
    layers = tuple(replace(one, cross=replace(one.cross, kv_heads=4)) for one in config.decoder.layers)
    with pytest.raises(ValueError, match=r"they are \(4, 8\) and \(2, 8\)"):
        gu.Engine(EncoderDecoder(replace(config, decoder=replace(config.decoder, layers=layers))))


def _saved(folder: Path, settings: dict[str, Any]) -> Path:
    """A T5 whose folder has these generation settings, too."""
    folder.mkdir()
    config = build_config("t5", depth=2, vocab_size=VOCABULARY, context=64, width=32, head_dim=16)
    assert isinstance(config, EncoderDecoderConfig)
    model = hot_model(replace(config, start_id=START), dtype=torch.float32)
    save_model(model, folder, bos_id=1, eos_ids=[2], pad_id=0)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


STARTS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "its own": ({}, [START]),
    "of the settings": ({"decoder_start_token_id": 9}, [9]),
    "forced": ({"forced_decoder_ids": [[1, 5], [2, 6]]}, [START, 5, 6]),
    "language open": ({"forced_decoder_ids": [[1, None], [2, 6]]}, [START]),
}


@pytest.mark.parametrize("name", STARTS)
def test_targets_begin_as_the_folder_says_and_end_at_its_stop(name: str, tmp_path: Path):
    settings, start = STARTS[name]
    engine = gu.Engine(_saved(tmp_path / "t5", settings))
    (one,) = engine.generate([TEXTS[0]], max_tokens=12)
    expected = greedy_target(engine.model, TEXTS[0], 12, start)
    assert one.prompt == start and engine.stop_ids == {2}
    assert one.tokens == (expected[: expected.index(2)] if 2 in expected else expected)


def test_settings_of_a_folder_that_cannot_be_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"begins texts with \[3, 64\], which are not all token ids below 64"):
        gu.Engine(_saved(tmp_path / "one", {"forced_decoder_ids": [[1, 64]]}))
    with pytest.raises(UserError, match="`forced_decoder_ids` must be pairs, not 5"):
        gu.Engine(_saved(tmp_path / "two", {"forced_decoder_ids": 5}))
    with pytest.raises(UserError, match="t5 model; only models of text alone can be quantized"):
        gu.Engine(tmp_path / "one", quantize="w4")
