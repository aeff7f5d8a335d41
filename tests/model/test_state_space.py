"""Mamba and Mamba-2: the chunked scans are the recurrences they are defined by, however the text is cut."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from tiny import random_ids
from torch import Tensor

from groundup.model import mamba, mamba2
from groundup.model.initialise import Start, initialise
from groundup.model.language_model import LanguageModel
from groundup.model.presets import build_config
from groundup.model.recurrent_specs import SSD_CHUNK
from groundup.model.scan import linear_scan

BATCH = 2
Scan = Callable[..., tuple[Tensor, Tensor]]


class Case(NamedTuple):
    """A scan in both forms, and how inputs for a number of tokens are made; the first two carry time."""

    recurrent: Scan
    chunked: Scan
    shapes: Callable[[int], dict[str, tuple[int, ...]]]
    chunk: int


CASES = {
    "mamba": Case(
        mamba.recurrent,
        mamba.chunked,
        lambda time: {
            "x": (BATCH, time, 5),
            "step": (BATCH, time, 5),
            "rate": (3, 5),
            "into": (BATCH, time, 3),
            "out_of": (BATCH, time, 3),
            "state": (BATCH, 3, 5),
        },
        mamba.CHUNK,
    ),
    "mamba2": Case(
        mamba2.recurrent,
        mamba2.chunked,
        lambda time: {
            "x": (BATCH, time, 2, 3, 4),
            "step": (BATCH, time, 2, 3),
            "rate": (2, 3),
            "into": (BATCH, time, 2, 5),
            "out_of": (BATCH, time, 2, 5),
            "state": (BATCH, 2, 5, 3, 4),
        },
        SSD_CHUNK,
    ),
}
KINDS = pytest.mark.parametrize("kind", CASES)
TIMED = ("x", "step", "into", "out_of")


def _inputs(kind: str, time: int, size: float = 1.0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Random inputs; steps and rates are positive, and their products about `size`."""
    generator = torch.Generator().manual_seed(time)
    made = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in CASES[kind].shapes(time).items()
    }
    made["step"], made["rate"] = size * made["step"].exp() / 3, made["rate"].exp() / 3
    return {name: tensor.to(dtype) for name, tensor in made.items()}


def _starts(time: int, often: int) -> Tensor:
    return random_ids(BATCH, time, seed=time, vocabulary=24) < often


def _scan(form: Scan, inputs: dict[str, Tensor], starts_bt: Tensor | None, **changes: Any) -> tuple[Tensor, Tensor]:
    given = inputs | changes
    return form(*(given[name] for name in ("x", "step", "rate", "into", "out_of")), starts_bt, given["state"])


def _lengths() -> Iterator[Any]:
    for kind, case in CASES.items():
        chunk, span = case.chunk, mamba.SPAN
        beyond = (span - 1, span, span + 1, 2 * span + 5) if kind == "mamba" else ()
        for time in (1, 2, 7, chunk - 1, chunk, chunk + 1, 2 * chunk + 3, 4 * chunk, *beyond):
            yield pytest.param(kind, time, id=f"{kind}-{time}")


@pytest.mark.parametrize("often", [None, 0, 1, 12])
@pytest.mark.parametrize(("kind", "time"), list(_lengths()))
@torch.no_grad()
def test_chunks_give_what_the_recurrence_does(kind: str, time: int, often: int | None):
    inputs, starts_bt = _inputs(kind, time), None if often is None else _starts(time, often)
    expected, state = _scan(CASES[kind].recurrent, inputs, starts_bt)
    y, last = _scan(CASES[kind].chunked, inputs, starts_bt)
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(last, state, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("often", [None, 2])
@KINDS
def test_gradients_of_the_chunks_are_those_of_the_recurrence(kind: str, often: int | None):
    time = 2 * CASES[kind].chunk + 3
    inputs, starts_bt = _inputs(kind, time), None if often is None else _starts(time, often)
    weights = _inputs(kind, time + 1)

    def gradients(form: Scan) -> dict[str, Tensor]:
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
        y, last = _scan(form, leaves, starts_bt)
        ((y * weights["x"][:, :time]).sum() + (last * weights["state"]).sum()).backward()
        return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}

    expected, found = gradients(CASES[kind].recurrent), gradients(CASES[kind].chunked)
    assert set(expected) == set(inputs)
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-9, msg=name)


@KINDS
@torch.no_grad()
def test_a_state_goes_on_from_any_point(kind: str):
    time = 3 * CASES[kind].chunk // 2
    inputs, starts_bt = _inputs(kind, time), _starts(time, 1)
    expected, last = _scan(CASES[kind].recurrent, inputs, starts_bt)
    for sizes in ([1, 5, time - 7, 1], [time - 1, 1], [CASES[kind].chunk, time - CASES[kind].chunk]):
        parts = {name: inputs[name].split(sizes, dim=1) for name in TIMED}
        state, outputs = inputs["state"], []
        for index, starts in enumerate(starts_bt.split(sizes, dim=1)):
            cut = {name: part[index] for name, part in parts.items()}
            y, state = _scan(CASES[kind].chunked, inputs, starts, state=state, **cut)
            outputs.append(y)
        torch.testing.assert_close(torch.cat(outputs, dim=1), expected, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(state, last, rtol=1e-11, atol=1e-11)


@KINDS
@torch.no_grad()
def test_a_segment_gives_what_it_gives_alone(kind: str):
    """To the bit: what was before does not even round it."""
    time = 2 * CASES[kind].chunk
    inputs, starts_bt = _inputs(kind, time), torch.zeros(BATCH, time, dtype=torch.bool)
    start = CASES[kind].chunk + 5
    starts_bt[:, start] = True
    alone = {name: tensor[:, start:] if name in TIMED else tensor for name, tensor in inputs.items()}
    expected, _ = _scan(CASES[kind].recurrent, alone, None, state=torch.zeros_like(inputs["state"]))
    y, _ = _scan(CASES[kind].chunked, inputs, starts_bt)
    torch.testing.assert_close(y[:, start:], expected, rtol=1e-11, atol=1e-11)
    other = _inputs(kind, time + 1)
    changed = {name: torch.cat((other[name][:, :start], inputs[name][:, start:]), dim=1) for name in TIMED}
    again, _ = _scan(CASES[kind].chunked, inputs, starts_bt, state=1e3 * other["state"], **changed)
    assert torch.equal(again[:, start:], y[:, start:])
    assert not torch.equal(again[:, :start], y[:, :start])


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e2, 1e5])
@KINDS
def test_float32_holds_for_slow_and_for_very_fast_decays(kind: str, size: float):
    time = 3 * CASES[kind].chunk
    inputs, starts_bt = _inputs(kind, time, size, torch.float32), _starts(time, 1)
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    expected, _ = _scan(CASES[kind].recurrent, wide, starts_bt)
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    y, last = _scan(CASES[kind].chunked, leaves, starts_bt)
    assert y.dtype == last.dtype == torch.float32
    assert (y.double() - expected).norm() <= 1e-5 * expected.norm()
    y.square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves.values())


def test_a_decay_between_close_tokens_is_exact_however_much_has_decayed_before():
    """One head forgets all at once early on, then decays slowly: differences of large sums must keep their digits."""
    inputs = _inputs("mamba2", SSD_CHUNK, dtype=torch.float32)
    inputs["step"] = torch.full_like(inputs["step"], 1e-3)
    inputs["step"][:, 3] = 3e4
    inputs["x"][:, 3] = 0
    inputs["rate"] = torch.ones_like(inputs["rate"])
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    expected, y = _scan(mamba2.recurrent, wide, None)[0], _scan(mamba2.chunked, inputs, None)[0]
    assert (y - expected)[:, 4:].norm() <= 1e-6 * expected[:, 4:].norm()


def test_a_state_that_is_not_wanted_is_not_computed():
    inputs = _inputs("mamba2", 3 * SSD_CHUNK)
    zeros = torch.zeros_like(inputs["state"])
    for time in (1, SSD_CHUNK, 3 * SSD_CHUNK):
        cut = {name: inputs[name][:, :time] for name in TIMED}
        for form in (mamba2.recurrent, mamba2.chunked):
            y, state = _scan(form, inputs, None, state=None, **cut)
            assert state is None
            torch.testing.assert_close(y, _scan(form, inputs, None, state=zeros, **cut)[0], rtol=1e-12, atol=1e-12)


def test_no_states_are_held_for_the_gradient():
    time = 3 * mamba.SPAN
    inputs = {name: tensor.requires_grad_() for name, tensor in _inputs("mamba", time).items()}
    held: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        held.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y, _ = _scan(mamba.chunked, inputs, _starts(time, 2))
    assert sum(held) <= 2 * sum(tensor.numel() for tensor in inputs.values())
    y.sum().backward()


@pytest.mark.parametrize("time", [1, 2, 3, 6, 13, 32])
def test_a_linear_scan_is_its_recurrence(time: int):
    generator = torch.Generator().manual_seed(time)
    decay = torch.rand(2, time, 1, 4, dtype=torch.float64, generator=generator)
    entry = torch.randn(2, time, 3, 4, dtype=torch.float64, generator=generator)
    state = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator)
    found = linear_scan(decay, entry, state)
    for t in range(time):
        state = decay[:, t] * state + entry[:, t]
        torch.testing.assert_close(found[:, t], state, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("preset", ["mamba", "mamba2"])
def test_a_fresh_state_forgets_at_every_pace(preset: str):
    """Steps spread evenly over their orders of magnitude; rates of S4D-real, or of 1 to 16 for each head."""
    model = LanguageModel(build_config(preset, depth=1, vocab_size=64, context=64, width=512, head_dim=8))
    initialise(model, 0)
    mixer = model.layers[0].mixer
    steps, rates = F.softplus(mixer.step_bias.detach()), mixer.log_rate.detach().exp()
    assert 0.00099 < steps.min() < 0.002
    assert 0.05 < steps.max() < 0.1001
    assert 0.006 < steps.median() < 0.016
    if preset == "mamba":
        torch.testing.assert_close(rates, torch.arange(1.0, 17.0)[:, None].expand_as(rates))
    else:
        assert 1 <= rates.min() < 2
        assert 15 < rates.max() <= 16
    assert (mixer.skip == 1).all()
    assert (mixer.output.weight == 0).all()
    assert (mixer.convolution.bias == 0).all()


def test_steps_begin_evenly_spread_over_two_orders_of_magnitude():
    bias = torch.empty(100_000)
    Start(0).step_bias(bias)
    steps = F.softplus(bias.double())
    found = [float(steps.quantile(part)) for part in (0.0, 0.5, 1.0)]
    assert found == pytest.approx([0.001, 0.01, 0.1], rel=0.02)
    assert found[2] == pytest.approx(0.1, rel=1e-3)
