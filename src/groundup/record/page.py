"""The pieces a report is put together from: page, section, tiles, table, labels, and numbers as people write them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from groundup.record.markup import Child, join, tag
from groundup.record.metrics import format_duration
from groundup.record.style import STYLESHEET

WIDE_PIXELS = 760
NARROW_PIXELS = 340

# Nothing is fetched and no script runs, whatever text a sample or a rejected document holds.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

_UNKNOWN = "–"


def page(title: str, header: Markup, sections: Sequence["Section"]) -> str:
    """The whole HTML file."""
    links = [tag("a", section.title, href=f"#{section.anchor}") for section in sections]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} · groundup"),
        tag("style", Markup(STYLESHEET)),
    )
    body = tag(
        "body",
        tag("header", header),
        tag("nav", tag("div", *links), aria_label="Sections"),
        tag("main", *(section.markup() for section in sections)),
        tag("footer", tag("p", "Written by groundup from the files of this run. It opens from disk and asks nobody.")),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


class Section:
    """One chapter: a title, a sentence on how to read it, and its content."""

    def __init__(self, title: str, intro: str, *content: Markup | None) -> None:
        self.title = title
        self.anchor = title.lower().replace(" ", "-")
        self._intro = intro
        self._content = content

    def markup(self) -> Markup:
        beside = tag("div", tag("h2", self.title), tag("p", self._intro))
        return tag("section", beside, tag("div", *self._content), id=self.anchor)


def tiles(*entries: Markup | None) -> Markup | None:
    """A row of figures; None if there is none to show."""
    present = [entry for entry in entries if entry is not None]
    return tag("dl", *present, class_="tiles") if present else None


def tile(label: str, figure: str | None, note: Child = None) -> Markup | None:
    """One figure with its name above and a remark below; its unit, after the first space, is set small."""
    if figure is None:
        return None
    value, _, unit = figure.partition(" ")
    shown = tag("span", value, join(" ", tag("small", unit)) if unit else None, class_="figure")
    return tag("div", tag("dt", label), tag("dd", shown, tag("span", note, class_="note") if note else None))


def table(
    headers: Sequence[Child], body: Sequence[Sequence[Child]], numbers: Sequence[int] = (), total: bool = False
) -> Markup:
    """A table. numbers: columns set flush right. total: the last row sums up the others."""

    def cells(name: str, row: Sequence[Child]) -> Markup:
        return join(*(tag(name, cell, class_="number" if index in numbers else None) for index, cell in enumerate(row)))

    written = [
        tag("tr", cells("td", row), class_="total" if total and index == len(body) - 1 else None)
        for index, row in enumerate(body)
    ]
    return tag(
        "div", tag("table", tag("thead", tag("tr", cells("th", headers))), tag("tbody", *written)), class_="scroll"
    )


def chart(caption: Child, draw: Callable[[int], Markup], key: Sequence[tuple[str, str]] = ()) -> Markup:
    """A drawing in both widths under its caption. key: (tone, name) of what is drawn."""
    return tag(
        "figure",
        tag("figcaption", caption, colour_key(key) if key else None),
        tag("div", draw(WIDE_PIXELS), class_="wide"),
        tag("div", draw(NARROW_PIXELS), class_="narrow"),
    )


def colour_key(entries: Sequence[tuple[str, str]]) -> Markup:
    return tag("ul", *(tag("li", name, class_=f"tone-{tone}") for tone, name in entries), class_="key")


def strip(parts: Sequence[tuple[str, str, float]]) -> Markup:
    """One bar cut into shares, with its key. parts: (tone, name, amount)."""
    bar = (tag("span", class_=f"tone-{tone}", style=f"flex:{amount:g}", title=name) for tone, name, amount in parts)
    return join(
        tag("div", *bar, class_="strip", role="presentation"), colour_key([(tone, name) for tone, name, _ in parts])
    )


def label(figure: Mapping[str, Any]) -> Markup | None:
    """`measured` or `estimated`, as the figure of a `cost.json` says, with its source on hovering."""
    basis = figure.get("basis")
    return (
        tag("span", basis, class_=f"pill {basis}", title=figure.get("source"))
        if basis in ("measured", "estimated")
        else None
    )


def shown(value: float | None, format_value: Callable[[float], str]) -> str:
    """The number as text, or a dash where there is none."""
    return _UNKNOWN if value is None else format_value(value)


def maybe(value: float | None, format_value: Callable[[float], str]) -> str | None:
    """The number as text, or None where there is none."""
    return None if value is None else format_value(value)


def format_count(value: float) -> str:
    return f"{value:,.0f}"


def format_scaled(value: float, unit: str) -> str:
    """Three figures and a unit with its prefix: 12.3 MB, 405 GFLOP/s."""
    rounded = float(f"{value:.3g}")
    for scale, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(rounded) >= scale:
            return f"{rounded / scale:g} {prefix}{unit}"
    return f"{rounded:g} {unit}".rstrip()


def format_bytes(value: float) -> str:
    return format_scaled(value, "B")


def format_percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def format_energy(joules: float) -> str:
    """In watt-hours, as on the electricity bill."""
    hours = joules / 3600
    return f"{float(f'{1000 * hours:.3g}'):g} mWh" if hours < 1 else format_scaled(hours, "Wh")


def format_grams(grams: float) -> str:
    return f"{float(f'{1000 * grams:.3g}'):g} mg" if grams < 1 else format_scaled(grams, "g")


def format_seconds(seconds: float) -> str:
    """As a figure with a unit: 4.2 s, 12:05 min, 1:02:09 h."""
    text = format_duration(seconds)
    return text if " " in text else f"{text} {'h' if text.count(':') == 2 else 'min'}"
