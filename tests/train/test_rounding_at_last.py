"""Training for a format of few bits: as always up to some step, then rounded more and more."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import STEPS, UnevenRows, hot_start, loop_config, losses, orthogonalise_exactly, train_tiny
from torch import Tensor

from groundup.errors import UserError
from groundup.model.parts import Matrix
from groundup.quantize.matrix import W4, rounded_weights
from groundup.quantize.training import rounded
from groundup.train import optim
from groundup.train.learner import Learner, TextModel
from groundup.train.loop import TrainingResult, train
from groundup.train.parallel import Ranks

# `train_tiny` begins to round in the middle, at a share of 0; two more steps are left.
PLAIN_STEPS = STEPS // 2 + 1
SHARES = (5 / 9, 1.0)
Weights = dict[str, Tensor]


def _weights(model: TextModel) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def _trained(out: Path, quantize: str | None, monkeypatch: pytest.MonkeyPatch) -> list[Weights]:
    """The weights after each step."""
    out.mkdir()
    seen: list[Weights] = []
    models: list[TextModel] = []

    def start(preset: str) -> TextModel:
        models.append(hot_start(preset))
        return models[-1]

    def watch(step: int) -> Mapping[str, float]:
        seen.append(_weights(models[-1]))
        return {}

    monkeypatch.setattr("tiny_training.hot_start", start)
    train_tiny(out, watch=watch, evaluations=STEPS, quantize=quantize)
    assert len(seen) == STEPS
    return seen


def _equal(one: Weights, other: Weights) -> bool:
    return all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_nothing_is_rounded_before_the_step_at_which_rounding_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plain = _trained(tmp_path / "plain", None, monkeypatch)
    served = _trained(tmp_path / "served", "w4", monkeypatch)
    assert [_equal(*both) for both in zip(plain, served, strict=True)] == [step < PLAIN_STEPS for step in range(STEPS)]
    found, source = losses(tmp_path / "served"), UnevenRows()
    assert losses(tmp_path / "plain")[:PLAIN_STEPS] == found[:PLAIN_STEPS]
    # From then on the loss of a step is that of the weights so far, rounded by the step's share.
    model = hot_start("nanochat")
    for step, share in enumerate(SHARES, PLAIN_STEPS):
        model.load_state_dict(served[step - 1], strict=False)
        rows = source.rows(np.arange(12 * step, 12 * step + 12))
        with rounded(model, "w4", share):
            loss = Learner(model).loss(rows).total.detach() / rows.target_count()
        assert found[step] == pytest.approx(float(loss), rel=1e-6)


def test_what_is_watched_on_the_way_is_the_served_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = hot_start("llama")
    monkeypatch.setattr("tiny_training.hot_start", lambda preset: model)
    seen: list[bool] = []

    def watch(step: int) -> Mapping[str, float]:
        weight = model.head_matrix.weight.detach()
        seen.append(torch.equal(model.head_matrix.used_weight(), rounded_weights(weight, W4)))
        return {}

    train_tiny(tmp_path, watch=watch, evaluations=STEPS, quantize="w4")
    assert seen == [True] * STEPS


@pytest.mark.parametrize("finished", range(PLAIN_STEPS - 1, PLAIN_STEPS + 2))
def test_a_run_broken_off_around_the_beginning_of_rounding_ends_with_the_bits_of_an_unbroken_one(
    finished: int, tmp_path: Path
):
    def run(name: str, watch: Callable[[int], Mapping[str, float]]) -> Weights:
        (tmp_path / name).mkdir(exist_ok=True)
        return _weights(
            train_tiny(tmp_path / name, watch=watch, evaluations=STEPS, quantize="w4", checkpoint_seconds=0.0)
        )

    def break_off(step: int) -> Mapping[str, float]:
        if step > finished:
            raise ConnectionAbortedError
        return {}

    with pytest.raises(ConnectionAbortedError):
        run("broken", break_off)
    assert _equal(run("broken", lambda step: {}), run("unbroken", lambda step: {}))
    assert losses(tmp_path / "broken") == losses(tmp_path / "unbroken")


@pytest.mark.parametrize(("quantize", "rounded_steps"), [("w4", len(SHARES)), (None, 0)])
def test_steps_that_rounded_are_counted_before_and_after_a_break(
    quantize: str | None, rounded_steps: int, tmp_path: Path
):
    def result(watch: Callable[[int], Mapping[str, float]]) -> TrainingResult:
        learner = Learner(hot_start("nanochat"), quantize=quantize)
        loop = loop_config(evaluations=STEPS, checkpoint_seconds=0.0)
        return train(learner, UnevenRows(), loop, tmp_path, watch, Ranks())

    def break_off(step: int) -> Mapping[str, float]:
        if step == STEPS:
            raise ConnectionAbortedError
        return {}

    with pytest.raises(ConnectionAbortedError):
        result(break_off)
    assert result(lambda step: {}).rounded_steps == rounded_steps


def test_after_training_nothing_is_rounded_any_more(tmp_path: Path):
    model = train_tiny(tmp_path, quantize="w4")
    assert all(module.rounding is None for module in model.modules() if isinstance(module, Matrix))


def test_a_model_that_cannot_be_quantized_is_refused_before_it_is_trained():
    with pytest.raises(UserError, match="a t5 model cannot be quantized"):
        Learner(hot_start("t5"), quantize="w4")


@pytest.mark.slow
def test_compiled_code_takes_another_share_without_being_compiled_anew():
    compiled, plain = (Learner(hot_start("llama"), quantize="w4") for _ in range(2))
    rows = UnevenRows().rows(np.arange(12))

    def loss(learner: Learner, share: float) -> float:
        with learner.rounded(share):
            total = learner.loss(rows).total
            total.backward()
        return float(total.detach())

    with compiled.compiled(True):
        loss(compiled, 0.25)
        with torch.compiler.set_stance("fail_on_recompile"):
            found = [loss(compiled, share) for share in (0.25, 0.5, 1.0)]
    # An activation that lies between two steps to float32's precision may be rounded either way, and the model is hot.
    assert found == pytest.approx([loss(plain, share) for share in (0.25, 0.5, 1.0)], rel=5e-4)
    assert min(abs(one / other - 1) for one, other in pairwise(found)) > 5e-3


@pytest.mark.slow
def test_compiled_code_begins_to_round_as_plain_code_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(optim, "orthogonalise", orthogonalise_exactly)
    for name, compiled in (("plain", False), ("compiled", True)):
        (tmp_path / name).mkdir()
        train_tiny(tmp_path / name, "llama", compile=compiled, quantize="w4")
    plain, compiled = losses(tmp_path / "plain"), losses(tmp_path / "compiled")
    assert compiled == pytest.approx(plain, rel=3e-3)
