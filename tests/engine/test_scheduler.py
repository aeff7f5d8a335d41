"""The scheduler against a machine that only remembers tokens: it never reads what was not written, and all get done."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduled import WISHES, Machine, Wish, serve

from groundup.engine.blocks import BLOCK_TOKENS, BlockPool, blocks_for
from groundup.engine.scheduler import Scheduler
from groundup.engine.sequence import Sequence
from groundup.engine.sight import blocks_in_sight
from groundup.engine.window_blocks import WindowBlocks


@settings(max_examples=150, deadline=None)
@given(
    wishes=st.lists(WISHES, min_size=1, max_size=10),
    count=st.integers(6, 20),
    budget=st.sampled_from([6, 20, 64, 500]),
    most_running=st.sampled_from([1, 3, 6]),
    recurrent=st.booleans(),
    reach=st.sampled_from([None, 0, 5, 17]),
    host=st.sampled_from([0, 2, 30]),
    window=st.sampled_from([None, 1, 5, 16, 40]),
    further=st.integers(0, 6),
)
def test_all_are_served_whatever_comes_and_nothing_is_left(
    wishes: list[Wish],
    count: int,
    budget: int,
    most_running: int,
    recurrent: bool,
    reach: int | None,
    host: int,
    window: int | None,
    further: int,
):
    """window: of layers that have blocks of their own, as many as all can have in sight and so many more."""
    windows = None
    if reach is None and window is not None:
        in_sight = blocks_in_sight(window, most_running, budget, BLOCK_TOKENS)
        windows = WindowBlocks(min(count, in_sight + further), count, window, BLOCK_TOKENS)
    pool = BlockPool(count, host=host, windows=windows)
    if recurrent:
        wishes = [replace(wish, guesses=0) for wish in wishes]
    scheduler = Scheduler(pool, budget, most_running, recurrent=recurrent, reach=reach)
    machine = Machine(scheduler, recurrent, reach)
    served = serve(machine, wishes, budget)
    for number, sequences in served.items():
        wish = wishes[number]
        for sequence in sequences:
            assert sequence.tokens[: wish.prompt] == wish.tokens
            assert machine.answers[sequence] == wish.answer or wish.cancelled_after is not None
        assert len(sequences) == wish.copies or wish.cancelled_after is not None
    assert pool.available == count
    assert windows is None or windows.available == windows.count
    assert not scheduler.running and not scheduler.waiting


def test_a_long_prompt_stops_neither_running_texts_nor_short_prompts():
    pool = BlockPool(100)
    scheduler = Scheduler(pool, budget=64, most_running=8)
    machine = Machine(scheduler)
    writing = scheduler.add([1, 2, 3], 100)
    machine.compute(step := scheduler.schedule())
    scheduler.complete(step)
    writing.tokens.append(4)
    long, short = scheduler.add(range(1000, 1800), 900), scheduler.add(range(5000, 5020), 100)
    step = scheduler.schedule()
    counts = {chunk.sequence: chunk.length for chunk in step.chunks}
    assert counts == {writing: 1, long: 31, short: 20}
    machine.compute(step)
    scheduler.complete(step)
    short.tokens.append(9)
    writing.tokens.append(5)
    assert {chunk.sequence: chunk.length for chunk in scheduler.schedule().chunks} == {writing: 1, short: 1, long: 62}


def _order_of_service(scheduler: Scheduler, most_steps: int = 1000) -> Iterator[Sequence]:
    """Sequences as they are admitted; each is at its end after one step."""
    for _ in range(most_steps):
        step = scheduler.schedule()
        scheduler.complete(step)
        for chunk in step.chunks:
            scheduler.remove(chunk.sequence)
            yield chunk.sequence


def test_calls_take_turns():
    """What is asked while a thousand texts of one call wait is admitted with the next two of them."""
    scheduler = Scheduler(BlockPool(100), budget=64, most_running=1)
    crowd = [scheduler.add([1, 2], 2, place=place) for place in range(1000)]
    service = _order_of_service(scheduler, most_steps=2000)
    assert [next(service) for _ in range(10)] == crowd[:10]
    single = scheduler.add([3], 1)
    pair = [scheduler.add([4], 1, place=place) for place in range(2)]
    assert [next(service) for _ in range(6)] == [crowd[10], single, pair[0], crowd[11], pair[1], crowd[12]]
    assert list(service) == crowd[13:]


def test_a_call_of_many_has_its_turns_however_many_others_come():
    scheduler = Scheduler(BlockPool(100), budget=64, most_running=1)
    crowd = [scheduler.add([1, 2], 2, place=place) for place in range(20)]
    served = []
    for sequence in _order_of_service(scheduler, most_steps=200):
        served.append(sequence in crowd)
        if not served[-1] or len(served) == 1:
            scheduler.add([3], 1)  # there is always somebody with a single text
            scheduler.add([4], 1)
    assert sum(served) > 5
    rounds = [len(list(run)) for is_of_crowd, run in groupby(served) if not is_of_crowd]
    assert rounds[:5] == [2, 4, 8, 16, 32]  # those that came during the round before: all get their turn, one each


def test_the_youngest_gives_way_and_is_served_later():
    scheduler = Scheduler(BlockPool(4), budget=64, most_running=4)
    old, young = scheduler.add(range(16), 60), scheduler.add(range(100, 116), 40)
    step = scheduler.schedule()
    assert [chunk.sequence for chunk in step.chunks] == [old, young]
    late = scheduler.add(range(200, 250), 60)
    while scheduler.running == [old, young]:
        scheduler.complete(step)
        for sequence in (old, young):
            sequence.tokens.append(0)
        step = scheduler.schedule()
    assert scheduler.running == [old] and list(scheduler.waiting) == [young, late]
    assert young.computed == 0 and young.table.blocks == []
    length = len(young.tokens)
    scheduler.remove(old)
    chunks = scheduler.schedule().chunks
    assert [chunk.sequence for chunk in chunks] == [young]
    assert chunks[0].start + chunks[0].length == length


@pytest.mark.parametrize("recurrent", [False, True])
def test_with_a_host_a_text_that_gave_way_goes_on_where_its_last_whole_block_ends(recurrent: bool):
    scheduler = Scheduler(BlockPool(6, host=4), budget=64, most_running=4, recurrent=recurrent)
    machine = Machine(scheduler, recurrent)
    old, young = scheduler.add(range(17), 96), scheduler.add(range(100, 117), 60)

    def turn() -> None:
        machine.compute(step := scheduler.schedule())
        scheduler.complete(step)

    turn()
    while old.computed < 92:  # takes every block there is
        for sequence in scheduler.running:
            sequence.tokens.append(0)
        turn()
    assert scheduler.running == [old] and young.computed == 0
    whole = len(young.tokens) - len(young.tokens) % BLOCK_TOKENS
    scheduler.remove(old)
    step = scheduler.schedule()
    assert step.chunks == [(young, whole, len(young.tokens) - whole)] and whole == 48
    assert sum(copy.source >= 6 for copy in step.copies) == 3
    machine.compute(step)
    assert young.cached == 0


@pytest.mark.parametrize(("length", "admitted"), [(16, True), (17, False)])
def test_admission_leaves_a_block_for_each_running_text(length: int, admitted: bool):
    scheduler = Scheduler(BlockPool(4), budget=64, most_running=4)
    scheduler.add(range(16), 60)
    scheduler.complete(scheduler.schedule())
    scheduler.running[0].tokens.append(7)
    scheduler.complete(scheduler.schedule())  # it has two blocks now
    scheduler.running[0].tokens.append(7)
    other = scheduler.add(range(100, 100 + length), 60)
    scheduler.schedule()
    assert (other in scheduler.running) == admitted


def test_a_recurrent_prompt_is_cut_where_its_state_can_be_kept_and_taken_up_there():
    scheduler = Scheduler(BlockPool(20), budget=64, most_running=4, recurrent=True)
    machine = Machine(scheduler, recurrent=True)
    first = scheduler.add(range(50), 60)
    counts = []
    while first.pending:
        machine.compute(step := scheduler.schedule())
        scheduler.complete(step)
        counts += [chunk.length for chunk in step.chunks]
    assert counts == [48, 2]
    other = scheduler.add([*range(49), 7, 7], 60)
    (chunk,) = scheduler.schedule().chunks
    assert (other.computed, chunk.length) == (48, 3)
    assert other.state == tuple(range(48))


def test_what_can_never_fit_is_refused():
    scheduler = Scheduler(BlockPool(2), budget=8, most_running=2)
    scheduler.add([1], 2 * BLOCK_TOKENS)
    with pytest.raises(ValueError, match="33 tokens do not fit into the cache, which holds 32"):
        scheduler.add([1], 2 * BLOCK_TOKENS + 1)
    with pytest.raises(ValueError, match="cannot serve 9 running"):
        Scheduler(BlockPool(2), budget=8, most_running=9)
    assert blocks_for(0) == 0 and blocks_for(16) == 1 and blocks_for(17) == 2


def test_guesses_take_what_is_left_and_nobody_gives_way_for_them():
    """Of a budget of 12: two texts take a token each, prompts and guesses half of the rest each."""
    scheduler = Scheduler(BlockPool(9), budget=12, most_running=4)
    first, second = scheduler.add(range(3), 40), scheduler.add(range(100, 103), 40)
    scheduler.complete(scheduler.schedule())
    for sequence in (first, second):
        sequence.tokens.append(7)
        sequence.guess([1, 2, 3, 4])
    prompt = scheduler.add(range(200, 230), 40)
    chunks = scheduler.schedule().chunks
    assert [(chunk.sequence, chunk.length) for chunk in chunks] == [(first, 5), (second, 1), (prompt, 6)]
    assert first.guesses == [1, 2, 3, 4] and second.guesses == []


def test_guesses_without_a_block_are_taken_back():
    """Three blocks: one is left, which the older text takes."""
    scheduler = Scheduler(BlockPool(3), budget=64, most_running=4)
    first, second = scheduler.add(range(14), 17), scheduler.add(range(100, 114), 17)
    scheduler.complete(scheduler.schedule())
    for sequence in (first, second):
        sequence.tokens.append(7)
        sequence.guess([1, 2])
    chunks = scheduler.schedule().chunks
    assert [(chunk.sequence, chunk.length) for chunk in chunks] == [(first, 3), (second, 1)]
    assert second.guesses == [] and scheduler.running == [first, second]


def test_blocks_with_guesses_become_known_only_when_these_were_right():
    pool = BlockPool(8)
    scheduler = Scheduler(pool, budget=64, most_running=4)
    text = scheduler.add(range(14), 60)
    scheduler.complete(scheduler.schedule())
    text.tokens.append(14)
    text.guess([15, 16, -2])
    scheduler.complete(scheduler.schedule())
    assert pool.find(pool.chained_hash(b"", range(16)), range(16)) is None
    scheduler.settle(text, 2)
    assert text.tokens == [*range(17)] and text.pending == 0
    assert pool.find(pool.chained_hash(b"", range(16)), range(16)) == text.table.blocks[0]


def test_a_fork_of_what_waits_waits_too_and_finds_the_beginning():
    """As a beam that gave way: nothing of it is computed, so nothing can be shared but what is known."""
    scheduler = Scheduler(BlockPool(8), budget=64, most_running=4)
    first = scheduler.add(range(20), 40)
    scheduler.complete(scheduler.schedule())
    scheduler.remove(first)
    parent = scheduler.add(range(20), 40)
    child = scheduler.fork(parent)
    assert list(scheduler.waiting) == [parent, child]
    assert [chunk[:2] for chunk in scheduler.schedule().chunks] == [(parent, BLOCK_TOKENS), (child, BLOCK_TOKENS)]
