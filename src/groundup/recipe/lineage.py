"""`groundup.json` in a model folder: what the model was made from, what that cost, how well it does.

Everything in it is derived from the ledger and from files of the run, so it can be written anew at any time. A model
folder that leaves its run takes its story along.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from groundup import __version__
from groundup.recipe.stages import Stage
from groundup.record.ledger import Ledger, Record
from groundup.storage import hash_value, write_json

FILE = "groundup.json"


def write_lineage(run: Path, ledger: Ledger, stages: Sequence[Stage]) -> None:
    """Write `groundup.json` into each model folder of the run."""
    folders = {stage.name: run / stage.folder for stage in stages}
    latest = {record.stage: record for record in ledger.records}
    for stage in stages:
        if stage.makes_model and stage.name in latest and folders[stage.name].is_dir():
            write_json(folders[stage.name] / FILE, _story(latest[stage.name], ledger, folders, latest.get("evaluate")))


def _story(record: Record, ledger: Ledger, folders: dict[str, Path], evaluation: Record | None) -> dict[str, Any]:
    ancestry = ledger.ancestry(record.id)
    is_evaluated = evaluation is not None and record.id in evaluation.inputs.values()
    return {
        "groundup": __version__,
        "record": record.id,
        "content": record.content_hash,
        "recipe": hash_value({step.stage: step.config for step in ancestry}),
        "lineage": [
            {"stage": step.stage, "record": step.id, "inputs": step.inputs, "config": step.config, "code": step.code}
            for step in ancestry
        ],
        "cost": {step.stage: _read(folders[step.stage] / "cost.json") for step in ancestry if step.stage in folders},
        "scores": _read(folders["evaluate"] / "scores.json") if is_evaluated else None,
    }


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes()) if path.exists() else None
