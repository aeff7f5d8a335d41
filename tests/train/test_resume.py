"""Runs that are killed at any moment and started again end with the bits of an unbroken run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from tiny import PRETRAINING

from groundup.storage import hash_file, hash_folder
from groundup.train.checkpoint import FILE

STEPS = PRETRAINING["tokens"] // PRETRAINING["batch_tokens"]
# A checkpoint after every step: the more often one is written, the likelier a kill hits the writing of one.
SETTINGS = {**PRETRAINING, "checkpoint_minutes": 1e-9}
# Kinds of models that keep more than a decoder does, or learn from other rows.
OTHER_KINDS = ("bert", "deepseek_v3", "t5")
PROGRAM = """
import json, sys
from pathlib import Path
import torch
from groundup.train import pretrain
from groundup.train.config import PretrainConfig
torch.set_num_threads(1)
settings, out, tokens, tokenizer = sys.argv[1:]
pretrain.run(PretrainConfig(**json.loads(settings)), Path(out), tokens=Path(tokens), tokenizer=Path(tokenizer))
"""

Start = Callable[[Path, str], subprocess.Popen[str]]


@pytest.fixture(scope="module")
def start(tokens_folder: Path, tokenizer_folder: Path) -> Start:
    """Call it with a folder and a preset: a process of its own, to be killed, pre-trains there."""

    def process(out: Path, preset: str) -> subprocess.Popen[str]:
        arguments = [json.dumps({**SETTINGS, "preset": preset}), str(out), str(tokens_folder), str(tokenizer_folder)]
        return subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stderr=subprocess.PIPE, text=True)

    return process


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, start: Start) -> Callable[[str], Path]:
    """Call it with a preset: the folder of a run that nothing interrupted."""

    @cache
    def folder(preset: str) -> Path:
        out = tmp_path_factory.mktemp(f"unbroken-{preset}")
        _finish(start(out, preset))
        return out

    return folder


def _finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def _wait_for_step(process: subprocess.Popen[str], out: Path, step: int) -> None:
    metrics = out / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < step:
        assert process.poll() is None, f"ended before step {step}: {process.stderr and process.stderr.read()}"
        time.sleep(0.002)


def _assert_same_bits(out: Path, unbroken: Path) -> None:
    assert hash_file(out / "model.safetensors") == hash_file(unbroken / "model.safetensors")
    assert (out / "metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()
    assert hash_folder(out) == hash_folder(unbroken)
    assert {path.name for path in out.iterdir()} == {path.name for path in unbroken.iterdir()}


@pytest.mark.parametrize(
    "preset", ["groundup", *(pytest.param(preset, marks=pytest.mark.slow) for preset in OTHER_KINDS)]
)
def test_a_run_killed_twice_at_random_ends_with_the_bits_of_an_unbroken_one(
    preset: str, start: Start, unbroken: Callable[[str], Path], tmp_path: Path
):
    moments = sorted(random.sample(range(1, STEPS), 2))
    print(f"killed after steps {moments}")
    for step in moments:
        process = start(tmp_path, preset)
        _wait_for_step(process, tmp_path, step)
        time.sleep(random.uniform(0, 0.02))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "model.safetensors").exists()
    _finish(start(tmp_path, preset))
    _assert_same_bits(tmp_path, unbroken(preset))


def test_ctrl_c_leaves_a_checkpoint_and_the_same_command_completes_to_the_same_bits(
    start: Start, unbroken: Callable[[str], Path], tmp_path: Path
):
    process = start(tmp_path, "groundup")
    _wait_for_step(process, tmp_path, 5)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == -signal.SIGINT
    assert process.stderr is not None
    assert process.stderr.read().rstrip().endswith("KeyboardInterrupt")
    steps = (tmp_path / "metrics.jsonl").read_bytes().count(b"\n")
    assert 5 <= steps < STEPS
    assert (tmp_path / FILE).exists()
    assert not (tmp_path / "model.safetensors").exists()
    measured = (tmp_path / "timings.jsonl").read_bytes()
    _finish(start(tmp_path, "groundup"))
    _assert_same_bits(tmp_path, unbroken("groundup"))
    # What the clock said of the steps before Ctrl-C stands: they were not done again.
    assert (tmp_path / "timings.jsonl").read_bytes().startswith(measured)
