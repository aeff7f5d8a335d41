"""An answer as it grows token by token: what its chooser counts, undoes and hands on to a fork, and where it ends."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from plain_sampling import SETTINGS, TEXT, VOCABULARY, next_distribution

from groundup.engine.choose import Chooser, make_chooser
from groundup.engine.sampling import Sampling

LOGITS = torch.tensor([1.5, -0.5, 0.3, 2.0, -3.0, 0.0, 1.0, 0.9])


@settings(max_examples=100, deadline=None)
@given(SETTINGS, TEXT, st.integers(0, 10), st.integers(0, 10), st.integers(0, 2**32), st.booleans())
def test_what_is_undone_leaves_no_trace_and_a_fork_goes_its_own_way(
    chosen: dict, prompt: list[int], before: int, after: int, seed: int, with_mirostat: bool
):
    if with_mirostat:
        chosen = {key: chosen[key] for key in chosen if key not in ("top_k", "top_p", "min_p", "typical_p")}
        chosen |= {"mirostat_tau": 2.0, "mirostat_eta": 0.5, "temperature": 1.0}
    rows = 2 * torch.randn(before + after + 6, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    chooser = make_chooser(Sampling(**chosen, seed=seed), prompt)
    try:
        texts = [chooser.choose(row).token for row in rows]
        chooser.undo(after + 6)
        fork = chooser.fork()
        for row in rows[before : before + after]:
            chooser.choose(row.flip(0))
    except ValueError:
        assume(False)
    chooser.undo(after)
    assert [chooser.choose(row).token for row in rows[before:]] == texts[before:]
    assert [fork.choose(row).token for row in rows[before:]] == texts[before:]
    assert fork.answer == chooser.answer == texts


def test_any_number_of_different_tokens_is_counted_and_uncounted():
    generator = np.random.default_rng(0)
    logits = generator.standard_normal(500)
    prompt, answer = generator.integers(500, size=30).tolist(), generator.integers(500, size=400).tolist()
    sampling = Sampling(temperature=1.0, repetition_penalty=1.2, frequency_penalty=0.3, presence_penalty=-0.4)
    chooser = make_chooser(sampling, prompt)
    for token in answer:
        chooser.take(torch.zeros(500), token)
    for count in (400, 399, 150, 3):
        chooser.undo(len(chooser.answer) - count)
        expected = next_distribution(logits.tolist(), sampling, prompt, answer[:count])
        found = chooser.fork().distribution(torch.from_numpy(logits))
        np.testing.assert_allclose(found.probabilities, [expected[token] for token in range(500)], rtol=1e-9)


def test_a_number_depends_on_seed_place_and_stream_alone():
    """A prompt of other tokens, a pause in which the answer became prompt, and filters that keep all change no draw."""
    rows = torch.randn(8, VOCABULARY, generator=torch.Generator().manual_seed(1))

    def draws(chooser: Chooser, start: int = 0) -> list[int]:
        return [chooser.choose(row).token for row in rows[start:]]

    sampling = Sampling(temperature=2.0, seed=5)
    text = draws(make_chooser(sampling, [1, 2, 3]))
    assert draws(make_chooser(sampling, [9, 9, 9])) == text
    resumed = make_chooser(sampling, [1, 2, 3, *text[:4]])
    assert draws(resumed, 4) == text[4:]
    assert draws(make_chooser(Sampling(temperature=2.0, seed=5, top_k=VOCABULARY, min_p=1e-9), [0, 0, 0])) == text
    assert draws(make_chooser(Sampling(temperature=2.0, seed=6), [1, 2, 3])) != text
    assert draws(make_chooser(sampling, [1, 2])) != text
    assert draws(make_chooser(sampling, [1, 2, 3]).fork(1)) != text
    assert draws(make_chooser(sampling, [1, 2, 3]).fork(1).fork()) == draws(make_chooser(sampling, [1, 2, 3]).fork(1))


def test_an_answer_has_ended_at_a_stop_token_and_not_before_min_tokens():
    chooser = make_chooser(Sampling(stop_token_ids=(3, 6), min_tokens=2), [3])
    ended = []
    for _ in range(3):
        chooser.choose(LOGITS)
        ended.append(chooser.has_ended)
    assert chooser.answer == [0, 0, 3]
    assert ended == [False, False, True]


def test_a_bad_word_is_cut_before_its_last_token():
    chooser = make_chooser(Sampling(bad_words=((0, 3), (3, 3), (7,))), [0, 3])
    assert [chooser.choose(LOGITS).token for _ in range(5)] == [3, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="token id 7 cannot follow here"):
        chooser.take(LOGITS, 7)
