"""The verbs that make something: `run` for a whole recipe, and one verb for each stage."""

import argparse
from pathlib import Path
from typing import Any

from groundup.cli.parser import Verbs
from groundup.errors import UserError
from groundup.formats.folder import local_folder
from groundup.recipe.reading import Recipe, find_recipe, read_recipe, read_toml, shipped_recipes
from groundup.recipe.runner import Artefact, find_artefact, remembered, run_stages
from groundup.recipe.stages import STAGES, Stage, load
from groundup.settings import add_flags, read_flags

RUNS = Path("runs")
REPORT = "groundup.record.report:write_report"

# The stages that are verbs. Documents with a split of their own come in through `pretrain --documents`.
VERBS = {stage.name: stage for stage in STAGES if stage.name != "documents"}
# `--tokens` is a budget of pre-training, so the folder of that name needs another flag.
INPUT_FLAGS = {
    "corpus": "corpus",
    "tokenizer": "tokenizer",
    "tokens": "shards",
    "pretrain": "model",
    "sft": "chat-model",
}

RUN_ABOUT = """\
Run a recipe: all its stages in order, then the report. A stage whose settings, code and inputs did not
change is skipped; one that was interrupted goes on. RECIPE is a shipped name or a TOML file of your own;
without it, the shipped recipes are listed."""

RUN_AFTER = """\
examples:
  groundup run pocket                                   everything with the shipped settings
  groundup run pocket --pretrain.minutes 20             train longer; corpus and tokenizer are not made again
  groundup run stories --corpus.paths ~/texts           your own .txt, .md, .jsonl or Parquet files
  groundup run mine.toml --out runs/second              your own recipe; start from `groundup run --show pocket`

Next: groundup chat runs/pocket, and open runs/pocket/report.html in a browser."""

STAGE_AFTER = {
    "corpus": """\
example:
  groundup corpus --paths ~/texts --out runs/mine

Next: groundup tokenizer --out runs/mine""",
    "tokenizer": """\
example:
  groundup tokenizer --out runs/mine --vocab-size 8192

Next: groundup tokens --out runs/mine""",
    "tokens": """\
example:
  groundup tokens --out runs/mine

Next: groundup pretrain --out runs/mine""",
    "pretrain": """\
examples:
  groundup pretrain --out runs/mine --minutes 10
  groundup pretrain --out runs/masked --preset bert --shards runs/mine --tokenizer runs/mine
                        another kind of model from the same tokens; it cannot be sampled or taught to chat
  groundup pretrain --documents train.jsonl --heldout heldout.jsonl --out runs/mine
                        straight from documents with a split of your own: one JSON object with a "text" per line

Next: groundup sample runs/mine, groundup sft --out runs/mine""",
    "sft": """\
examples:
  groundup sft --out runs/mine
  groundup sft --out runs/mine --preview      what the model would learn from, token by token; trains nothing

Next: groundup chat runs/mine, groundup evaluate runs/mine""",
    "evaluate": """\
examples:
  groundup evaluate runs/mine

Next: groundup report runs/mine""",
}


def add_verbs(verbs: Verbs) -> None:
    """Add `run` and the stages."""
    usage = "[RECIPE] [--out RUN] [--STAGE.KEY VALUE …]"
    run = verbs.add("run", "run a whole recipe", _run, usage, RUN_ABOUT, RUN_AFTER, resumes=True)
    run.add_argument("recipe", nargs="?", metavar="RECIPE", help="a shipped recipe or a TOML file")
    run.add_argument("--out", type=Path, metavar="RUN", help="run folder (default: runs/RECIPE)")
    run.add_argument("--show", action="store_true", help="print the recipe and run nothing")
    for stage in VERBS.values():
        group = run.add_argument_group(f"[{stage.name}]: {stage.summary}")
        add_flags(group, stage.config_kind, prefix=f"{stage.name}.")
    for stage in VERBS.values():
        _add_stage(verbs, stage)


def _add_stage(verbs: Verbs, stage: Stage) -> None:
    about = f"{stage.summary.capitalize()}.\n\nOne stage of a run folder; settings of an earlier run there are kept."
    usage, after = "RUN [settings] [inputs]", STAGE_AFTER[stage.name]
    verb = verbs.add(stage.name, stage.summary, _run_stage, usage, about, after, resumes=True)
    verb.add_argument("run", nargs="?", type=Path, metavar="RUN", help=f"run folder; the result goes to {stage.folder}")
    verb.add_argument("--out", type=Path, metavar="RUN", help="the run folder as a flag")
    settings = verb.add_argument_group("settings, as in the recipe's table")
    add_flags(settings, stage.config_kind)
    inputs = verb.add_argument_group("inputs (default: those in the run folder)")
    for name in (*stage.inputs, *stage.optional):
        flag = INPUT_FLAGS[name]
        inputs.add_argument(f"--{flag}", dest=f"input {name}", type=Path, metavar="FOLDER", help=f"result of {name}")
    if stage.name == "pretrain":
        _add_documents(inputs, verb.add_argument_group("settings of the stages before, with --documents"))
    if stage.name == "sft":
        verb.add_argument("--preview", action="store_true", help="print one conversation of each kind, train nothing")


def _add_documents(inputs: argparse._ArgumentGroup, settings: argparse._ArgumentGroup) -> None:
    inputs.add_argument("--documents", nargs="+", metavar="FILE", help="train on these documents (.jsonl), as they are")
    inputs.add_argument("--heldout", nargs="+", metavar="FILE", help="and measure on these")
    for name in ("tokenizer", "tokens"):
        add_flags(settings, VERBS[name].config_kind, prefix=f"{name}.")


def _run(flags: argparse.Namespace) -> None:
    if flags.recipe is None:
        for path in shipped_recipes():
            print(f"{path.stem:12} {read_toml(path)['description']}")
        return
    if flags.show:
        print(find_recipe(flags.recipe).read_text(encoding="utf-8"), end="")
        return
    recipe = read_recipe(flags.recipe, flags)
    folder = flags.out or RUNS / recipe.name
    run_stages(recipe.configs, folder)
    _finish(folder, recipe)


def _finish(folder: Path, recipe: Recipe) -> None:
    load(REPORT)(folder)
    print(f"report: {folder / 'report.html'}")
    if "sft" in recipe.configs:
        print(f"chat:   groundup chat {folder}")


def _run_stage(flags: argparse.Namespace) -> None:
    stage = VERBS[flags.verb]
    folder = flags.out or flags.run
    if folder is None:
        raise UserError(f"which run folder? `groundup {stage.name} --out runs/NAME`")
    if flags.out is not None and flags.run is not None and flags.out != flags.run:
        raise UserError(f"two run folders, {flags.run} and --out {flags.out}: name one")
    configs = {stage.name: read_flags(stage.config_kind, flags, remembered(folder, stage))}
    if stage.name == "pretrain":
        configs = _documents_configs(flags, folder) | configs
    inputs = _inputs(flags, stage)
    if stage.name == "sft" and flags.preview:
        folders = {name: folder / VERBS[name].folder for name in stage.inputs}
        preview(configs["sft"], **folders | {name: artefact.folder for name, artefact in inputs.items()})
        return
    run_stages(configs, folder, inputs)
    print(folder / stage.folder)


def _inputs(flags: argparse.Namespace, stage: Stage) -> dict[str, Artefact]:
    """The artefacts that the user named; a run folder stands for the stage in it, `hf:org/name` is downloaded."""
    folders = {each.makes: each.folder for each in STAGES}
    given = {name: getattr(flags, f"input {name}") for name in (*stage.inputs, *stage.optional)}
    given = {name: local_folder(path) for name, path in given.items() if path is not None}
    return {
        name: find_artefact(path / folders[name] if (path / folders[name]).is_dir() else path)
        for name, path in given.items()
    }


def _documents_configs(flags: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Settings of the stages that `--documents` needs before pre-training, or {}."""
    if (flags.documents is None) != (flags.heldout is None):
        raise UserError("--documents and --heldout go together: text to train on and text to measure on")
    if flags.documents is None:
        return {}
    documents = next(stage for stage in STAGES if stage.name == "documents").config_kind
    configs = {"documents": documents(tuple(flags.documents), tuple(flags.heldout))}
    for stage in (VERBS["tokenizer"], VERBS["tokens"]):
        base = remembered(folder, stage)
        configs[stage.name] = read_flags(stage.config_kind, flags, base, prefix=f"{stage.name}.")
    return configs


def preview(config: Any, corpus: Path, pretrain: Path) -> None:
    """Print one training conversation of each kind, token by token, with the tokens the model learns from marked."""
    from rich.console import Console

    from groundup.align.sft import gather_conversations
    from groundup.tokens.chat import render
    from groundup.tokens.preview import show
    from groundup.tokens.tokenizer import Tokenizer

    tokenizer, console = Tokenizer.load(pretrain), Console()
    conversations = gather_conversations(config, corpus, tokenizer)["train"]
    for mode, conversation in {one.mode: one for one in reversed(conversations)}.items():
        console.rule(mode)
        show(console, tokenizer, render(tokenizer, conversation.messages))
