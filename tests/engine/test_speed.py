"""Figures of speed: each from given times by its closed form, and what the engine is asked to get such times."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from talking import is_free
from tiny import VOCABULARY, hot_decoder, tiny_config

import groundup as gu
from groundup.engine.jobs import Piece, Writing
from groundup.engine.speed import (
    WARM_UP_TOKENS,
    Quantiles,
    Timeline,
    decode_rate,
    measure,
    overall_rate,
    quantiles,
    stream_speed,
)
from groundup.engine.speed_plan import Plan
from groundup.errors import UserError


def _steady(first: float, gap: float, tokens: int, asked: float = 0.0) -> Timeline:
    """A text whose tokens come in equal distances."""
    return Timeline(asked, tuple(first + gap * index for index in range(tokens)))


def test_a_steady_text_has_its_own_speed():
    text = _steady(first=2.5, gap=0.25, tokens=9, asked=2.0)
    assert text.first_token == 0.5
    assert text.gaps == [0.25] * 8
    assert decode_rate([text]) == 4  # not 9 tokens in 2 seconds: the first belongs to the prompt
    assert overall_rate([text]) == 9 / 2.5


@given(
    st.lists(
        st.tuples(st.floats(0, 10), st.floats(0.01, 1), st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=6
    )
)
def test_texts_that_write_together_add_up(texts: list[tuple[float, float, int, int]]):
    begin, end = 10.0, 13.0  # each is written throughout, whenever it began and however long it goes on
    lines = []
    for _, gap, before, after in texts:
        tokens = 1 + before + int((end - begin) / gap) + 1 + after
        lines.append(_steady(begin - gap * before, gap, tokens))
    expected = sum(1 / gap for _, gap, _, _ in texts)
    assert decode_rate(lines) == pytest.approx(expected, rel=1e-9)


def test_texts_of_one_step_that_are_told_one_after_another_count_once():
    step, apart = 0.1, 0.003
    told_in_turn = [_steady(1 + apart * place, step, 20) for place in range(4)]
    assert decode_rate(told_in_turn) == pytest.approx(4 / step)


def test_only_the_time_in_which_all_write_counts():
    slow_while_alone = Timeline(0.0, (1.0, 2.0, 3.0, 3.1, 3.2, 3.3))
    fast_when_alone = Timeline(0.0, (3.0, 3.1, 3.2, 3.3, 3.31, 3.32))
    assert decode_rate([slow_while_alone, fast_when_alone]) == pytest.approx(20)
    assert overall_rate([slow_while_alone, fast_when_alone]) == pytest.approx(12 / 3.32)


def test_texts_that_never_write_together_have_no_common_speed():
    assert decode_rate([_steady(1, 0.1, 5), _steady(2, 0.1, 5)]) is None
    assert decode_rate([_steady(1, 0.1, 5), _steady(1.4, 0.1, 5)]) is None  # they share one moment


def test_quantiles_are_those_of_the_definition():
    assert quantiles([milliseconds / 1000 for milliseconds in range(101, 0, -1)]) == Quantiles(
        pytest.approx(0.051), pytest.approx(0.096), pytest.approx(0.100)
    )
    assert quantiles([2.0]) == Quantiles(2.0, 2.0, 2.0)


def test_repeats_give_the_median_of_rates_and_all_times():
    runs = [[_steady(first, gap, 5)] for first, gap in ((1.0, 0.5), (2.0, 0.1), (4.0, 0.25))]
    found = stream_speed(runs)
    assert found.streams == 1
    assert found.decode_tokens_per_s == pytest.approx(4)
    assert found.overall_tokens_per_s == pytest.approx(5 / 3)
    assert found.first_token_s.p50 == 2.0
    assert found.gap_s.p50 == pytest.approx(0.25)
    assert found.gap_s.p99 == pytest.approx(0.5)


def test_a_run_without_a_common_time_does_not_spoil_the_others():
    apart = [_steady(1, 0.1, 5), _steady(2, 0.1, 5)]
    together = [_steady(1, 0.1, 5), _steady(1, 0.1, 5)]
    assert stream_speed([apart, together]).decode_tokens_per_s == pytest.approx(20)
    assert stream_speed([apart]).decode_tokens_per_s is None


def test_the_engine_is_asked_what_was_planned(monkeypatch: pytest.MonkeyPatch):
    plan = Plan(prompt_tokens=40, new_tokens=6, streams=(1, 3), repeats=2)
    engine = gu.Engine(hot_decoder(tiny_config("llama", context=64)), stop_ids=range(VOCABULARY))
    submit, prompts, pieces = engine._desk.submit, [], []

    def overheard(tell: Callable[[Piece], None]) -> Callable[[Piece], None]:
        own: list[Piece] = []
        pieces.append(own)
        return lambda piece: (own.append(piece), tell(piece))

    def submit_overheard(jobs: list[Writing]) -> None:
        for job in jobs:
            prompts.append(tuple(job.prompt))
            job.tell = overheard(job.tell)
        submit(jobs)

    monkeypatch.setattr(engine._desk, "submit", submit_overheard)
    told: list[tuple[int, str]] = []
    speed = measure(engine, plan, lambda tokens, what: told.append((tokens, what)))

    # Texts are as long as planned, though every token would end one that was asked for.
    expected = [WARM_UP_TOKENS] * 4 + [1] * 2 + [6] * 2 + [6] * 6
    assert [sum(piece.choice is not None for piece in own) for own in pieces] == expected
    # No prompt is another's, not even at its beginning: nothing is found in the cache.
    assert {len(prompt) for prompt in prompts} == {40} and len(set(prompts)) == len(prompts)
    assert all(piece.cached == 0 for own in pieces for piece in own)
    assert [row.streams for row in speed.streams] == [1, 3]
    assert all(row.decode_tokens_per_s is None or row.decode_tokens_per_s > 0 for row in speed.streams)
    assert sum(tokens for tokens, _ in told) == plan.tokens == 2 * (41 + 46 + 3 * 46)
    assert list(dict.fromkeys(what for _, what in told)) == ["prefill", "1 stream", "3 streams"]


@pytest.mark.parametrize(
    "wrong", [{"prompt_tokens": 0}, {"new_tokens": 1}, {"repeats": 0}, {"streams": ()}, {"streams": (4, 0)}]
)
def test_a_plan_that_measures_nothing_is_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
        Plan(**wrong)


def test_prompts_that_nobody_chose_fit_the_model():
    assert Plan().within(4096).prompt_length == 512
    assert Plan(new_tokens=60).within(200).prompt_length == 140
    assert Plan(prompt_tokens=140, new_tokens=60).within(200).prompt_length == 140
    for plan in (Plan(prompt_tokens=141, new_tokens=60), Plan(new_tokens=200)):
        with pytest.raises(UserError, match="holds texts of 200 tokens"):
            plan.within(200)


def test_what_goes_wrong_in_the_engine_is_raised_and_the_rest_is_given_up(monkeypatch: pytest.MonkeyPatch):
    engine = gu.Engine(hot_decoder(tiny_config("llama", context=64)))
    run, runs = engine._loop._runner.run, iter(range(100))

    def failing(step: Any) -> Any:
        if next(runs) == 7:
            raise RuntimeError("no memory")
        return run(step)

    monkeypatch.setattr(engine._loop._runner, "run", failing)
    with pytest.raises(RuntimeError, match="no memory"):
        measure(engine, Plan(prompt_tokens=20, new_tokens=6, streams=(2,), repeats=1))
    assert engine.generate([[1, 2]], max_tokens=2)[0].tokens
    assert is_free(engine)
