"""The verbs that look: at a run's report and ledger, at this machine, at the command line itself."""

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from groundup.cli.parser import Verbs, build_parser, every_action
from groundup.cli.running import REPORT, RUNS
from groundup.errors import UserError
from groundup.recipe.runner import LEDGER
from groundup.recipe.stages import STAGES, load
from groundup.recipe.stamp import read_stamp
from groundup.record.ledger import Ledger, Record
from groundup.storage import hash_folder

REPORT_ABOUT = """\
Write RUN/report.html: what went in, what was thrown out and why, the loss, the scores, the cost, and how
to chat. One file that opens from disk and needs no network. `groundup run` writes it too."""

LEDGER_ABOUT = """\
Every finished artefact has a record that says by hash what it was made from; the records are chained,
so that none can be changed unseen.

  show [ID]    a record with its settings and files; without ID, one line for each record
  trace ID     the record and all that it was made from, oldest first
  verify       walk the chain and hash every file of every stage anew

ID is the beginning of a record's id, or the name of a stage for its latest record."""

LEDGER_AFTER = """\
examples:
  groundup ledger show --run runs/pocket
  groundup ledger show 3fa2            looked up in all of runs/
  groundup ledger trace sft --run runs/pocket
  groundup ledger verify"""

COMPLETION_AFTER = """\
examples:
  groundup completion bash > ~/.local/share/bash-completion/completions/groundup
  groundup completion zsh > ~/.zfunc/_groundup          (with fpath+=~/.zfunc before compinit in ~/.zshrc)"""

_MARKS = {"good": "✓", "slow": "!", "missing": "✗"}


def add_verbs(verbs: Verbs) -> None:
    """Add `report`, `ledger`, `doctor` and `completion`."""
    report = verbs.add("report", "write a run's report: one HTML file", _report, "RUN", REPORT_ABOUT)
    report.add_argument("run", type=Path, metavar="RUN", help="run folder")

    ledger = verbs.add(
        "ledger",
        "what was made from what: show, trace, verify",
        _ledger,
        "show|trace|verify [ID] [--run RUN]",
        LEDGER_ABOUT,
        LEDGER_AFTER,
    )
    ledger.add_argument("action", choices=("show", "trace", "verify"), metavar="show|trace|verify")
    ledger.add_argument("id", nargs="?", metavar="ID", help="beginning of a record's id, or a stage")
    ledger.add_argument("--run", type=Path, metavar="RUN", help=f"run folder (default: every run in {RUNS}/)")

    doctor = verbs.add("doctor", "what this machine has and what will be slow on it", _doctor, "[--run FOLDER]")
    doctor.add_argument("--run", type=Path, default=Path(), metavar="FOLDER", help="where runs will be written")

    completion = verbs.add(
        "completion", "print a script for shell completion", _completion, "bash|zsh|tcsh", after=COMPLETION_AFTER
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"), metavar="bash|zsh|tcsh")


def _report(flags: argparse.Namespace) -> None:
    if not (flags.run / LEDGER).exists():
        raise UserError(f"{flags.run} is no run folder: it has no {LEDGER}")
    load(REPORT)(flags.run)
    print(flags.run / "report.html")


def _ledger(flags: argparse.Namespace) -> None:
    ledgers = list(_ledgers(flags.run))
    if flags.action == "verify":
        for ledger in ledgers:
            _verify(ledger)
        return
    if flags.id is None:
        if flags.action == "trace":
            raise UserError("trace which record? Name the beginning of an id, or a stage such as `sft`")
        for ledger in ledgers:
            print(ledger.path.parent)
            _print_lines(ledger.records)
        return
    ledger, record = _find(ledgers, flags.id)
    if flags.action == "show":
        print(json.dumps(asdict(record), indent=2, ensure_ascii=False))
    else:
        _print_lines(ledger.ancestry(record.id))


def _ledgers(run: Path | None) -> Iterable[Ledger]:
    paths = [run / LEDGER] if run is not None else sorted(RUNS.glob(f"*/{LEDGER}"))
    if not paths or not paths[0].exists():
        where = f"in {run}" if run is not None else f"in any folder of {RUNS}/, name one with --run"
        raise UserError(f"no {LEDGER} {where}")
    return (Ledger(path) for path in paths)


def _find(ledgers: list[Ledger], name: str) -> tuple[Ledger, Record]:
    """The one record meant by a stage's name or the beginning of an id. Raises UserError for none or several."""
    if name in (stage.name for stage in STAGES):
        latest = ({record.stage: record for record in ledger.records}.get(name) for ledger in ledgers)
        found = [(ledger, record) for ledger, record in zip(ledgers, latest, strict=True) if record is not None]
    else:
        found = [(ledger, record) for ledger in ledgers for record in ledger.records if record.id.startswith(name)]
    distinct = {record.id: (ledger, record) for ledger, record in found}
    if len(distinct) == 1:
        return next(iter(distinct.values()))
    looked = ", ".join(str(ledger.path.parent) for ledger in ledgers)
    if not distinct:
        raise UserError(f"no record `{name}` in {looked}: `groundup ledger show` lists what there is")
    matches = ", ".join(f"{record.id[:12]} in {ledger.path.parent}" for ledger, record in distinct.values())
    raise UserError(f"`{name}` could mean {matches}: give more of the id, or a run with --run")


def _print_lines(records: Iterable[Record]) -> None:
    for record in records:
        inputs = ", ".join(f"{name} {made_by[:12]}" for name, made_by in record.inputs.items()) or "nothing before it"
        print(f"  {record.id[:12]}  {record.stage:10} from {inputs}")


def _verify(ledger: Ledger) -> None:
    """Check the chain, then each stage's folder against its record. Raises UserError at the first difference."""
    ledger.verify()
    run = ledger.path.parent
    records = {run / stage.folder: _record_of(run / stage.folder, stage.makes, ledger) for stage in STAGES}
    for folder, record in records.items():
        recorded = record.content if record is not None else {}
        found = hash_folder(folder) if folder.is_dir() else {}
        changed = sorted(name for name in found.keys() | recorded.keys() if found.get(name) != recorded.get(name))
        if changed:
            raise UserError(f"{folder / changed[0]} is not what the ledger recorded: it was changed, added or removed")
    count = sum(record is not None for record in records.values())
    print(f"{run}: {len(ledger.records)} records in an unbroken chain, {count} folders as recorded")


def _record_of(folder: Path, makes: str, ledger: Ledger) -> Record | None:
    """The record of what the folder holds, or held before it was removed."""
    stamp = read_stamp(folder)
    if stamp is not None:
        return ledger.find(stamp.stage, stamp.key)
    makers = [stage.name for stage in STAGES if stage.makes == makes]
    return next((record for record in reversed(ledger.records) if record.stage in makers), None)


def _doctor(flags: argparse.Namespace) -> None:
    if not flags.run.is_dir():
        raise UserError(f"{flags.run}: there is no such folder; name one that runs can be written into")
    from groundup.engine.kernels import library
    from groundup.hardware import doctor

    for finding in [*doctor(flags.run), library.finding()]:
        print(f"{_MARKS[finding.verdict]} {finding.subject:16} {finding.sentence}")


def _completion(flags: argparse.Namespace) -> None:
    import shtab

    parser = build_parser()
    for action in every_action(parser):
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    sys.stdout.write(shtab.complete(parser, shell=flags.shell))
