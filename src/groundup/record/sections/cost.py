"""The chapter on what the run took: time, memory, energy and CO₂ of each stage."""

from collections.abc import Callable, Sequence

from markupsafe import Markup

from groundup.record.markup import Child, join, tag
from groundup.record.page import (
    Section,
    format_bytes,
    format_energy,
    format_grams,
    format_seconds,
    label,
    strip,
    table,
    tile,
    tiles,
)
from groundup.record.run_folder import Row, RunFolder, number

_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("time", "wall_seconds", format_seconds),
    ("processor time", "cpu_seconds", format_seconds),
    ("peak memory", "peak_memory_bytes", format_bytes),
    ("energy", "energy_joules", format_energy),
    ("CO₂", "co2_grams", format_grams),
)
_TONES = "cdbaef"
_PEAKS = frozenset({"peak_memory_bytes"})  # of several stages the largest stands; all else adds up


def cost_section(run: RunFolder) -> Section | None:
    """What each stage took and in all. Reads cost.json of each stage, as `record/cost.py` writes it."""
    costs = {name: files.cost for name, files in run.stages.items() if files.cost}
    if not costs:
        return None
    return Section(
        "Cost",
        "What the run took. Each figure says whether it was measured or estimated; how is told below the table.",
        tiles(*(tile(title, text, note) for title, text, note in _totals(list(costs.values())))),
        _time_strip(costs),
        _stage_table(costs),
        _sources(list(costs.values())),
    )


def total(costs: Sequence[Row], name: str) -> Row | None:
    """The figure `name` of all stages together: estimated as soon as one of them is. None if no stage has it."""
    figures = [
        cost[name] for cost in costs if isinstance(cost.get(name), dict) and number(cost, name, "value") is not None
    ]
    if not figures:
        return None
    values = [figure["value"] for figure in figures]
    is_measured = all(figure.get("basis") == "measured" for figure in figures)
    return {
        "value": max(values) if name in _PEAKS else sum(values),
        "basis": "measured" if is_measured else "estimated",
    }


def _totals(costs: Sequence[Row]) -> list[tuple[str, str | None, Markup | None]]:
    figures = [(title, total(costs, name), written) for title, name, written in _COLUMNS]
    return [
        (title, written(figure["value"]), label(figure)) for title, figure, written in figures if figure is not None
    ]


def _time_strip(costs: dict[str, Row]) -> Markup | None:
    timed = [(name, seconds) for name, cost in costs.items() if (seconds := number(cost, "wall_seconds", "value"))]
    if len(timed) < 2:
        return None
    parts = [
        (_TONES[index % len(_TONES)], f"{name} {format_seconds(seconds)}", seconds)
        for index, (name, seconds) in enumerate(timed)
    ]
    return join(tag("h3", "Where the time went"), strip(parts))


def _stage_table(costs: dict[str, Row]) -> Markup:
    """The label stands above a column whose figures share it, else behind each figure."""
    shared = {name: _shared_label(list(costs.values()), name) for _, name, _ in _COLUMNS}
    headers = ["stage", *(join(title, " ", shared[name]) for title, name, _ in _COLUMNS)]
    body: list[list[Child]] = [
        [stage, *(_cell(cost, name, written, shared[name] is None) for _, name, written in _COLUMNS)]
        for stage, cost in costs.items()
    ]
    return table(headers, body, numbers=range(1, len(_COLUMNS) + 1))


def _shared_label(costs: Sequence[Row], name: str) -> Markup | None:
    figures = [cost[name] for cost in costs if isinstance(cost.get(name), dict)]
    return label({"basis": figures[0].get("basis")}) if len({figure.get("basis") for figure in figures}) == 1 else None


def _cell(cost: Row, name: str, written: Callable[[float], str], is_labelled: bool) -> Child:
    value = number(cost, name, "value")
    return "–" if value is None else join(written(value), " ", label(cost[name]) if is_labelled else None)


def _sources(costs: Sequence[Row]) -> Markup | None:
    """Each way a figure was come by, once."""
    found: dict[tuple[str, str], None] = {}
    for title, name, _ in _COLUMNS:
        for cost in costs:
            source = cost[name].get("source") if isinstance(cost.get(name), dict) else None
            if source:
                found[(title, str(source))] = None
    if not found:
        return None
    lines = [join(tag("strong", title), f": {source}") for title, source in found]
    return tag("p", join(*lines, separator=" · "), class_="fine")
