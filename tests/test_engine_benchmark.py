"""`benchmarks/engine.py`: it runs, and its tables are what follows from the rounds that it measured."""

import json
import statistics
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks/engine.py"


@pytest.mark.slow
def test_the_benchmark_runs_and_its_ratios_are_those_of_its_rounds(tmp_path: Path):
    if find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    sizes = ["--prompt-tokens", "40", "--new-tokens", "6", "--streams", "1", "3", "--rounds", "2", "--threads", "1"]
    places = ["--models", str(tmp_path), "--json", str(tmp_path / "figures.json")]
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--size", "tiny", *sizes, *places], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    rounds = figures["rounds"]["tiny"]
    assert {name: len(runs) for name, runs in rounds.items()} == {"groundup": 2, "transformers": 2}
    assert "--opponents DIR installs it" in figures["left_out"]["llama.cpp, tiny"]

    speeds, starts, overheads, guesses = figures["tables"].values()
    assert [row["what"] for row in speeds] == ["prefill", "1 stream", "3 streams"]
    for row, key in zip(speeds, ("prefill", "1", "3"), strict=True):
        ours, theirs = (statistics.mean(run[key] for run in rounds[name]) for name in ("groundup", "transformers"))
        # No more than that: from a whole time a part is taken off, which beside others may have been the longer one.
        assert row["groundup"] == pytest.approx(ours) and row["÷ transformers"] == pytest.approx(ours / theirs)
    for row in starts:
        parts = [row[part] for part in ("process and libraries", "load", "first token")]
        assert min(parts) > 0 and row["whole"] == pytest.approx(sum(parts), rel=0.01)
    assert [(row["what"], row["token"]) for row in overheads] == [
        (what, token)
        for token in ("the likeliest", "temperature 0.8, top-p 0.95")
        for what in ("1 stream", "3 streams")
    ]
    for row in overheads:
        assert 0 < row["outside the model ms"] < row["step ms"]
    (row,) = guesses
    assert row["ratio"] == pytest.approx(row["guessing"] / row["plain"]) and row["tokens_per_step"] >= 1
