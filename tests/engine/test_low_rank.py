"""What adapters add to the maps of a program: against float64 at every level, each token by itself to the bit."""

import numpy as np
import pytest
import torch
from torch import Tensor

from groundup.engine.kernels import library, low_rank
from groundup.engine.kernels.program import Program
from groundup.engine.kernels.tables import StepTables
from groundup.model.lora import Adapter, LowRank, LowRankTable

ROOM = 23
# Inputs, outputs, rank.
SIZES = [(1, 1, 1), (7, 5, 3), (70, 33, 4), (16, 64, 16), (300, 130, 9), (129, 200, 70)]


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _adapter(maps: dict[str, tuple[int, int]], rank: int, seed: int, dtype: torch.dtype = torch.float32) -> Adapter:
    pairs = {
        name: (_random(rank, inputs, seed=seed + place), _random(outputs, rank, seed=seed + place + 50))
        for place, (name, (inputs, outputs)) in enumerate(maps.items())
    }
    return Adapter("one", {name: LowRank(down.to(dtype), up.to(dtype)) for name, (down, up) in pairs.items()})


def _program(inputs: int, outputs: int) -> tuple[Program, Tensor, Tensor, Tensor]:
    """Two maps of one input, `first` and `second`, the second one output larger; with numbers in all buffers."""
    program = Program(ROOM)
    x, first, second = (program.buffer(name, n) for name, n in (("x", inputs), ("f", outputs), ("s", outputs + 1)))
    program.adapt(x, {"first": first, "second": second})
    for seed, buffer in enumerate((x, first, second)):
        buffer.copy_(_random(*buffer.shape, seed=seed))
    return program, x, first, second


def _require_close(found: Tensor, before: Tensor, x: Tensor, change: LowRank) -> None:
    """Rounding is bounded by what the sum would be if all its terms had one sign."""
    down, up = (one.double() for one in change)
    expected = before.double() + x.double() @ down.T @ up.T
    largest = before.double().abs() + x.double().abs() @ down.abs().T @ up.abs().T
    assert ((found.double() - expected).abs() <= 2e-6 * largest).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_each_token_gets_what_its_own_adapter_adds(level: str, size: tuple[int, int, int], dtype: torch.dtype):
    """Two adapters, of which the second leaves a map alone, tokens of none, and places that nobody uses."""
    inputs, outputs, rank = size
    program, x, first, second = _program(inputs, outputs)
    one = _adapter({"first": (inputs, outputs), "second": (inputs, outputs + 1)}, rank, 10, dtype)
    other = _adapter({"second": (inputs, outputs + 1)}, rank + 1, 20, dtype)
    before = first.clone(), second.clone()
    places = {one: torch.tensor([0, 3, 4, 5, 9, 12, 13, 14]), other: torch.tensor([2, 15])}
    program.run_rows(16, list(places.items()))
    for adapter, changed in ((one, (first, second)), (other, (second,))):
        for found, name in zip(changed, adapter.changes, strict=True):
            rows, was = places[adapter], before[0] if found is first else before[1]
            _require_close(found[rows], was[rows], x[rows], adapter.changes[name])
    assert torch.equal(first[places[other]], before[0][places[other]])
    nobodys = [place for place in range(ROOM) if place not in torch.cat(list(places.values()))]
    assert torch.equal(first[nobodys], before[0][nobodys]) and torch.equal(second[nobodys], before[1][nobodys])


@pytest.mark.parametrize("count", [1, 2, 5, 7, ROOM])
def test_a_token_gets_the_same_to_the_bit_whatever_lies_beside_it(level: str, threads: None, count: int):
    """Also on threads: sizes that are worth sharing out."""
    inputs, outputs, rank = 1111, 1030, 33
    program, _, first, second = _program(inputs, outputs)
    adapter = _adapter({"first": (inputs, outputs), "second": (inputs, outputs + 1)}, rank, 3)
    before, alone = (first.clone(), second.clone()), []
    for place in range(count):
        first.copy_(before[0]), second.copy_(before[1])
        program.run_rows(ROOM, [(adapter, torch.tensor([place]))])
        alone.append((first[place].clone(), second[place].clone()))
    for number in (1, 2, 3):
        library.set_threads(number)
        first.copy_(before[0]), second.copy_(before[1])
        program.run_rows(count, [(adapter, None)])
        for place, (first_n, second_n) in enumerate(alone):
            assert torch.equal(first[place], first_n) and torch.equal(second[place], second_n)


def test_matrices_that_are_bfloat16_take_half_the_memory_and_give_the_same(level: str, monkeypatch: pytest.MonkeyPatch):
    """A scale that is no power of two makes `up` float32, and `down` stays as it was."""
    program, _, first, _ = _program(70, 33)
    adapter = _adapter({"first": (70, 33)}, 5, 1, torch.bfloat16)
    down, up = (one.float() for one in adapter.changes["first"])
    before, found, bits = first.clone(), [], []
    for up_scale, narrows in ((1.0, True), (1.0, False), (0.3, True)):
        if not narrows:
            monkeypatch.setattr(low_rank, "_narrow", lambda matrix: matrix)
        else:
            monkeypatch.undo()
        each = Adapter("one", {"first": LowRank(down, up_scale * up)})
        first.copy_(before)
        program.run_rows(3, [(each, None)])
        found.append(first.clone())
        fields = program._maps._packed[each]._fields[0]
        bits.append((fields.down_bits, fields.up_bits))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert bits == [(16, 16), (32, 32), (16, 32)]


@pytest.mark.parametrize(("rows", "width", "rank"), [(50, 70, 5), (1, 3, 1), (33, 64, 16)])
def test_vectors_of_a_table_are_changed_by_number(level: str, rows: int, width: int, rank: int):
    program = Program(ROOM)
    ids, out = program.numbers(rows), program.buffer("out", width)
    for _ in range(2):  # as for two uses of one table
        program.adapt_table("table", ids, out)
    change = LowRankTable(_random(rank, rows, seed=1), _random(width, rank, seed=2))
    wanted, places = torch.arange(9) * 7 % rows, torch.tensor([1, 2, 8])
    ids.tell(wanted.tolist())
    out.copy_(_random(ROOM, width, seed=3))
    before = out.clone()
    tables = StepTables(
        np.arange(9, dtype=np.int32), np.arange(9), *(np.array(each, dtype=np.int32) for each in ([[0]], [0, 9], [9]))
    )
    program.run(tables, [(Adapter("one", {"table": change}), places)])
    expected = before[places].double() + 2 * (change.up_or.double() @ change.down_rv.double()[:, wanted[places]]).T
    torch.testing.assert_close(out[places].double(), expected, rtol=1e-5, atol=1e-5)
    others = [place for place in range(ROOM) if place not in places]
    assert torch.equal(out[others], before[others])


def test_an_adapter_of_maps_that_a_program_does_not_have_changes_nothing(compiled: None):
    program, _, first, second = _program(7, 5)
    before = first.clone(), second.clone()
    program.run_rows(4, [(_adapter({"third": (9, 9)}, 2, 1), None)])
    assert torch.equal(first, before[0]) and torch.equal(second, before[1])


@pytest.mark.parametrize(
    ("down", "up", "said"),
    [
        ((2, 8), (5, 2), r"`down of first` must have shape \(2, 7\), not \(2, 8\)"),
        ((2, 7), (6, 2), r"`up of first` must have shape \(5, 2\), not \(6, 2\)"),
        ((2, 7), (5, 3), r"`up of first` must have shape \(5, 2\), not \(5, 3\)"),
    ],
)
def test_adapters_of_other_shapes_are_refused(compiled: None, down: tuple[int, int], up: tuple[int, int], said: str):
    adapter = Adapter("one", {"first": LowRank(torch.ones(down), torch.ones(up))})
    with pytest.raises(ValueError, match=said):
        _program(7, 5)[0].run_rows(1, [(adapter, None)])


def test_one_name_is_of_one_shape(compiled: None):
    program, _, first, second = _program(7, 5)
    with pytest.raises(ValueError, match=r"map `first` has shape \(7, 5, False\), not \(5, 6, False\)"):
        program.adapt(first, {"first": second})
