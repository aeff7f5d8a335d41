"""Two gloo ranks against one process: the same tokens, loss, gradients and weights."""

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny import SPARSE
from tiny_training import STEPS, losses, orthogonalise_exactly, train_tiny
from two_ranks import leave_traces, train_on_two_ranks

from groundup.model.presets import PRESETS
from groundup.record.metrics import read_lines
from groundup.train import optim
from groundup.train.parallel import Ranks, join_ranks

ROWS = 12
KILLED_AFTER = 2


def _interrupt(step: int) -> Mapping[str, float]:
    if step == KILLED_AFTER:
        signal.raise_signal(signal.SIGINT)
    return {}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each preset a run on one rank, one on two, and for one preset a run that changes from one to two midway."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optim, "orthogonalise", orthogonalise_exactly)
        for preset in PRESETS:
            (folder / f"{preset}-1").mkdir()
            leave_traces(folder / f"{preset}-1", rank=0, count=1, preset=preset, steps=2)
        (folder / "unbroken").mkdir()
        leave_traces(folder / "unbroken", rank=0, count=1)
        (folder / "changed").mkdir()
        with pytest.raises(KeyboardInterrupt):
            train_tiny(folder / "changed", evaluations=STEPS, watch=_interrupt)
    assert len(losses(folder / "changed")) == KILLED_AFTER
    jobs: list[tuple[Path, dict[str, Any]]] = [
        (folder / f"{preset}-2", {"preset": preset, "steps": 2, "micro_rows": 3}) for preset in PRESETS
    ]
    for out, _ in jobs:
        out.mkdir()
    train_on_two_ranks([*jobs, (folder / "changed", {})])
    return folder


def _asked(out: Path, rank: int) -> list[list[int]]:
    """The row numbers of each step of one rank."""
    numbers = json.loads((out / f"rank-{rank}.json").read_text())
    per_step = ROWS // 2 if (out / "rank-1.json").exists() else ROWS
    return [numbers[first : first + per_step] for first in range(0, len(numbers), per_step)]


# The size of Adam's steps is not the gradient's: where that is hardly more than rounding, so is where a weight goes.
# Processors sum in other orders: 1.01e-5 has been seen.
WEIGHTS = 1e-4


def _assert_close(out: Path, expected: Path, kind: str, tolerance: float) -> None:
    ours, theirs = load_file(out / "rank-0.safetensors"), load_file(expected / "rank-0.safetensors")
    # A bias on keys moves all scores of a query alike: what moves it, in turn, is rounding alone.
    names = [name for name in theirs if name.startswith(kind) and not name.endswith("mixer.key.bias")]
    assert names
    for name in names:
        assert (ours[name] - theirs[name]).norm() <= tolerance * theirs[name].norm(), name


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_loss_gradients_and_weights_do_not_depend_on_the_number_of_ranks(preset: str, runs: Path):
    alone, together = runs / f"{preset}-1", runs / f"{preset}-2"
    assert losses(together) == pytest.approx(losses(alone), rel=1e-5)
    _assert_close(together, alone, "gradient", 1e-5)
    _assert_close(together, alone, "weight", WEIGHTS)


@pytest.mark.parametrize("preset", SPARSE)
def test_the_load_of_experts_is_that_of_all_ranks(preset: str, runs: Path):
    alone, together = (read_lines(runs / f"{preset}-{count}" / "metrics.jsonl") for count in (1, 2))
    for name in ("expert_load_max", "expert_load_min", "load_balance_loss", "router_z_loss"):
        assert [line[name] for line in together] == pytest.approx([line[name] for line in alone], rel=1e-5)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_both_ranks_end_with_the_same_bits(preset: str, runs: Path):
    first, second = (load_file(runs / f"{preset}-2" / f"rank-{rank}.safetensors") for rank in (0, 1))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


def test_a_run_taken_up_by_another_number_of_ranks_sees_the_same_tokens(runs: Path):
    unbroken = _asked(runs / "unbroken", 0)
    resumed = [_asked(runs / "changed", rank) for rank in (0, 1)]
    assert len(resumed[0]) == len(resumed[1]) == STEPS - KILLED_AFTER
    together = [sorted(first + second) for first, second in zip(*resumed, strict=True)]
    assert together == unbroken[KILLED_AFTER:]


def test_a_run_taken_up_by_another_number_of_ranks_ends_with_the_same_weights(runs: Path):
    assert losses(runs / "changed") == pytest.approx(losses(runs / "unbroken"), rel=1e-5)
    _assert_close(runs / "changed", runs / "unbroken", "weight", WEIGHTS)


def test_only_the_leading_rank_writes_where_others_look(runs: Path):
    assert [line["step"] for line in read_lines(runs / "changed" / "metrics.jsonl")] == list(range(1, STEPS + 1))


def test_a_process_without_torchrun_is_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_ranks() == Ranks(rank=0, count=1)
    assert join_ranks().agree(1.25) == 1.25
