"""Checkpoints: all that the next step depends on, whole or not at all."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import heat, hot_model, tiny_config
from tiny_training import STEPS, UnevenRows, corruption_for, losses, train_tiny
from torch.optim import Optimizer

from groundup.model.presets import PRESETS
from groundup.tokens.batches import Int64s, Rows
from groundup.train.balance import published_balance
from groundup.train.checkpoint import FILE, Counters, load_checkpoint, remove_checkpoint, save_checkpoint
from groundup.train.learner import Learner, TextModel
from groundup.train.optim import LearningRates, build_optimizers

ALL_PRESETS = pytest.mark.parametrize("preset", sorted(PRESETS))


def _started(preset: str, seed: int) -> tuple[TextModel, tuple[Optimizer, ...]]:
    model = hot_model(tiny_config(preset), seed, torch.float32)
    return model, build_optimizers(model, LearningRates(0.02, 0.2, 0.004), weight_decay=0.1)


def _step(preset: str, model: TextModel, optimizers: tuple[Optimizer, ...], seed: int) -> None:
    learner = Learner(model, published_balance(model))
    loss = learner.loss(UnevenRows(corruption=corruption_for(preset)).rows(np.arange(4 * seed, 4 * seed + 4)))
    (loss.total + (0 if loss.auxiliary is None else loss.auxiliary)).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    learner.end_step(loss.tally, rows=4)


@ALL_PRESETS
def test_training_goes_on_from_a_checkpoint_to_the_same_bits(preset: str, tmp_path: Path):
    model, optimizers = _started(preset, seed=0)
    for seed in range(3):
        _step(preset, model, optimizers, seed)
    counters = Counters(step=3, tokens=192, seconds=1.25, row=12, settled=True, rounded_steps=2)
    save_checkpoint(tmp_path, model, optimizers, counters)
    taken_up, other_optimizers = _started(preset, seed=7)
    assert load_checkpoint(tmp_path, taken_up, other_optimizers) == counters
    for seed in range(3, 6):
        _step(preset, model, optimizers, seed)
        _step(preset, taken_up, other_optimizers, seed)
    for name, parameter in model.named_parameters():
        assert torch.equal(taken_up.get_parameter(name), parameter), name


def test_without_a_checkpoint_nothing_changes(tmp_path: Path):
    model, optimizers = _started("llama", seed=0)
    before = model.head_matrix.weight.detach().clone()
    assert load_checkpoint(tmp_path, model, optimizers) is None
    assert torch.equal(model.head_matrix.weight, before)
    assert not any(optimizer.state for optimizer in optimizers)


def test_a_checkpoint_that_cannot_be_written_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, optimizers = _started("llama", seed=0)
    save_checkpoint(tmp_path, model, optimizers, Counters(step=1))
    older = (tmp_path / FILE).read_bytes()
    heat(model, seed=3)

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, model, optimizers, Counters(step=2))
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert (tmp_path / FILE).read_bytes() == older


def test_removing_a_checkpoint_twice_is_no_mistake(tmp_path: Path):
    model, optimizers = _started("llama", seed=0)
    save_checkpoint(tmp_path, model, optimizers, Counters())
    remove_checkpoint(tmp_path)
    remove_checkpoint(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_its_step_and_then_takes_effect(number: signal.Signals, tmp_path: Path):
    received: list[int] = []
    before = signal.signal(number, lambda received_number, frame: received.append(received_number))
    try:
        source = _SignalsAtStep(step=2, number=number)
        with pytest.raises(KeyboardInterrupt):
            train_tiny(tmp_path, source=source)
        assert received == [number]
    finally:
        signal.signal(number, before)
    assert len(losses(tmp_path)) == 2
    model, optimizers = _started("nanochat", seed=0)
    saved = load_checkpoint(tmp_path, model, optimizers)
    assert saved is not None
    assert saved.step == 2


def test_the_callers_signal_handlers_are_back_after_a_run(tmp_path: Path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train_tiny(tmp_path)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_checkpoints_come_as_often_as_asked_for(tmp_path: Path):
    train_tiny(tmp_path, steps=1, checkpoint_seconds=float("inf"))
    assert not (tmp_path / FILE).exists()
    train_tiny(tmp_path, steps=STEPS, checkpoint_seconds=0.0)
    model, optimizers = _started("nanochat", seed=0)
    saved = load_checkpoint(tmp_path, model, optimizers)
    assert saved is not None
    assert saved.step == STEPS


class _SignalsAtStep(UnevenRows):
    """Raises a signal while the rows of a step are fetched."""

    def __init__(self, step: int, number: signal.Signals) -> None:
        super().__init__()
        self._step, self._number = step, number

    def rows(self, numbers: Int64s) -> Rows:
        if numbers[0] == 12 * (self._step - 1):
            signal.raise_signal(self._number)
        return super().rows(numbers)
