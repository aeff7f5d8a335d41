"""`report.html`: one file that tells the whole run, from its raw text to how to chat with the result.

It is made from the small files that the stages leave in the run folder and knows no stage's code. It holds no script,
fetches nothing, opens from disk, is light or dark as the reader's system, prints, and tells of a run that stopped half
way what there is. Its keys are named in the docstrings of `record/sections/`.
"""

from collections.abc import Callable
from pathlib import Path

from markupsafe import Markup

from groundup.errors import UserError
from groundup.record.markup import join, tag
from groundup.record.page import (
    Section,
    format_bytes,
    format_energy,
    format_percent,
    format_scaled,
    format_seconds,
    label,
    maybe,
    page,
    tile,
    tiles,
)
from groundup.record.run_folder import STAGES, RunFolder, number, read_run, rows
from groundup.record.sections.cost import cost_section, total
from groundup.record.sections.data import corpus_section, kept, tokenizer_section
from groundup.record.sections.lineage import lineage_section
from groundup.record.sections.scores import evaluation_section, is_model
from groundup.record.sections.training import pretrain_section, samples_section, sft_section
from groundup.storage import write_atomically

REPORT_FILE = "report.html"

_CHAPTERS: tuple[Callable[[RunFolder], Section | None], ...] = (
    corpus_section,
    tokenizer_section,
    pretrain_section,
    samples_section,
    sft_section,
    evaluation_section,
    cost_section,
    lineage_section,
)


def write_report(run: Path) -> Path:
    """Write `report.html` into the run folder and return its path.

    Raises UserError if `run` is no folder with a finished stage in it.
    """
    if not run.is_dir():
        raise UserError(f"{run} is no folder: a report needs the folder of a run, such as runs/pocket")
    folder = read_run(run)
    if not folder.stages:
        raise UserError(f"{run} holds no finished stage yet (no folder like 01-corpus): there is nothing to report")
    path = run / REPORT_FILE
    # A rejected file that was no UTF-8 may be quoted with half a character in it.
    write_atomically(path, render_report(folder).encode("utf-8", errors="replace"))
    return path


def render_report(run: RunFolder) -> str:
    """The report as HTML."""
    sections = [section for chapter in _CHAPTERS if (section := chapter(run)) is not None]
    return page(run.name, _header(run), [*sections, _chat_section(run)])


def _header(run: RunFolder) -> Markup:
    pretrain, corpus = run.stage("pretrain").summary, run.stage("corpus").summary
    costs = [files.cost for files in run.stages.values() if files.cost]
    time, energy = total(costs, "wall_seconds"), total(costs, "energy_joules")
    return join(
        tag("p", "groundup · run report", class_="kind"),
        tag("h1", run.name),
        tag("p", _lede(run), class_="lede"),
        tiles(
            tile("held-out text", maybe(number(pretrain, "heldout_bits_per_byte"), lambda v: f"{v:.3f}"), _beside(run)),
            tile("model size", maybe(number(pretrain, "parameters"), lambda n: format_scaled(n, "")), "parameters"),
            tile("data", maybe(kept(corpus, "bytes"), format_bytes), "of text kept"),
            tile("right answers", *_best_answers(run)),
            tile("whole run", format_seconds(time["value"]), label(time)) if time else None,
            tile("energy", format_energy(energy["value"]), label(energy)) if energy else None,
        ),
        tag("pre", _commands(run)[0][0], class_="command"),
        _stage_list(run),
    )


def _lede(run: RunFolder) -> str:
    """One sentence that says what this run is."""
    pretrain = run.stage("pretrain").summary
    parameters, tokens = number(pretrain, "parameters"), number(pretrain, "tokens")
    text = maybe(kept(run.stage("corpus").summary, "bytes"), format_bytes)
    if parameters is None:
        return f"A run on its way: {len(run.stages)} of {len(STAGES)} stages are done, there is no model yet."
    kind = "chat assistant" if run.is_done("sft") else "language model"
    source = f", grown from {text} of raw text" if text else ""
    read = f", having read {format_scaled(tokens, '').strip()} tokens" if tokens else ""
    return f"A {kind} of {_in_words(parameters)} parameters{source}{read}."


def _in_words(count: float) -> str:
    for scale, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if count >= scale:
            return f"{count / scale:.3g} {word}"
    return f"{count:.0f}"


def _beside(run: RunFolder) -> str:
    """The best that is not one of our models, to compare with."""
    others = [
        (value, str(row.get("name", "")))
        for row in rows(run.stage("evaluate").scores, "bits_per_byte")
        if not is_model(row) and (value := number(row, "value")) is not None
    ]
    return (
        join("bits per byte", *(f"; {name}: {value:.3f}" for value, name in [min(others)] if others))
        if others
        else "bits per byte"
    )


def _best_answers(run: RunFolder) -> tuple[str | None, str]:
    entries = [row for row in rows(run.stage("evaluate").scores, "questions") if row.get("mode") == "with passage"]
    values = [value for row in entries if (value := number(row, "exact_match", "value")) is not None]
    return (format_percent(max(values)) if values else None), "from a passage, word for word"


def _stage_list(run: RunFolder) -> Markup:
    names = list(dict.fromkeys([*STAGES, *run.stages]))
    return tag(
        "ol",
        *(tag("li", name, class_="done" if run.is_done(name) else None, title=_state(run, name)) for name in names),
        class_="stages",
        aria_label="Stages",
    )


def _state(run: RunFolder, name: str) -> str:
    return "finished" if run.is_done(name) else "not finished"


def _chat_section(run: RunFolder) -> Section:
    written = [join(tag("pre", command, class_="command"), tag("p", what)) for command, what in _commands(run)]
    has_model = run.is_done("pretrain")
    intro = "The model is a Hugging Face folder: transformers reads it as it is." if has_model else "What to do next."
    return Section("Chat" if has_model and _continues_text(run) else "Next", intro, *written)


def _continues_text(run: RunFolder) -> bool:
    """Whether the base model is one that can be sampled."""
    return run.stage("pretrain").summary.get("objective", "next token") == "next token"


def _commands(run: RunFolder) -> list[tuple[str, str]]:
    """What to type next, the best first, with what it does."""
    commands = []
    if run.is_done("sft"):
        commands.append(
            (f"groundup chat {run.path}", "Talk with the model in the terminal; /help lists what you can type.")
        )
    if run.is_done("pretrain") and _continues_text(run):
        commands.append((f"groundup sample {run.path}", "Let the model go on from a text of yours."))
    elif run.is_done("pretrain"):
        commands.append((f"groundup evaluate {run.path}", "See how well the model guesses held-out text."))
    return commands or [
        (f"groundup run {run.name}", "There is no model yet: the command that began the run goes on with it.")
    ]
