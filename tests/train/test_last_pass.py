"""A run of more than one pass ends with a whole one, whatever its budget and however often it is taken up."""

from collections.abc import Mapping
from itertools import chain, count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import UnevenRows, train_tiny

from groundup.tokens.batches import row_to_end_whole

# 12 rows a step; the tiny text has about a hundred, so that ten steps are more than one pass and less than two.
STEPS = 10
PASS = UnevenRows().rows_per_epoch
OVER = 12 * STEPS - PASS


@given(row=st.integers(0, 1000), left=st.integers(0, 500), epoch=st.integers(1, 200))
def test_the_rest_ends_with_a_whole_pass_unless_it_lies_in_one_anyway(row: int, left: int, epoch: int):
    start = row_to_end_whole(row, left, epoch)
    if row // epoch == max(row, row + left - 1) // epoch:
        assert start == row
    else:
        assert row <= start < row + epoch
        assert (start + left) % epoch == 0


def test_what_exceeds_a_whole_pass_is_read_first(tmp_path: Path):
    assert 0 < OVER < PASS, "the tiny text must be read more than once, and less than twice"
    source = UnevenRows()
    train_tiny(tmp_path, source=source, steps=STEPS)
    assert source.asked == list(range(PASS - OVER, 2 * PASS))


def test_less_than_a_pass_is_read_in_order(tmp_path: Path):
    source = UnevenRows()
    train_tiny(tmp_path, source=source, steps=6)
    assert source.asked == list(range(72))


def test_a_budget_in_seconds_reckons_with_its_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Every step takes a second and nothing else takes any.
    clock = chain([0.0], chain.from_iterable((float(second), second + 1.0) for second in count()))
    monkeypatch.setattr("groundup.train.loop.time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr("groundup.train.loop.SPEED_STEPS", 4)
    source = UnevenRows()
    train_tiny(tmp_path, source=source, steps=None, seconds=float(STEPS), checkpoint_seconds=0.0)
    assert source.asked == [*range(48), *range(2 * PASS - 72, 2 * PASS)]


@pytest.mark.parametrize("stopped", [2, 8, 9])
def test_an_interrupted_run_reads_on_as_it_would_have(stopped: int, tmp_path: Path):
    class Stop(Exception):
        pass

    def stop(step: int) -> Mapping[str, float]:
        if step == stopped:
            raise Stop
        return {}

    for folder in ("whole", "broken"):
        (tmp_path / folder).mkdir()
    whole = train_tiny(tmp_path / "whole", steps=STEPS, evaluations=STEPS)
    source = UnevenRows()
    settings = {"source": source, "steps": STEPS, "evaluations": STEPS, "checkpoint_seconds": 0.0}
    with pytest.raises(Stop):
        train_tiny(tmp_path / "broken", watch=stop, **settings)
    first = len(source.asked)
    resumed = train_tiny(tmp_path / "broken", **settings)
    assert source.asked[first] == source.asked[first - 12]
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
