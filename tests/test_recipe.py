"""Recipes: what is skipped, what is run again, what a kill leaves behind, what a recipe file may say."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy_street
from toy_street import CountsConfig, WalkConfig, WordsConfig

from groundup.errors import UserError
from groundup.recipe.reading import read_recipe, shipped_recipes
from groundup.recipe.runner import find_artefact, open_run, remembered, run_stages
from groundup.recipe.stages import STAGES
from groundup.record.ledger import Ledger


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the cat saw The dog")
    return path


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What ran since the last call."""
    log = tmp_path / "log"
    monkeypatch.setenv("TOY_LOG", str(log))

    def read() -> list[str]:
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    return read


def test_a_run_holds_every_stage_its_cost_and_a_chained_ledger(text: Path, tmp_path: Path):
    run = tmp_path / "run"
    toy_street.run(text, run)
    assert json.loads((run / "02-counts" / "counts.json").read_text()) == {"cat": 1, "dog": 1, "saw": 1, "the": 2}
    ledger = Ledger(run / "ledger.jsonl")
    ledger.verify()
    assert [record.stage for record in ledger.records] == ["words", "counts", "walk"]
    assert ledger.records[2].inputs == {"counts": ledger.records[1].id}
    assert [record.stage for record in ledger.ancestry(ledger.records[2].id)] == ["words", "counts", "walk"]
    for folder in ("01-words", "02-counts", "03-walk"):
        assert json.loads((run / folder / "cost.json").read_text())["wall_seconds"]["basis"] == "measured"
    assert not list(run.glob(".*.partial"))


def test_nothing_runs_when_nothing_changed(text: Path, tmp_path: Path, ran):
    toy_street.run(text, tmp_path / "run")
    before = (tmp_path / "run" / "ledger.jsonl").read_bytes()
    assert ran() == ["words", "counts", "walk from 0"]
    toy_street.run(text, tmp_path / "run")
    assert ran() == []
    assert (tmp_path / "run" / "ledger.jsonl").read_bytes() == before


def test_one_upstream_byte_reruns_all_that_depends_on_it(text: Path, tmp_path: Path, ran):
    toy_street.run(text, tmp_path / "run")
    ran()
    text.write_text("the cat saw The dot")
    toy_street.run(text, tmp_path / "run")
    assert ran() == ["words", "counts", "walk from 0"]


def test_a_change_that_ends_in_the_same_bytes_goes_no_further(text: Path, tmp_path: Path, ran):
    toy_street.run(text, tmp_path / "run")
    ran()
    text.write_text("dog The saw cat the")  # the words come out sorted
    toy_street.run(text, tmp_path / "run")
    assert ran() == ["words"]


def test_a_setting_reruns_its_stage_and_what_follows(text: Path, tmp_path: Path, ran):
    toy_street.run(text, tmp_path / "run")
    ran()
    configs = {"words": WordsConfig(str(text)), "counts": CountsConfig(lower=False), "walk": WalkConfig()}
    run_stages(configs, tmp_path / "run", stages=toy_street.STAGES)
    assert ran() == ["counts", "walk from 0"]
    assert json.loads((tmp_path / "run" / "02-counts" / "counts.json").read_text())["The"] == 1


def test_changed_code_reruns_its_stage(text: Path, tmp_path: Path, ran):
    toy_street.run(text, tmp_path / "run")
    ran()
    words, counts, walk = toy_street.STAGES
    changed = (words, dataclasses.replace(counts, rooms=("errors", "settings")), walk)
    configs = {"words": WordsConfig(str(text)), "counts": CountsConfig(), "walk": WalkConfig()}
    run_stages(configs, tmp_path / "run", stages=changed)
    assert ran() == ["counts"]


@pytest.mark.parametrize("damage", ["delete", "cut short"])
def test_a_result_that_is_no_longer_whole_is_made_again(damage: str, text: Path, tmp_path: Path, ran):
    toy_street.run(text, tmp_path / "run")
    ran()
    file = tmp_path / "run" / "02-counts" / "counts.json"
    whole = file.read_bytes()
    file.unlink() if damage == "delete" else file.write_bytes(whole[:-5])
    toy_street.run(text, tmp_path / "run")
    assert ran() == ["counts"]
    assert file.read_bytes() == whole


def _kill_after(seconds: float, text: Path, run: Path, number: int = signal.SIGKILL) -> int:
    process = subprocess.Popen([sys.executable, toy_street.__file__, str(text), str(run)], stderr=subprocess.DEVNULL)
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        return process.wait()


def test_a_recipe_killed_at_random_moments_ends_as_an_unbroken_one(text: Path, tmp_path: Path):
    unbroken = tmp_path / "unbroken"
    started = time.monotonic()
    assert _kill_after(60.0, text, unbroken) == 0
    duration = time.monotonic() - started
    broken, kills, chance = tmp_path / "broken", 0, random.Random(7)
    # Each attempt gets a little further than the checkpoints of the one before; the last is left alone.
    for _ in range(8):
        kills += _kill_after(duration * chance.uniform(0.3, 0.9), text, broken) != 0
    assert _kill_after(60.0, text, broken) == 0
    assert kills > 0
    assert (broken / "ledger.jsonl").read_bytes() == (unbroken / "ledger.jsonl").read_bytes()
    assert not list(broken.glob(".*.partial"))


class Killed(BaseException):
    """Stands for the end of the process: no handler of ours catches it."""


@pytest.mark.parametrize("moment", ["finish_stamp", "finish_folder", "write_lineage"])
def test_a_kill_between_two_steps_of_the_bookkeeping_is_mended(
    moment: str, text: Path, tmp_path: Path, ran, monkeypatch
):
    toy_street.run(text, tmp_path / "unbroken")
    ran()

    def killed(*_: object) -> None:
        raise Killed

    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(f"groundup.recipe.runner.{moment}", killed)
        toy_street.run(text, run)
    toy_street.run(text, run)
    again = {"finish_stamp": 2, "finish_folder": 1, "write_lineage": 1}
    assert ran().count("words") == again[moment]  # what was done is moved in place, not done again
    assert (run / "ledger.jsonl").read_bytes() == (tmp_path / "unbroken" / "ledger.jsonl").read_bytes()


def test_a_kill_between_rename_and_ledger_is_mended(text: Path, tmp_path: Path, ran, monkeypatch):
    toy_street.run(text, tmp_path / "unbroken")
    ran()

    def killed(*_: object) -> None:
        raise Killed

    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Ledger, "append", killed)
        toy_street.run(text, run)
    assert (run / "01-words").is_dir()
    toy_street.run(text, run)
    assert ran() == ["words", "counts", "walk from 0"]
    assert (run / "ledger.jsonl").read_bytes() == (tmp_path / "unbroken" / "ledger.jsonl").read_bytes()


def _interrupted_walk(text: Path, run: Path, monkeypatch: pytest.MonkeyPatch, at_step: int) -> None:
    def interrupt(_: float) -> None:
        nonlocal steps
        steps += 1
        if steps == at_step:
            raise KeyboardInterrupt

    steps = 0
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(time, "sleep", interrupt)
        toy_street.run(text, run)


def test_a_resumable_stage_goes_on_where_it_was_interrupted(text: Path, tmp_path: Path, ran, monkeypatch):
    toy_street.run(text, tmp_path / "unbroken")
    ran()
    run = tmp_path / "run"
    _interrupted_walk(text, run, monkeypatch, at_step=5)
    assert not (run / "03-walk").exists()
    toy_street.run(text, run)
    assert ran() == ["words", "counts", "walk from 0", "walk from 5"]
    assert (run / "ledger.jsonl").read_bytes() == (tmp_path / "unbroken" / "ledger.jsonl").read_bytes()


def test_work_for_other_inputs_is_not_gone_on_with(text: Path, tmp_path: Path, ran, monkeypatch):
    run = tmp_path / "run"
    _interrupted_walk(text, run, monkeypatch, at_step=5)
    text.write_text("a bird")
    ran()
    toy_street.run(text, run)
    assert ran() == ["words", "counts", "walk from 0"]


def test_a_failed_stage_leaves_the_earlier_result_untouched(text: Path, tmp_path: Path, monkeypatch):
    run = tmp_path / "run"
    toy_street.run(text, run)
    before = (run / "02-counts" / "counts.json").read_bytes()
    text.write_text("something else")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(toy_street, "counts", full)
        toy_street.run(text, run)
    assert (run / "02-counts" / "counts.json").read_bytes() == before
    assert not list(run.glob(".*.partial"))


def test_two_processes_cannot_work_in_one_run(text: Path, tmp_path: Path):
    with open_run(tmp_path / "run"), pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        toy_street.run(text, tmp_path / "run")
    toy_street.run(text, tmp_path / "run")  # free again


def test_a_missing_input_is_said_before_anything_runs(tmp_path: Path, ran):
    with pytest.raises(UserError, match="walk needs the result of counts"):
        run_stages({"walk": WalkConfig()}, tmp_path / "run", stages=toy_street.STAGES)
    assert ran() == []


def test_a_stage_can_take_its_input_from_another_run(text: Path, tmp_path: Path):
    toy_street.run(text, tmp_path / "first")
    counts = find_artefact(tmp_path / "first" / "02-counts")
    run_stages({"walk": WalkConfig()}, tmp_path / "second", {"counts": counts}, toy_street.STAGES)
    first, second = (Ledger(tmp_path / name / "ledger.jsonl").records for name in ("first", "second"))
    assert second[0].content == first[2].content
    assert second[0].inputs == {"counts": first[1].id}


def test_a_run_remembers_its_settings(text: Path, tmp_path: Path):
    toy_street.run(text, tmp_path / "run", steps=7)
    assert remembered(tmp_path / "run", toy_street.STAGES[2])["steps"] == 7
    assert remembered(tmp_path / "other", toy_street.STAGES[2]) == {}


# What a recipe file may say


def _recipe(tmp_path: Path, toml: str) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(toml)
    return str(path)


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ("[wrods]", r"unknown table `wrods`, did you mean \[words\]"),
        ("steps = 3\n[walk]", "unknown key `steps`"),
        ("[walk]\nstep = 3", r"\[walk\]: unknown key `step`, did you mean `steps`"),
        ("[walk]\nsteps = 'many'", r"\[walk\]: `steps` must be integer, not 'many'"),
        ("[walk]\nsteps = true", r"\[walk\]: `steps` must be integer"),
        ("[walk\nsteps = 1", "not valid TOML.*line 1"),
        ("", "at least one table"),
    ],
)
def test_a_bad_recipe_gets_one_sentence(toml: str, sentence: str, tmp_path: Path):
    with pytest.raises(UserError, match=sentence) as raised:
        read_recipe(_recipe(tmp_path, toml), stages=toy_street.STAGES)
    assert "\n" not in str(raised.value)
    assert "mine.toml" in str(raised.value)


def test_an_unknown_recipe_is_suggested_its_neighbour():
    with pytest.raises(UserError, match="did you mean `pocket`"):
        read_recipe("poket")


def test_flags_stand_over_the_file(tmp_path: Path):
    from argparse import Namespace

    path = _recipe(tmp_path, "[walk]\nsteps = 3")
    assert read_recipe(path, Namespace(**{"walk.steps": "5"}), toy_street.STAGES).configs["walk"].steps == 5
    with pytest.raises(UserError, match=r"--words.min-length: .* has no table \[words\]"):
        read_recipe(path, Namespace(**{"words.min_length": "5"}), toy_street.STAGES)


@pytest.mark.parametrize("path", shipped_recipes(), ids=lambda path: path.stem)
def test_shipped_recipes_are_whole(path: Path):
    recipe = read_recipe(path.stem)
    assert recipe.description
    made = set()
    for stage in STAGES:
        if stage.name in recipe.configs:
            assert made.issuperset(stage.inputs)
            made.add(stage.makes)
