"""Blocks: whatever happens each is accounted for, nobody writes to what others read, and what is found is right."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from groundup.engine.block_table import BlockTable
from groundup.engine.blocks import BLOCK_TOKENS, BlockPool, blocks_for

COUNT = 12


class Memory:
    """What stands in blocks, and tables that read and write it as sequences of tokens."""

    def __init__(self, host: int = 0) -> None:
        self.pool = BlockPool(COUNT, host=host)
        self.cells: dict[int, list[int]] = {block: [-1] * BLOCK_TOKENS for block in range(COUNT + host)}
        self.texts: list[tuple[BlockTable, list[int]]] = []

    def begin(self, tokens: list[int]) -> bool:
        """A new text, whose beginning is looked for; returns whether there was room."""
        table, found, content = BlockTable(self.pool), [], b""
        for index in range(len(tokens) // BLOCK_TOKENS):
            part = tokens[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS]
            content = self.pool.chained_hash(content, part)
            block = self.pool.find(content, part)
            if block is None:
                break
            assert self.cells[block] == part
            found.append(block)
        fresh = blocks_for(len(tokens)) - sum(map(self.pool.is_held, found))
        if fresh > self.pool.available:
            return False
        before = self.pool.available
        table.adopt(found)
        self._copy()
        assert before - self.pool.available == len(found) - sum(self.pool.is_shared(block) for block in table.blocks)
        assert max(table.blocks, default=0) < COUNT, "nobody computes with a block on the host"
        known = len(found) * BLOCK_TOKENS
        self.texts.append((table, tokens[:known]))
        self.append(len(self.texts) - 1, tokens[known:])
        return True

    def append(self, number: int, more: list[int]) -> None:
        table, tokens = self.texts[number]
        if table.wanted(len(tokens) + len(more), len(tokens)) > self.pool.available:
            return
        before = self.pool.available
        wanted = table.wanted(len(tokens) + len(more), len(tokens))
        table.grow(len(tokens) + len(more), len(tokens))
        self._copy()
        assert before - self.pool.available == wanted
        for token in more:
            block = table.block_of(len(tokens) // BLOCK_TOKENS)
            assert not self.pool.is_shared(block)
            self.cells[block][len(tokens) % BLOCK_TOKENS] = token
            tokens.append(token)
        self._publish(table, tokens)

    def fork(self, number: int) -> None:
        table, tokens = self.texts[number]
        self.texts.append((table.fork(), list(tokens)))

    def drop(self, number: int, before: int) -> None:
        table, tokens = self.texts[number]
        table.drop_before(min(before, len(tokens)))

    def end(self, number: int) -> None:
        self.texts.pop(number)[0].release()

    def check(self) -> None:
        held = Counter(block for table, _ in self.texts for block in table.blocks)
        assert self.pool.available == COUNT - len(held)
        for block in range(COUNT):
            assert self.pool.is_held(block) == (block in held)
            assert self.pool.is_shared(block) == (held[block] > 1)
        for table, tokens in self.texts:
            assert table.numbers().tolist() == [0] * table.dropped + table.blocks
            read = [token for block in table.blocks for token in self.cells[block]]
            assert read[: len(tokens) - table.first_token] == tokens[table.first_token :]

        assert self.pool._known == {content: block for block, (content, _) in self.pool._content.items()}
        for block, (_, part) in self.pool._content.items():
            assert self.cells[block] == list(part), "what is known of a block stands in it"
        assert sorted(self.pool._spare) == list(range(COUNT, COUNT + self.pool.host))

    def _copy(self) -> None:
        for copy in self.pool.take_copies():
            self.cells[copy.target] = list(self.cells[copy.source])

    def _publish(self, table: BlockTable, tokens: list[int]) -> None:
        content = b""
        for index in range(len(tokens) // BLOCK_TOKENS):
            part = tokens[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS]
            content = self.pool.chained_hash(content, part)
            if index >= table.dropped:
                self.pool.publish(table.block_of(index), content, part)


def _text(length: int, branch: int) -> list[int]:
    """Texts of one branch begin alike; all share the first block and a half."""
    return [place if place < 24 else place * (branch + 1) for place in range(length)]


ACTIONS = st.one_of(
    st.tuples(st.just("begin"), st.integers(1, 90), st.integers(0, 2)),
    st.tuples(st.just("append"), st.integers(0, 9), st.integers(1, 20)),
    st.tuples(st.just("fork"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("drop"), st.integers(0, 9), st.integers(0, 60)),
    st.tuples(st.just("end"), st.integers(0, 9), st.just(0)),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ACTIONS, max_size=40), st.sampled_from([0, 1, 4, 20]))
def test_any_schedule_leaves_every_block_free_and_every_text_as_it_was_written(
    actions: list[tuple[str, int, int]], host: int
):
    memory = Memory(host)
    for name, first, second in actions:
        if name == "begin":
            memory.begin(_text(first, second))
        elif memory.texts:
            number = first % len(memory.texts)
            match name:
                case "append":
                    memory.append(number, [1000 + len(memory.texts) * 50 + one for one in range(second)])
                case "fork":
                    memory.fork(number)
                case "drop":
                    memory.drop(number, second)
                case "end":
                    memory.end(number)
        memory.check()
    while memory.texts:
        memory.end(0)
    assert memory.pool.available == COUNT


def test_the_beginning_of_a_text_that_is_gone_is_found_until_its_blocks_are_needed():
    memory = Memory()
    assert memory.begin(_text(4 * BLOCK_TOKENS, 0))
    first = list(memory.texts[0][0].blocks)
    memory.end(0)
    assert memory.begin(_text(4 * BLOCK_TOKENS, 0))
    assert memory.texts[0][0].blocks == first
    memory.end(0)
    assert memory.begin([5000 + place for place in range(COUNT * BLOCK_TOKENS)])  # takes all there is
    memory.end(0)
    assert memory.begin(_text(4 * BLOCK_TOKENS, 0))
    memory.check()


def test_what_is_least_recently_used_is_forgotten_first_and_the_end_of_a_text_before_its_beginning():
    memory = Memory()
    for branch in (0, 1):
        memory.begin([branch * 1000 + place for place in range(4 * BLOCK_TOKENS)])
        memory.end(0)
    # Four blocks were never used; the fifth and sixth are the last two of the older text.
    memory.begin([9000 + place for place in range(6 * BLOCK_TOKENS)])

    def known(branch: int) -> list[bool]:
        found, content = [], b""
        for index in range(4):
            part = [branch * 1000 + index * BLOCK_TOKENS + place for place in range(BLOCK_TOKENS)]
            content = memory.pool.chained_hash(content, part)
            found.append(memory.pool.find(content, part) is not None)
        return found

    assert known(0) == [True, True, False, False]
    assert all(known(1))


def test_a_block_in_which_nothing_known_stands_is_taken_before_one_that_may_be_found():
    pool = BlockPool(2)
    known, unknown = pool.take(), pool.take()
    pool.publish(known, b"hash", [1])
    pool.release(known)
    pool.release(unknown)
    assert pool.take() == unknown


def test_texts_that_differ_before_a_block_do_not_share_it():
    memory = Memory()
    same = list(range(BLOCK_TOKENS))
    memory.begin([1] * BLOCK_TOKENS + same)
    memory.begin([2] * BLOCK_TOKENS + [7] * BLOCK_TOKENS)
    memory.begin([2] * BLOCK_TOKENS + same)
    (first, _), (second, _), (third, _) = memory.texts
    assert third.blocks[0] == second.blocks[0]
    assert third.blocks[1] not in (first.blocks[1], second.blocks[1])


def test_states_are_kept_for_known_blocks_alone_and_only_so_many():
    pool = BlockPool(4, snapshots=2)
    blocks = [pool.take() for _ in range(4)]
    pool.remember(blocks[0], "unknown")
    assert pool.state_after(blocks[0]) is None
    for number, block in enumerate(blocks):
        pool.publish(block, bytes([number]), [number])
        pool.remember(block, number)
    assert [pool.state_after(block) for block in blocks] == [None, None, 2, 3]
    assert pool.take_copies() == []
    pool.release(blocks[2])
    assert pool.take() == blocks[2]  # for something else, so that nothing is known of it any more
    assert pool.state_after(blocks[2]) is None


def _begin_and_end(memory: Memory, first: int, blocks: int) -> None:
    assert memory.begin([first + place for place in range(blocks * BLOCK_TOKENS)])
    memory.check()
    memory.end(0)


def _found(memory: Memory, first: int, blocks: int) -> int:
    """How many of the first blocks of such a text are known."""
    content = b""
    for index in range(blocks):
        part = [first + index * BLOCK_TOKENS + place for place in range(BLOCK_TOKENS)]
        content = memory.pool.chained_hash(content, part)
        if memory.pool.find(content, part) is None:
            return index
    return blocks


def test_what_has_to_give_way_moves_to_the_host_and_comes_back():
    memory = Memory(host=COUNT + 8)  # also for what is displaced while others come back
    _begin_and_end(memory, 1000, 8)
    _begin_and_end(memory, 5000, COUNT)  # takes all there is
    assert (_found(memory, 1000, 8), _found(memory, 5000, COUNT)) == (8, COUNT)
    _begin_and_end(memory, 1000, 8)
    assert (_found(memory, 1000, 8), _found(memory, 5000, COUNT)) == (8, COUNT)


def test_a_full_host_forgets_what_gave_way_first():
    memory = Memory(host=4)
    _begin_and_end(memory, 1000, 6)
    _begin_and_end(memory, 5000, COUNT)
    # Six blocks were never used; the other six gave way from the last to the first, which went to the host.
    assert _found(memory, 1000, 6) == 4
    assert _found(memory, 5000, COUNT) == COUNT


def test_what_is_computed_again_is_known_where_it_was_computed():
    """And the place on the host is free for something else."""
    pool = BlockPool(1, host=1)
    block = pool.take()
    pool.publish(block, b"hash", [1])
    pool.remember(block, "state")
    pool.release(block)
    pool.take()
    assert (pool.find(b"hash", [1]), pool.take_copies()) == (1, [(block, 1)])
    assert pool.state_after(1) == "state"
    pool.publish(block, b"hash", [1])
    assert (pool.find(b"hash", [1]), pool.state_after(block)) == (block, "state")
    assert pool._content == {block: (b"hash", (1,))}


def test_a_place_on_the_host_that_is_free_again_is_taken_before_another_is_forgotten():
    pool = BlockPool(2, host=2)
    first, second = pool.take(), pool.take()
    for block, content in ((first, b"first"), (second, b"second")):
        pool.publish(block, content, [1])
        pool.release(block)
    pool.take(), pool.take()  # both move to the host
    pool.publish(second, b"second", [1])  # computed again
    pool.release(second)
    pool.take()
    assert pool.find(b"first", [1]) is not None and pool.find(b"second", [1]) is not None


def test_what_comes_back_is_not_displaced_by_what_makes_room_for_it():
    pool = BlockPool(1, host=1)
    block = pool.take()
    pool.publish(block, b"old", [1])
    pool.release(block)
    assert pool.take() == block
    pool.publish(block, b"new", [2])
    pool.release(block)
    assert pool.hold([pool.find(b"old", [1])]) == [block]
    assert pool.take_copies() == [(0, 1), (1, 0)]
    assert (pool.find(b"old", [1]), pool.find(b"new", [2])) == (block, None)


def test_misuse_is_refused():
    pool = BlockPool(1)
    block = pool.take()
    with pytest.raises(IndexError, match="all 1 blocks are held"):
        pool.take()
    pool.release(block)
    with pytest.raises(ValueError, match="more often than held"):
        pool.release(block)
    with pytest.raises(ValueError, match="at least one block"):
        BlockPool(0)
    with pytest.raises(ValueError, match="no block on the host or more, not -1"):
        BlockPool(1, host=-1)
