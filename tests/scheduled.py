"""A machine that runs a scheduler and only remembers tokens, and requests that it serves as the engine's loop does."""

from dataclasses import dataclass, field

from hypothesis import strategies as st

from groundup.engine.blocks import BLOCK_TOKENS, blocks_for
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
    """Runs a scheduler; `cells` is what stands in blocks, `window_cells` what does in those of windows."""

    scheduler: Scheduler
    recurrent: bool = False
    reach: int | None = None
    cells: dict[int, list[int]] = field(default_factory=dict)
    window_cells: dict[int, list[int]] = field(default_factory=dict)
    answers: dict[Sequence, int] = field(default_factory=dict)
    steps: int = 0

    def compute(self, step: Step) -> None:
        for cells, copies in ((self.cells, step.copies), (self.window_cells, step.window_copies)):
            for copy in copies:
                cells[copy.target] = list(cells[copy.source])
        for sequence, start, count in step.chunks:
            assert start == sequence.computed and 1 <= count <= len(sequence.tokens) - start
            self._read(sequence, start)
            if self.recurrent:
                assert (sequence.state or ()) == tuple(sequence.tokens[:start])
                sequence.state = tuple(sequence.tokens[: start + count])
            for place in range(start, start + count):
                block = sequence.table.block_of(place // BLOCK_TOKENS)
                assert not self.scheduler.pool.is_shared(block)
                _write_cell(self.cells, block, place, sequence.tokens[place])
                if self.scheduler.pool.windows is not None:
                    own = sequence.table.window_block_of(place // BLOCK_TOKENS)
                    _write_cell(self.window_cells, own, place, sequence.tokens[place])
        for sequence, start, _ in step.chunks:
            self._read_window(sequence, start)  # nobody has written to what another sees
        self.steps += 1

    def _read(self, sequence: Sequence, start: int) -> None:
        seen = [token for block in sequence.table.blocks for token in self.cells.get(block, [])]
        first = sequence.table.first_token
        assert seen[: start - first] == sequence.tokens[first:start]
        # All that can be seen is still there.
        assert first == 0 or (self.reach is not None and first <= max(0, start - self.reach))
        self._read_window(sequence, start)

    def _read_window(self, sequence: Sequence, start: int) -> None:
        """What the token at `start` can see in blocks of windows is right."""
        windows = self.scheduler.pool.windows
        if windows is not None:
            numbers = sequence.table.window_numbers()
            for place in range(max(0, start - windows.window), start):
                cell = self.window_cells[int(numbers[place // BLOCK_TOKENS])]
                assert cell[place % BLOCK_TOKENS] == sequence.tokens[place]


def _write_cell(cells: dict[int, list[int]], block: int, place: int, token: int) -> None:
    cell = cells.setdefault(block, [-1] * BLOCK_TOKENS)
    if place % BLOCK_TOKENS == 0:
        cell[:] = [-1] * BLOCK_TOKENS
    cell[place % BLOCK_TOKENS] = token


def serve(machine: Machine, wishes: list[Wish], budget: int) -> dict[int, list[Sequence]]:
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
        _check_sight(scheduler)
    raise AssertionError("not all requests were served")


def _check_sight(scheduler: Scheduler) -> None:
    """Texts have no more in sight than a window, what a step may have computed behind it, and a block begun."""
    windows = scheduler.pool.windows
    if windows is not None:
        tables = [one.table for one in scheduler.running]
        seen = {block for table in tables for block in table.blocks[table.closed : table.opened]}
        assert windows.available == windows.count - len(seen)
        for one in scheduler.running:
            certain = min(one.computed, one.certain)
            assert one.table.closed * BLOCK_TOKENS >= certain - windows.window - BLOCK_TOKENS + 1
            assert one.table.opened <= blocks_for(len(one.tokens))


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
