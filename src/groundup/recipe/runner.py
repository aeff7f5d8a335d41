"""Runs stages in a run folder: skips what is unchanged, resumes what was killed, records what was made.

    runs/NAME/01-corpus/  02-tokenizer/  …  ledger.jsonl

A stage is identified by its key: a hash of its settings, its code and the *content* of its inputs. It is skipped where
its folder is whole and stamped with that key. If an input was made anew but came out the same, what follows is skipped.
A stage works in `.NAME.partial`, is renamed into place when done, and then written into the ledger. A kill between any
two of these steps is mended by the next run, and the ledger ends as that of an unbroken run, bit for bit.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from groundup.errors import UserError
from groundup.recipe.lineage import write_lineage
from groundup.recipe.ranks import Call, dismiss, follow, follows, lead
from groundup.recipe.stages import STAGES, Stage, load
from groundup.recipe.stamp import Stamp, finish_stamp, read_stamp, write_stamp
from groundup.record.cost import Meter
from groundup.record.ledger import Ledger, Record
from groundup.record.metrics import format_duration, say
from groundup.settings import write_table
from groundup.storage import finish_folder, hash_folder, hash_value, working_folder

LEDGER = "ledger.jsonl"


@dataclass(frozen=True)
class Artefact:
    """A finished folder. record_id: the ledger record that made it, or its content hash if no ledger knows it."""

    folder: Path
    record_id: str
    content_hash: str


def run_stages(
    configs: Mapping[str, Any],
    folder: Path,
    inputs: Mapping[str, Artefact] | None = None,
    stages: Sequence[Stage] = STAGES,
) -> None:
    """Run the stages that have settings in `configs`, in the order of the street, in the run folder `folder`.

    inputs: artefacts from elsewhere, by what they are (`corpus`, `pretrain`, …). Whatever else a stage needs must be
    made by an earlier one or lie in the run folder already.
    Under torchrun the first rank does all this, and the others join it in the stages that train.
    Raises UserError, before anything is run, if an input is missing or another process works in the folder.
    """
    if follows():
        follow()
        raise SystemExit(0)  # reports and hints are the first rank's affair
    chosen = [stage for stage in stages if stage.name in configs]
    if not folder.exists():
        _require_inputs(chosen, inputs or {}, folder)
    with open_run(folder, stages) as run:
        run.artefacts.update(inputs or {})
        _require_inputs(chosen, run.artefacts, folder)
        for number, stage in enumerate(chosen, start=1):
            place = f"{number}/{len(chosen)} " if len(chosen) > 1 else ""
            run.execute(stage, configs[stage.name], f"{place}{stage.name}")
        write_lineage(run.folder, run.ledger, stages)
    dismiss()


def _require_inputs(chosen: Sequence[Stage], at_hand: Mapping[str, Artefact], folder: Path) -> None:
    """Raise UserError unless each stage's inputs are at hand or made by a stage before it."""
    known = set(at_hand)
    for stage in chosen:
        for name in stage.inputs:
            if name not in known:
                raise UserError(
                    f"{stage.name} needs the result of {name}, and {folder} holds none: "
                    f"`groundup {name} --out {folder}` makes it"
                )
        known.add(stage.makes)


@contextmanager
def open_run(folder: Path, stages: Sequence[Stage] = STAGES) -> Iterator["Run"]:
    """The run folder, made if absent, for this process alone; the system frees it even after a kill.

    Raises UserError if another process holds it, or if the path is no place for a folder.
    """
    with _lock_file(folder) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(f"{folder} is in use by process {lock.read()}: wait, or name another --out") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield Run(folder, stages)


def _lock_file(folder: Path) -> TextIO:
    """A file in the run folder, both made if absent."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return open(folder / ".lock", "a+")
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{folder} is a file or lies in one: name a folder with --out") from None
    except FileNotFoundError:  # though all folders above it are there: some file systems (/proc) take nothing
        raise UserError(f"{folder}: nothing can be written there; name another folder with --out") from None


class Run:
    """One run folder with what it holds so far. artefacts: the inputs at hand, by what they are."""

    def __init__(self, folder: Path, stages: Sequence[Stage] = STAGES) -> None:
        self.folder = folder
        self.ledger = Ledger(folder / LEDGER)
        self.artefacts: dict[str, Artefact] = {}
        for stage in stages:
            out = folder / stage.folder
            _move_in_place(out)
            stamp = read_stamp(out)
            if stamp is not None and stamp.is_whole(out):
                self.artefacts[stage.makes] = self._record(out, stamp)

    def execute(self, stage: Stage, config: Any, title: str) -> None:
        """Bring the stage's folder up to date with its settings, code and inputs, and the ledger with the folder."""
        at_hand = [name for name in stage.optional if name in self.artefacts]
        inputs = {name: self.artefacts[name] for name in (*stage.inputs, *at_hand)}
        hashes = {name: artefact.content_hash for name, artefact in inputs.items()}
        origins = {name: artefact.record_id for name, artefact in inputs.items()}
        if stage.fingerprint is not None:
            hashes["sources"] = origins["sources"] = load(stage.fingerprint)(config)
        table, code = write_table(config), stage.code()
        wanted = Stamp(stage.key(table, code, hashes), stage.name, origins, table, code)

        out = self.folder / stage.folder
        found = read_stamp(out)
        if found is not None and found.key == wanted.key and found.is_whole(out):
            say(f"{title}: unchanged")
            return
        folders = {name: artefact.folder for name, artefact in inputs.items()}
        self.artefacts[stage.makes] = self._record(out, _make(stage, config, folders, out, wanted, title))

    def _record(self, out: Path, stamp: Stamp) -> Artefact:
        """Write what the stamp says into the ledger, unless it is there: a kill may have come before that."""
        content = stamp.content or {}
        record = _latest(self.ledger, stamp.stage)
        # The key alone would do, were there no outcome that depends on the clock (a budget in minutes).
        if record is None or record.key != stamp.key or record.content != content:
            record = self.ledger.append(stamp.stage, stamp.key, stamp.inputs, stamp.config, stamp.code, content)
        return Artefact(out, record.id, stamp.content_hash)


def find_artefact(folder: Path) -> Artefact:
    """The artefact in `folder`, which may lie in another run or come from elsewhere (it then goes by its content).

    Raises UserError where there is no folder, or one that is no longer whole.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    stamp = read_stamp(folder)
    if stamp is None:
        content_hash = hash_value(hash_folder(folder))
        return Artefact(folder, content_hash, content_hash)
    if not stamp.is_whole(folder):
        raise UserError(f"{folder}: a file is missing or cut short; run the stage {stamp.stage} again to mend it")
    record = Ledger(folder.parent / LEDGER).find(stamp.stage, stamp.key)
    return Artefact(folder, record.id if record is not None else stamp.content_hash, stamp.content_hash)


def remembered(folder: Path, stage: Stage) -> dict[str, Any]:
    """The settings that the stage last had in this run folder, as far as it still knows them; {} if it never ran."""
    record = _latest(Ledger(folder / LEDGER), stage.name)
    known = {field.name for field in fields(stage.config_kind)}
    return {name: value for name, value in record.config.items() if name in known} if record is not None else {}


def _latest(ledger: Ledger, stage: str) -> Record | None:
    return next((record for record in reversed(ledger.records) if record.stage == stage), None)


def _move_in_place(out: Path) -> None:
    """Make up for a rename that a kill prevented: the work was done, its folder only bears its working name."""
    working = working_folder(out)
    stamp = read_stamp(working)
    if stamp is not None and stamp.is_whole(working):
        finish_folder(working, out)


def _make(stage: Stage, config: Any, inputs: Mapping[str, Path], out: Path, wanted: Stamp, title: str) -> Stamp:
    """Run the stage in a working folder and move its result to `out`."""
    working = working_folder(out)
    begun = read_stamp(working)
    goes_on = stage.resumable and begun is not None and begun.key == wanted.key
    if not goes_on:
        shutil.rmtree(working, ignore_errors=True)
        working.mkdir()
        write_stamp(working, wanted)
    say(f"{title}: {'goes on from where it was interrupted' if goes_on else stage.summary}")
    try:
        with Meter(working / "cost.json") as meter:
            call = Call(stage.function, config, working, inputs)
            if stage.parallel:
                lead(call)
            call.run()
    except BaseException:
        if not stage.resumable:
            shutil.rmtree(working, ignore_errors=True)
        raise
    finished = finish_stamp(working, wanted)
    finish_folder(working, out)
    say(f"{title}: done in {format_duration(meter.cost()['wall_seconds']['value'])}")
    return finished
