"""Sources: read once, shared by what is written for them, kept apart from others, held as long as they are needed."""

from collections.abc import Sequence as Items
from copy import deepcopy
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sourced import SOUNDS, TEXTS, begin, check_alone, sound, source_of, sourced_model
from workloads import REQUESTS, CountingScheduler, Request, Unreliable, finish, serve

from groundup.engine.blocks import BlockPool, blocks_for
from groundup.engine.draft import DraftGuesser
from groundup.engine.guessing import Guesser, Speculation
from groundup.engine.loop import Loop
from groundup.engine.runner import Runner, is_recurrent
from groundup.engine.scheduler import Scheduler
from groundup.model.encoder_decoder import EncoderDecoder

KINDS = ["text", "sound", "experts"]


def _loop(
    model: EncoderDecoder, blocks: int, budget: int, most_running: int, host: int = 0, guesser: Guesser | None = None
) -> tuple[Loop, CountingScheduler]:
    speculation = None if guesser is None else Speculation(guesser, guesses=6, step_guesses=30)
    pool = BlockPool(blocks, host=host)
    scheduler = CountingScheduler(pool, budget, most_running, recurrent=is_recurrent(model.decoder))
    return Loop(Runner(model, blocks, host), scheduler, speculation), scheduler


def _serve(
    kind: str,
    requests: Items[Request],
    blocks: int,
    budget: int,
    most_running: int,
    host: int = 0,
    guesser: Guesser | None = None,
) -> CountingScheduler:
    loop, scheduler = _loop(sourced_model(kind), blocks, budget, most_running, host, guesser)
    serve(loop, scheduler, requests, partial(begin, kind=kind))
    return scheduler


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    requests=st.lists(REQUESTS, min_size=2, max_size=6),
    blocks=st.integers(9, 18),
    budget=st.sampled_from([5, 24, 100]),
    most_running=st.integers(1, 5),
    host=st.sampled_from([0, 2, 20]),
)
def test_any_workload_gives_the_logits_of_the_model_alone(
    kind: str, requests: list[Request], blocks: int, budget: int, most_running: int, host: int
):
    requests = [request.fresh() for request in requests]
    _serve(kind, requests, blocks, budget, most_running, host)
    check_alone(sourced_model(kind), kind, *requests)


@pytest.mark.parametrize("kind", ["text", "sound"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    requests=st.lists(REQUESTS, min_size=2, max_size=6),
    blocks=st.integers(9, 18),
    budget=st.sampled_from([5, 24, 100]),
    most_running=st.integers(1, 5),
)
def test_any_workload_with_guesses_gives_the_logits_of_the_model_alone(
    kind: str, requests: list[Request], blocks: int, budget: int, most_running: int
):
    requests = [request.fresh() for request in requests]
    guesser = Unreliable(sourced_model(kind), blocks, most_running)
    _serve(kind, requests, blocks, budget, most_running, guesser=guesser)
    check_alone(sourced_model(kind), kind, *requests)
    assert guesser.pool.available == blocks


@pytest.mark.parametrize("kind", ["text", "sound"])
def test_a_draft_that_reads_the_sources_saves_steps(kind: str):
    """Two texts of 40 tokens, each for its own source: after the first token two guesses, then four, then six."""
    model, calls = sourced_model(kind), []
    guesser = DraftGuesser(Runner(deepcopy(model), 40), Scheduler(BlockPool(40), 200, 4))
    handle = model.decoder.layers[0].register_forward_pre_hook(lambda _, given: calls.append(given[0].shape[:2]))
    requests = [Request(0, 0, 1, 40, source=number) for number in (0, 2)]
    _serve(kind, requests, 40, 200, 4, guesser=guesser)
    handle.remove()
    assert calls == [(2, length) for length in (1, 3, 5, 7, 7, 7, 7, 3)]
    check_alone(model, kind, *requests)


def test_nothing_is_guessed_of_a_text_whose_source_is_to_be_read_again():
    """Two texts give way; the older takes the whole of the next steps, while one token of the younger is left."""
    model = sourced_model("text")
    guesser = DraftGuesser(Runner(deepcopy(model), 40), Scheduler(BlockPool(40), 200, 4))
    loop, scheduler = _loop(model, 40, 5, 2, guesser=guesser)
    requests = [Request(0, 40, 1, 20, source=0), Request(0, 15, 1, 20, source=2)]
    for number, request in enumerate(requests):
        begin(request, loop, number, "text")
    younger = requests[1].jobs[0]
    while not younger.written:
        loop.step()
    assert (younger.sequence.pending, len(younger.sequence.tokens)) == (1, 17)
    for _ in requests:
        scheduler._preempt_youngest()
    loop.step()
    assert (younger.sequence.pending, younger.sequence.unread) == (1, 40)
    while younger.sequence.unread:
        assert younger.sequence.pending == 1
        loop.step()
    finish(loop)
    check_alone(model, "text", *requests)


def test_a_draft_reads_the_source_of_copies_once():
    draft, read = deepcopy(sourced_model("text")), []
    draft.encoder.layers[0].register_forward_pre_hook(lambda _, given: read.append(len(given[0])))
    guesser = DraftGuesser(Runner(draft, 40), Scheduler(BlockPool(40), 200, 6))
    request = Request(0, 0, 1, 14, copies=4, source=2)
    _serve("text", [request], 40, 200, 6, guesser=guesser)
    assert read == [1]
    check_alone(sourced_model("text"), "text", request)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_give_way_with_their_sources_and_are_computed_anew(kind: str):
    """Equal beginnings of targets for different sources, in a pool too small for all, one of them in four copies."""
    requests = [
        Request(0, 40, 3, 30),
        Request(4, 40, 5, 30, copies=4, source=2),
        Request(6, 40, 5, 25, source=2),
        Request(6, 48, 2, 25, source=3),
    ]
    scheduler = _serve(kind, requests, 12, 24, 6)
    assert scheduler.preempted > 0
    check_alone(sourced_model(kind), kind, *requests)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_in_float32_are_those_of_the_model_alone_but_for_rounding(kind: str):
    model = sourced_model(kind, dtype=torch.float32)
    loop, _ = _loop(model, 60, 100, 6)
    requests = [Request(0, 20, 3, 30, copies=2, source=number) for number in range(4)]
    for number, request in enumerate(requests):
        begin(request, loop, number, kind)
    finish(loop)
    check_alone(model, kind, *requests)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_share_a_source_that_is_read_once(kind: str):
    model = sourced_model(kind)
    read: list[int] = []
    handle = model.encoder.layers[0].register_forward_pre_hook(lambda _, given: read.append(len(given[0])))
    loop, scheduler = _loop(model, 40, 100, 6)
    request = Request(0, 0, 1, 14, copies=4, source=2)
    begin(request, loop, 0, kind)
    held: list[int] = []
    finish(loop, lambda: held.append(scheduler.pool.count - scheduler.pool.available))
    handle.remove()
    assert read == [1]
    # The source's blocks, and one of each copy.
    assert max(held) == blocks_for(source_of((SOUNDS if kind == "sound" else TEXTS)[2]).length) + 4
    check_alone(model, kind, request)


def test_sources_of_about_equal_length_are_read_together():
    """Sources of 40 tokens, of 9 and 6, and of one: at most half of a call is padding."""
    model, read = sourced_model("text"), []
    handle = model.encoder.layers[0].register_forward_pre_hook(lambda _, given: read.append(tuple(given[0].shape[:2])))
    loop, _ = _loop(model, 60, 400, 6)
    requests = [Request(0, 3, 3, 5, source=number) for number in (0, 1, 2, 3, 2)]
    for number, request in enumerate(requests):
        begin(request, loop, number, "text")
    loop.step()
    handle.remove()
    assert read == [(2, 40), (2, 9), (1, 1)]
    finish(loop)
    check_alone(model, "text", *requests)


def test_sounds_of_equal_length_are_read_together():
    model, read = sourced_model("sound"), []
    handle = model.encoder.layers[0].register_forward_pre_hook(lambda _, given: read.append(tuple(given[0].shape[:2])))
    loop, _ = _loop(model, 60, 400, 6)
    for number in range(4):
        begin(Request(0, 3, 3, 5, source=number), loop, number, "sound")
    loop.step()
    handle.remove()
    assert read == [(1, 30), (2, 12), (1, 4)]


def test_what_is_read_counts_in_the_budget_of_a_step():
    """A budget of 50: a source of 40 and a token leave room for another token, whose source is then the last."""
    scheduler = Scheduler(BlockPool(60), 50, 6)
    sources = [source_of([number] * 40) for number in range(5)]
    for source in sources:
        scheduler.add([1], 9, source=source)
    steps = []
    while any(not source.is_read for source in sources):
        step = scheduler.schedule()
        steps.append([(sources.index(chunk.sequence.source), chunk.sequence.unread) for chunk in step.chunks])
        for chunk in step.chunks:
            chunk.sequence.source.is_read = True
        scheduler.complete(step)
        for chunk in step.chunks:
            chunk.sequence.tokens.append(1)
    assert steps == [
        [(0, 40), (1, 40)],
        [(0, 0), (1, 0), (2, 40), (3, 40)],
        [(0, 0), (1, 0), (2, 0), (3, 0), (4, 40)],
    ]


def test_a_text_that_runs_does_not_wait_for_sources():
    """It gets its token in every step, however many sources there are to read."""
    loop, _ = _loop(sourced_model("text"), 90, 20, 8)
    first = Request(0, 0, 1, 12)
    begin(first, loop, 0, "text")
    loop.step()
    others = [Request(0, 0, 1, 3, source=2) for _ in range(5)]
    for number, request in enumerate(others, start=1):
        begin(request, loop, number, "text")
    for written in range(1, 12):
        assert len(first.told[0]) == written
        loop.step()
    finish(loop)
    check_alone(sourced_model("text"), "text", first, *others)


def test_a_source_waits_until_it_has_room_and_one_that_never_has_is_refused():
    pool = BlockPool(8)
    scheduler = Scheduler(pool, 50, 4)
    long = source_of([1] * 90)
    first = scheduler.add([1], 10, source=long)
    second = scheduler.add([1], 10, source=source_of([2] * 30))
    assert [chunk.sequence for chunk in scheduler.schedule().chunks] == [first]
    assert (pool.available, long.table is None) == (1, False)
    scheduler.remove(first)
    assert (pool.available, long.table is None) == (8, True)
    assert [chunk.sequence for chunk in scheduler.schedule().chunks] == [second]
    with pytest.raises(ValueError, match="10 tokens do not fit into the cache, which holds 128"):
        scheduler.add([1], 10, source=source_of([1] * 113))


def test_different_sources_have_different_keys():
    contents = [torch.tensor([1, 2]), torch.tensor([2, 1]), torch.tensor([1]), sound(4, 0), sound(4, 1), sound(3, 0)]
    contents.append(contents[3].float())
    keys = [source_of(content if content.ndim > 1 else content.tolist()).key for content in contents]
    assert len(set(keys)) == len(keys)
    assert source_of([1, 2]).key == source_of([1, 2]).key


def test_calls_are_divided_by_the_length_of_sources_too():
    """Texts of three tokens, two for a source of 80 tokens and two for one of 9: neither is padded to the other."""
    model, calls = sourced_model("text"), []
    pool = BlockPool(60)
    runner, scheduler = Runner(model, 60), Scheduler(pool, 400, 8)
    for length in (80, 9, 80, 9):
        scheduler.add([1, 2, 3], 9, source=source_of([7] * length))
    handle = model.decoder.layers[0].register_forward_pre_hook(
        lambda _, given: calls.append((given[0].shape[0], given[3]._source_slots_bs.shape[1]))
    )
    runner.run(scheduler.schedule())
    handle.remove()
    assert calls == [(2, 80), (2, 9)]
