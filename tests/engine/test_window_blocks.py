"""Blocks of windows: no more in sight than there are, found again where texts begin alike, and given up in turn."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduled import Machine
from workloads import Request, check_alone, finish, pool_of, runner_of, workload_model

from groundup.engine.blocks import BLOCK_TOKENS, BlockPool, blocks_for
from groundup.engine.loop import Loop
from groundup.engine.scheduler import Scheduler
from groundup.engine.sequence import Sequence
from groundup.engine.sight import blocks_in_sight, reach, window_of, windowed_layers
from groundup.engine.window_blocks import WindowBlocks

WINDOW = 20


def _scheduler(count: int, blocks: int = 40, host: int = 0) -> Scheduler:
    windows = WindowBlocks(count, blocks, WINDOW, BLOCK_TOKENS)
    return Scheduler(BlockPool(blocks, host=host, windows=windows), budget=32, most_running=2)


def _compute(scheduler: Scheduler, machine: Machine, sequence: Sequence) -> int:
    """All of a text's tokens, and its end; returns how many had to be computed."""
    computed = 0
    while sequence.pending:
        machine.compute(step := scheduler.schedule())
        scheduler.complete(step)
        computed += sum(chunk.length for chunk in step.chunks)
    scheduler.remove(sequence)
    return computed


@given(
    window=st.integers(1, 13), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), size=st.sampled_from([1, 4])
)
def test_no_more_blocks_can_be_in_sight_than_are_counted(window: int, lengths: list[int], size: int):
    """By trying every place at which the new tokens of each text may begin."""
    most = sum(
        max(blocks_for(start + length, size) - max(0, start - window) // size for start in range(60))
        for length in lengths
    )
    assert most <= blocks_in_sight(window, len(lengths), sum(lengths), size)


def test_as_many_as_are_counted_are_in_sight_somewhere():
    """Guesses behind four tokens each, which begin and end within blocks of four."""
    window, length, size, texts = 4, 3, 4, 8
    most = texts * max(blocks_for(start + length, size) - (start - window) // size for start in range(4, 60))
    assert most > blocks_in_sight(window, texts, texts * length, size) - texts


@pytest.mark.parametrize(("name", "windows"), [("some windows", [0, 2]), ("llama", []), ("windowed", [0, 1])])
def test_layers_have_blocks_of_windows_where_others_see_everything(name: str, windows: list[int]):
    model = workload_model(name)
    assert windowed_layers(model) == windows
    assert (window_of(model), reach(model)) == {
        "some windows": (13, None),
        "llama": (None, None),
        "windowed": (None, 20),
    }[name]


@pytest.mark.parametrize("packed", [False, True])
def test_a_long_text_has_few_blocks_of_windows_in_sight(packed: bool):
    model = workload_model("some windows")
    pool = pool_of(model, 8, 16, 1)
    assert pool.windows is not None and pool.windows.count == 4
    loop = Loop(runner_of(model, pool, packed), Scheduler(pool, 16, 1))
    request = Request(0, 5, 1, 90)
    request.begin(loop, 0)
    held: list[tuple[int, int]] = []

    def look() -> None:
        assert pool.windows is not None
        held.append((pool.count - pool.available, pool.windows.count - pool.windows.available))

    finish(loop, look)
    assert max(held) == (6, 2)  # 95 tokens, and the 13 before one of them
    check_alone(model, request)


def test_a_text_goes_on_where_another_ended_that_began_alike():
    scheduler = _scheduler(count=12)
    machine = Machine(scheduler)
    conversation = list(range(100))
    assert _compute(scheduler, machine, scheduler.add(conversation, 200)) == 100
    longer = scheduler.add([*conversation, *range(500, 520)], 200)
    assert _compute(scheduler, machine, longer) == 24
    assert longer.cached == 96


def test_what_is_out_of_sight_is_of_use_until_its_blocks_are_needed():
    """A text of 100 tokens shares 50 with an earlier one: of that, blocks of windows are left, or none are."""
    for count, cached in ((12, 48), (5, 0)):
        scheduler = _scheduler(count)
        machine = Machine(scheduler)
        _compute(scheduler, machine, scheduler.add(range(100), 200))
        other = scheduler.add([*range(50), *range(500, 550)], 200)
        assert _compute(scheduler, machine, other) == 100 - cached
        assert other.cached == cached


def test_what_had_to_be_computed_anew_for_its_window_is_found_with_it_from_then_on():
    scheduler = _scheduler(count=6)
    machine = Machine(scheduler)
    _compute(scheduler, machine, scheduler.add(range(200), 400))
    beginning = [*range(48), 9]
    for cached in (0, 48):  # the first block of 48 tokens is known, and has none of windows
        again = scheduler.add(beginning, 100)
        _compute(scheduler, machine, again)
        assert again.cached == cached


def test_blocks_of_windows_go_to_the_host_with_the_others_and_come_back():
    scheduler = _scheduler(count=8, blocks=8, host=8)
    machine = Machine(scheduler)
    first = list(range(100))
    _compute(scheduler, machine, scheduler.add(first, 128))
    _compute(scheduler, machine, scheduler.add(range(1000, 1120), 128))  # takes every block
    again = scheduler.add([*first, 7], 128)
    assert _compute(scheduler, machine, again) == 5
    assert again.cached == 96


@pytest.mark.parametrize(("count", "blocks"), [(0, 4), (5, 4)])
def test_there_is_one_at_least_and_one_for_each_block_at_most(count: int, blocks: int):
    with pytest.raises(ValueError, match=f"for {blocks} blocks there are 1 to {blocks} of windows, not {count}"):
        WindowBlocks(count, blocks, WINDOW, BLOCK_TOKENS)


def test_more_in_sight_than_there_are_and_more_given_up_than_seen_are_refused():
    windows = WindowBlocks(1, 3, WINDOW, BLOCK_TOKENS)
    windows.watch(2)
    with pytest.raises(IndexError, match="all 1 blocks of windows are in sight"):
        windows.watch(0)
    windows.unwatch(2)
    with pytest.raises(ValueError, match="no text has block 2 in sight"):
        windows.unwatch(2)
