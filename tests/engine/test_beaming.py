"""Beam search in the engine: what the rule finds when every row of logits comes from the model alone.

The rule itself is compared with all answers in `test_beams.py`.
"""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from talking import WORDS, talker
from tiny import hot_decoder, random_ids, tiny_config
from workloads import CONFIGS, CountingScheduler, Request, check_alone, finish, serve, workload_model

import groundup as gu
from groundup.engine.asking import jobs_for
from groundup.engine.beams import Beam, BeamSearch, Tokens
from groundup.engine.blocks import BlockPool
from groundup.engine.choose import make_chooser
from groundup.engine.constrain import GrammarCompiler
from groundup.engine.jobs import Piece
from groundup.engine.loop import Loop
from groundup.engine.runner import Runner, is_recurrent
from groundup.engine.sampling import Sampling
from groundup.engine.scheduler import Scheduler
from groundup.engine.sight import reach
from groundup.model.language_model import LanguageModel
from groundup.quantize.convert import quantize_model
from groundup.quantize.matrix import WEIGHT_FORMATS

BLOCKS = 60
PROMPT = random_ids(21, seed=9).tolist()


@pytest.fixture(scope="module")
def speaker() -> LanguageModel:
    """A model whose tokens are bytes."""
    return talker()


@torch.no_grad()
def _logprobs(model: LanguageModel, tokens: list[int]) -> np.ndarray:
    return model(torch.tensor([tokens]))[0, -1].log_softmax(-1).numpy()


def _searched(
    model: LanguageModel, prompt: list[int], sampling: Sampling, ends: Callable[[Tokens], bool] = lambda tokens: False
) -> list[Beam]:
    """The rule, with a call of the model without a cache for every row."""
    search = BeamSearch(sampling.beams, sampling.stop_token_ids, sampling.max_tokens, sampling.length_penalty)
    while search.live:
        search.advance(np.stack([_logprobs(model, [*prompt, *beam.tokens]) for beam in search.live]), ends)
    return search.finished


class Search:
    """A request for beams in a loop that is turned by hand."""

    def __init__(self, at: int, prompt: list[int], sampling: Sampling, cancelled_after: int | None = None) -> None:
        self.at, self.prompt, self.sampling, self.cancelled_after = at, prompt, sampling, cancelled_after
        self.told: list[list[Piece]] = []
        self.jobs = jobs_for(prompt, sampling.max_tokens, make_chooser(sampling, prompt), None, self._listen)

    def begin(self, loop: Loop, number: int) -> None:
        loop.begin(self.jobs[0])

    def _listen(self) -> Callable[[Piece | Exception], None]:
        self.told.append([])
        return self.told[-1].append  # type: ignore[return-value]

    def check(self, model: LanguageModel) -> None:
        """The answers, their log-probabilities and how they end, against the rule."""
        if self.cancelled_after is not None and not self.told[0]:
            return
        for pieces, beam in zip(self.told, _searched(model, self.prompt, self.sampling), strict=False):
            ends_by_token = beam.tokens[-1] in self.sampling.stop_token_ids
            tokens = tuple(piece.choice.token for piece in pieces if piece.choice is not None)
            assert tokens == (beam.tokens[:-1] if ends_by_token else beam.tokens)
            assert pieces[-1].ending == ("stop" if ends_by_token else "length")
            assert sum(piece.logprob for piece in pieces) == pytest.approx(beam.logprob, rel=1e-9)


def _serve(model: LanguageModel, searches: list[Search], texts: list[Request], blocks: int, most_running: int):
    scheduler = CountingScheduler(
        BlockPool(blocks), 24, most_running, recurrent=is_recurrent(model), reach=reach(model)
    )
    serve(Loop(Runner(model, blocks), scheduler), scheduler, [*texts, *searches])
    return scheduler


def _asked(beams: int, limit: int, stops: tuple[int, ...], penalty: float) -> Sampling:
    return Sampling(beams=beams, n=beams, max_tokens=limit, stop_token_ids=stops, length_penalty=penalty)


SEARCHES = st.builds(
    lambda at, length, cancelled_after, sampling: (at, length, sampling, cancelled_after),
    at=st.integers(0, 8),
    length=st.integers(1, 21),
    cancelled_after=st.one_of(st.none(), st.none(), st.integers(0, 8)),
    sampling=st.builds(
        _asked,
        beams=st.integers(2, 4),
        limit=st.integers(1, 8),
        stops=st.sampled_from([(), tuple(range(0, 64, 5))]),
        penalty=st.sampled_from([0.0, 1.0, 2.0, -1.0]),
    ),
)
TEXTS = st.builds(
    Request, at=st.integers(0, 8), shared=st.integers(0, 40), own=st.integers(1, 5), limit=st.integers(1, 12)
)


@pytest.mark.parametrize("name", ["llama", "windowed", "mamba2", "groundup"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    wishes=st.lists(SEARCHES, min_size=1, max_size=3),
    texts=st.lists(TEXTS, max_size=3),
    blocks=st.integers(11, 16),
    most_running=st.integers(4, 8),
)
def test_beams_find_what_they_find_alone_beside_whatever_else_is_computed(
    name: str, wishes: list[tuple], texts: list[Request], blocks: int, most_running: int
):
    model = workload_model(name)
    searches = [Search(at, PROMPT[:length], sampling, cancelled) for at, length, sampling, cancelled in wishes]
    texts = [text.fresh() for text in texts]
    _serve(model, searches, texts, blocks, most_running)
    for search in searches:
        search.check(model)
    check_alone(model, *texts)


def test_beams_that_wait_for_each_other_let_older_ones_run():
    """Three searches of four beams in four places: none of them could go on if all kept theirs."""
    model = workload_model("llama")
    searches = [Search(0, PROMPT[: 5 + number], _asked(4, 6, (), 1.0)) for number in range(3)]
    scheduler = _serve(model, searches, [], 11, 4)
    assert scheduler.preempted > 0
    for search in searches:
        search.check(model)


def test_logits_of_a_beam_that_waits_for_others_outlast_the_steps_of_these(compiled: None):
    """The kernels write the logits of every step into the same memory, and the beams of three searches take turns."""
    model = hot_decoder(tiny_config("llama", kv_heads=1, context=100), dtype=torch.float32)
    quantize_model(model, WEIGHT_FORMATS["w8"])
    prompts = [PROMPT[: 5 + number] for number in range(3)]
    asked = {"beams": 4, "n": 4, "max_tokens": 6}
    alone = gu.Engine(model, stop_ids=[])
    expected = [one.tokens for prompt in prompts for one in alone.generate([prompt], **asked)]
    crowded = gu.Engine(model, stop_ids=[], cache_tokens=11 * 16, step_tokens=24, most_running=4)
    assert [one.tokens for one in crowded.generate(prompts, **asked)] == expected


def test_beginnings_share_the_blocks_of_their_prompt():
    """Of a prompt of 32 tokens in two blocks, four beams have one more each, where that is not their own already."""
    model = workload_model("llama")
    pool = BlockPool(BLOCKS)
    loop = Loop(Runner(model, BLOCKS), Scheduler(pool, 24, 4))
    search = Search(0, [*PROMPT, *PROMPT[:11]], _asked(4, 8, (), 1.0))
    search.begin(loop, 0)
    held: list[int] = []
    finish(loop, lambda: held.append(pool.count - pool.available))
    assert max(held) == 2 + 4
    search.check(model)


def test_with_enough_beams_the_best_of_all_answers_is_found():
    """All 64² answers of two tokens."""
    model = hot_decoder(CONFIGS["llama"](), seed=3)
    (best,) = gu.Engine(model, stop_ids=[]).generate([PROMPT], beams=64, max_tokens=2, length_penalty=0.0)
    first = _logprobs(model, PROMPT)
    totals = first[:, None] + np.stack([_logprobs(model, [*PROMPT, token]) for token in range(64)])
    assert tuple(best.tokens) == divmod(int(totals.argmax()), 64)
    assert sum(best.logprobs) == pytest.approx(float(totals.max()), rel=1e-9)


def test_stop_strings_and_limits_of_beams(speaker: LanguageModel):
    """Answers that spell a stop string end there; text is cut before it."""
    engine = gu.Engine(speaker, WORDS, stop_ids=[])
    (free, *_) = engine.generate(["Hello"], beams=3, n=3, max_tokens=12)
    stop = free.text[4:6]
    sampling = Sampling(beams=3, n=3, max_tokens=12, stop=(stop,))
    found = engine.generate(["Hello"], sampling)

    def ends(tokens: Tokens) -> bool:
        return stop in WORDS.decode(list(tokens))

    expected = _searched(speaker, free.prompt, sampling, ends)
    assert [tuple(one.tokens) for one in found] == [beam.tokens for beam in expected]
    for one, beam in zip(found, expected, strict=True):
        text = WORDS.decode(list(beam.tokens))
        assert one.text == text.partition(stop)[0]
        assert one.ending == ("stop" if stop in text else "length")
    assert any(one.ending == "stop" for one in found)


def test_beams_of_a_form(speaker: LanguageModel):
    """The likeliest of all texts that the form has."""
    engine = gu.Engine(speaker, WORDS, stop_ids=[])
    form = GrammarCompiler(WORDS).regex("(yes|no)[0-3]")
    texts = [f"{word}{digit}" for word in ("yes", "no") for digit in range(4)]
    found = engine.generate(["Hello"], beams=8, n=8, max_tokens=10, length_penalty=0.0, constraint=form)
    assert all(re.fullmatch("(yes|no)[0-3]", one.text) and one.ending == "stop" for one in found)
    prompt = found[0].prompt

    def best_end(tokens: list[int]) -> float:
        row = _logprobs(speaker, [*prompt, *tokens])
        return max(float(row[end]) for end in (WORDS.eos_id, WORDS.end_id))

    def total(text: str) -> float:
        tokens = WORDS.encode(text)
        rows = [_logprobs(speaker, [*prompt, *tokens[:place]]) for place in range(len(tokens))]
        return sum(float(row[token]) for row, token in zip(rows, tokens, strict=True)) + best_end(tokens)

    expected = max(texts, key=total)
    assert found[0].text == expected
    with pytest.raises(ValueError, match=r"beam search found \d+ answers where `n` asks for 64: no more exist"):
        engine.generate(["Hello"], beams=64, n=64, max_tokens=10, constraint=form)


def test_answers_that_differ_only_in_the_token_of_their_end_are_one(speaker: LanguageModel):
    """A form has two ends, and requests may name more."""
    engine = gu.Engine(speaker, WORDS, stop_ids=[])
    form = GrammarCompiler(WORDS).choices(["yes", "no"])
    for prompt in ("Hello", "a", "b", "c"):
        found = engine.generate([prompt], beams=4, n=2, constraint=form)
        assert {one.text for one in found} == {"yes", "no"}
        stops = tuple(range(0, WORDS.vocab_size, 3))
        found = engine.generate([prompt], beams=8, n=8, max_tokens=5, length_penalty=0.0, stop_token_ids=stops)
        assert len({tuple(one.tokens) for one in found}) == 8
    with pytest.raises(ValueError, match="beam search found 2 answers where `n` asks for 4: no more exist"):
        engine.generate(["Hello"], beams=4, n=4, constraint=form)


def test_penalties_count_as_part_of_the_log_probability():
    """A bias that outweighs all: the token is in every answer; what is told is the model's log-probability."""
    model = workload_model("llama")
    (one,) = gu.Engine(model, stop_ids=[]).generate([PROMPT], beams=2, max_tokens=3, logit_bias={7: 1000.0})
    assert one.tokens == [7, 7, 7]
    expected = [float(_logprobs(model, [*PROMPT, *[7] * place])[7]) for place in range(3)]
    assert one.logprobs == pytest.approx(expected, rel=1e-9)


def test_best_of_gives_those_with_the_highest_mean():
    engine = gu.Engine(workload_model("llama"), stop_ids=[])
    draws = {"temperature": 1.0, "max_tokens": 12, "seed": 5}
    eight = engine.generate([PROMPT[:9], PROMPT], n=8, **draws)
    found = engine.generate([PROMPT[:9], PROMPT], n=3, best_of=8, **draws)
    for number in range(2):
        own = sorted(eight[8 * number : 8 * number + 8], key=lambda one: -np.mean(one.logprobs))
        assert [one.tokens for one in found[3 * number : 3 * number + 3]] == [one.tokens for one in own[:3]]


def test_the_token_that_ends_a_text_counts_in_its_mean():
    """Texts of one token or none, by one of two tokens that the constraint of a bias leaves; none is the likelier."""
    engine = gu.Engine(workload_model("llama"), stop_ids=[3])
    row = _logprobs(workload_model("llama"), PROMPT)
    likelier = row[3] > row[5]
    bias = {3: 500 - float(row[3]), 5: 500 - float(row[5])}
    draws = {"temperature": 1.0, "max_tokens": 1, "logit_bias": bias}
    assert {len(one.tokens) for one in engine.generate([PROMPT], n=12, **draws)} == {0, 1}
    (best,) = engine.generate([PROMPT], best_of=12, **draws)
    assert best.tokens == ([] if likelier else [5])


def test_what_cannot_be_searched_is_told_in_a_sentence():
    engine = gu.Engine(workload_model("llama"), stop_ids=[], cache_tokens=64, most_running=4)
    with pytest.raises(ValueError, match="`beams` must be at most 4"):
        engine.generate([[1]], beams=5)
    with pytest.raises(ValueError, match="a search with 4 beams of up to 20 tokens does not fit into the cache"):
        engine.generate([[1]], beams=4, max_tokens=20)
    with pytest.raises(ValueError, match="a stream is of one text, not of 2"):
        next(engine.pieces([1], beams=2))
    with pytest.raises(ValueError, match="a stream is of one text, not of 3"):
        next(engine.pieces([1], best_of=3, temperature=1.0))
