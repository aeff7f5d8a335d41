"""The scheduler against a machine that only remembers tokens: it never reads what was not written, and all get done."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.engine.blocks import BLOCK_TOKENS, BlockPool, blocks_for
from groundup.engine.scheduler import Scheduler
from groundup.engine.sequence import Sequence, Step


@dataclass
class Wish:
    """A request: when it comes, how long it is, what it shares, when it is given up, how many copies it wants."""

    at: int
    prompt: int
    answer: int
    branch: int
    cancelled_after: int | None
    copies: int
    guesses: int = 0

    @property
    def tokens(self) -> list[int]:
        return [place if place < 20 else 100 * self.branch + place for place in range(self.prompt)]

    @property
    def most_tokens(self) -> int:
        return self.prompt + self.answer - 1


@dataclass
class Machine:
    """Runs a scheduler; `cells` is what stands in blocks."""

    scheduler: Scheduler
    recurrent: bool = False
    reach: int | None = None
    cells: dict[int, list[int]] = field(default_factory=dict)
    answers: dict[Sequence, int] = field(default_factory=dict)
    steps: int = 0

    def compute(self, step: Step) -> None:
        for copy in step.copies:
            self.cells[copy.target] = list(self.cells[copy.source])
        for sequence, start, count in step.chunks:
            assert start == sequence.computed and 1 <= count <= len(sequence.tokens) - start
            self._read(sequence, start)
            if self.recurrent:
                assert (sequence.state or ()) == tuple(sequence.tokens[:start])
                sequence.state = tuple(sequence.tokens[: start + count])
            for place in range(start, start + count):
                block = sequence.table.block_of(place // BLOCK_TOKENS)
                assert not self.scheduler.pool.is_shared(block)
                cell = self.cells.setdefault(block, [-1] * BLOCK_TOKENS)
                if place % BLOCK_TOKENS == 0:
                    cell[:] = [-1] * BLOCK_TOKENS
                cell[place % BLOCK_TOKENS] = sequence.tokens[place]
        self.steps += 1

    def _read(self, sequence: Sequence, start: int) -> None:
        seen = [token for block in sequence.table.blocks for token in self.cells.get(block, [])]
        first = sequence.table.first_token
        assert seen[: start - first] == sequence.tokens[first:start]
        # All that can be seen is still there.
        assert first == 0 or (self.reach is not None and first <= max(0, start - self.reach))


def _serve(machine: Machine, wishes: list[Wish], budget: int) -> dict[int, list[Sequence]]:
    """Serve all wishes to their ends, as the engine's loop does; returns the sequences of each."""
    scheduler, served = machine.scheduler, {}
    owner: dict[Sequence, int] = {}
    left = sorted(enumerate(wishes), key=lambda pair: pair[1].at)
    for time in range(10_000):
        while left and left[0][1].at <= time:
            number, wish = left.pop(0)
            sequence = scheduler.add(wish.tokens, wish.most_tokens)
            served[number], owner[sequence], machine.answers[sequence] = [sequence], number, 0
        for sequence in list(owner):
            wish = wishes[owner[sequence]]
            if wish.cancelled_after is not None and time - wish.at >= wish.cancelled_after:
                scheduler.remove(sequence)
                del owner[sequence]
        if not owner and not left:
            return served
        running = [one for one in scheduler.running if one.pending == 1]
        for sequence in running:
            if machine.answers[sequence] > 0:
                _guess(machine, sequence, wishes[owner[sequence]])
        step = scheduler.schedule()
        assert step.chunks or not owner
        assert sum(chunk.length for chunk in step.chunks) <= budget
        assert len({chunk.sequence for chunk in step.chunks}) == len(step.chunks)
        # Whoever writes gets its token in every step, unless its blocks were needed by an older one.
        computed = {chunk.sequence for chunk in step.chunks}
        assert all(one in computed or one in scheduler.waiting for one in running)
        machine.compute(step)
        scheduler.complete(step)
        for chunk in step.chunks:
            if chunk.is_last and chunk.sequence in owner:
                _write(machine, chunk.sequence, owner, wishes, served)
        blocks = {block for one in scheduler.running for block in one.table.blocks}
        assert scheduler.pool.available == scheduler.pool.count - len(blocks)
        assert not any(one.table.blocks or one.state for one in scheduler.waiting)
    raise AssertionError("not all requests were served")


def _next_token(sequence: Sequence, length: int) -> int:
    """The token that follows the first `length` of a sequence."""
    return 7_000 + 10 * length + sequence.order[1]


def _guess(machine: Machine, sequence: Sequence, wish: Wish) -> None:
    """Guesses of which some are right."""
    count = min(wish.guesses, wish.answer - machine.answers[sequence] - 1)
    length = len(sequence.tokens)
    right = (7 * length + wish.branch) % (count + 1)
    sequence.guess([_next_token(sequence, length + ahead) if ahead < right else -2 for ahead in range(count)])


def _write(machine: Machine, parent: Sequence, owner: dict, wishes: list[Wish], served: dict) -> None:
    scheduler, number, group = machine.scheduler, owner[parent], [parent]
    if machine.answers[parent] == 0 and len(served[number]) == 1:
        for _ in range(1, wishes[number].copies):
            child = scheduler.fork(parent)
            owner[child], machine.answers[child] = number, 0
            served[number].append(child)
            group.append(child)
    for sequence in group:
        right = sum(1 for guess in sequence.guesses if guess != -2)
        scheduler.settle(sequence, right)
        assert sequence.guesses == []
        if sequence not in scheduler.waiting:
            assert sequence.pending == 0
            assert len(sequence.table.blocks) + sequence.table.dropped == blocks_for(len(sequence.tokens))
        machine.answers[sequence] += 1 + right
        sequence.tokens.append(_next_token(sequence, len(sequence.tokens)))
        if machine.answers[sequence] == wishes[number].answer:
            scheduler.remove(sequence)
            del owner[sequence]


WISHES = st.builds(
    Wish,
    at=st.integers(0, 12),
    prompt=st.integers(1, 70),
    answer=st.integers(1, 25),
    branch=st.integers(0, 2),
    cancelled_after=st.one_of(st.none(), st.none(), st.integers(0, 15)),
    copies=st.sampled_from([1, 1, 1, 2, 4]),
    guesses=st.sampled_from([0, 1, 4, 20]),
)


@settings(max_examples=150, deadline=None)
@given(
    wishes=st.lists(WISHES, min_size=1, max_size=10),
    count=st.integers(6, 20),
    budget=st.sampled_from([6, 20, 64, 500]),
    most_running=st.sampled_from([1, 3, 6]),
    recurrent=st.booleans(),
    reach=st.sampled_from([None, 0, 5, 17]),
    host=st.sampled_from([0, 2, 30]),
)
def test_all_are_served_whatever_comes_and_nothing_is_left(
    wishes: list[Wish], count: int, budget: int, most_running: int, recurrent: bool, reach: int | None, host: int
):
    pool = BlockPool(count, host=host)
    if recurrent:
        wishes = [replace(wish, guesses=0) for wish in wishes]
    scheduler = Scheduler(pool, budget, most_running, recurrent=recurrent, reach=reach)
    machine = Machine(scheduler, recurrent, reach)
    served = _serve(machine, wishes, budget)
    for number, sequences in served.items():
        wish = wishes[number]
        for sequence in sequences:
            assert sequence.tokens[: wish.prompt] == wish.tokens
            assert machine.answers[sequence] == wish.answer or wish.cancelled_after is not None
        assert len(sequences) == wish.copies or wish.cancelled_after is not None
    assert pool.available == count
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
