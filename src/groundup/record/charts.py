"""Small charts as inline SVG: lines, and bars with intervals. No library, no script, no network.

Colours are classes of the page's stylesheet (`tone-a` … `tone-d`, `grid`, `tick`), so a chart is light or dark with it.
Each chart has a title and a description for those who do not see it, and is drawn for a given width in pixels:
a page shows a wide and a narrow drawing of the same, so that letters keep their size on a telephone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from groundup.record.markup import join, tag
from groundup.record.metrics import format_amount

Point = tuple[float, float]

_MOST_POINTS = 400  # more than a screen can tell apart; a curve of 100,000 steps must not make a page of megabytes
_LETTER_WIDTH = 6.6  # of the 12 px text in charts, on average


@dataclass(frozen=True)
class Series:
    """One curve. tone: `a`, `b`, `c` or `d`. is_faint: drawn thin and pale, behind what matters more."""

    name: str
    points: Sequence[Point]
    tone: str = "a"
    is_faint: bool = False


@dataclass(frozen=True)
class Bar:
    """One bar from zero to `value`, with a whisker from `low` to `high` where there is an interval."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    tone: str = "a"
    note: str = ""


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels, along a straight or a logarithmic scale."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(v) if self.is_log else v for v in (self.low, self.high, value))
        return self.start + (at - low) / ((high - low) or 1.0) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        return _log_ticks(self.low, self.high, most) if self.is_log else _round_ticks(self.low, self.high, most)


def line_chart(
    series: Sequence[Series],
    title: str,
    description: str,
    width: int,
    height: int = 260,
    log_x: bool = False,
    log_y: bool = False,
    format_y: Callable[[float], str] = lambda value: f"{value:g}",
) -> Markup:
    """Curves over a shared pair of axes. On a logarithmic axis, points that are not positive are left out.

    Raises ValueError if no point is left to draw.
    """
    drawn = [_drawable(one, log_x, log_y) for one in series]
    points = [point for one in drawn for point in one.points]
    if not points:
        raise ValueError(f"the chart `{title}` has no point to draw")
    low_y, high_y = _padded(min(y for _, y in points), max(y for _, y in points), log_y)
    vertical = Axis(low_y, high_y, height - 24, 8, log_y)
    labels = {tick: format_y(tick) for tick in vertical.ticks(5)}
    left = 10 + _LETTER_WIDTH * max((len(label) for label in labels.values()), default=1)
    horizontal = Axis(min(x for x, _ in points), max(x for x, _ in points), left, width - 8, log_x)
    grid = [
        join(
            tag("line", class_="grid", x1=left, x2=width - 8, y1=vertical(tick), y2=vertical(tick)),
            tag("text", label, class_="tick", x=left - 8, y=vertical(tick) + 4, text_anchor="end"),
        )
        for tick, label in labels.items()
    ]
    steps = [
        tag(
            "text",
            format_amount(tick),
            class_="tick",
            x=horizontal(tick),
            y=height - 4,
            text_anchor=_anchor(tick, horizontal),
        )
        for tick in horizontal.ticks(max(3, width // 130))
    ]
    curves = [_curve(one, horizontal, vertical) for one in sorted(drawn, key=lambda one: not one.is_faint)]
    return svg(title, description, width, height, *grid, *steps, *curves)


def bar_chart(
    bars: Sequence[Bar],
    title: str,
    description: str,
    width: int,
    format_value: Callable[[float], str],
    highest: float | None = None,
) -> Markup:
    """Horizontal bars, one under the other, each with its name above it and its value behind it.

    highest: the value at the right edge, such as 1 for a proportion; by default the largest value or interval end.
    """
    row = 44
    room = 12 + _LETTER_WIDTH * max(len(_bar_value(bar, format_value)) for bar in bars)
    top = highest or max(max(bar.value, bar.high or 0.0) for bar in bars) or 1.0
    scale = Axis(0.0, top, 1.0, width - room)
    rows = [_bar(bar, index * row, scale, format_value) for index, bar in enumerate(bars)]
    return svg(title, description, width, row * len(bars), *rows)


def svg(title: str, description: str, width: float, height: float, *children: Markup | None) -> Markup:
    """A drawing of width × height pixels. title, description: what is said of it to those who cannot see it."""
    return tag(
        "svg",
        tag("title", title),
        tag("desc", description),
        *children,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=f"{title}. {description}",
    )


def _drawable(series: Series, log_x: bool, log_y: bool) -> Series:
    points = [(x, y) for x, y in series.points if (x > 0 or not log_x) and (y > 0 or not log_y)]
    return Series(series.name, thin(points), series.tone, series.is_faint)


def thin(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """At most about `most` points with the same look: the lowest and highest of each stretch, and both ends."""
    if len(points) <= most:
        return list(points)
    stretch = math.ceil(2 * len(points) / most)
    kept = {0, len(points) - 1}
    for start in range(0, len(points), stretch):
        indices = range(start, min(start + stretch, len(points)))
        kept.update((min(indices, key=lambda i: points[i][1]), max(indices, key=lambda i: points[i][1])))
    return [points[index] for index in sorted(kept)]


def _curve(series: Series, horizontal: Axis, vertical: Axis) -> Markup:
    places = [(horizontal(x), vertical(y)) for x, y in series.points]
    name = f"curve tone-{series.tone}" + (" faint" if series.is_faint else "")
    line = tag("polyline", class_=name, points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places)) if places else None
    is_marked = places and not series.is_faint
    end = (
        tag("circle", class_=f"dot tone-{series.tone}", cx=places[-1][0], cy=places[-1][1], r=3.5)
        if is_marked
        else None
    )
    return join(line, end)


def _padded(low: float, high: float, is_log: bool) -> tuple[float, float]:
    """A little air above and below, and some height for a curve that is flat."""
    if is_log:
        return low / 1.03, high * 1.03
    air = 0.04 * (high - low) or 0.5 * abs(high) or 1.0
    return (0.0 if 0 <= low <= air else low - air), high + air


def _anchor(tick: float, axis: Axis) -> str:
    """Labels at either end of the axis stay inside the drawing."""
    share = (axis(tick) - axis.start) / ((axis.end - axis.start) or 1.0)
    return "start" if share < 0.04 else "end" if share > 0.94 else "middle"


def _round_ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within the range, at most `most`."""
    span = (high - low) or 1.0
    magnitude = 10.0 ** math.floor(math.log10(span))
    step = next(m * magnitude * f for f in (0.1, 1, 10) for m in (1, 2, 5) if span / (m * magnitude * f) < most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers within the range, with the finest spacing that gives no more than `most`."""
    decades = [10.0**exponent for exponent in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    choices = [
        (1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2, 2.2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9),
        (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8),
        (1, 1.5, 2, 3, 5, 7),
        (1, 2, 5),
        (1, 3),
        (1,),
    ]
    for mantissas in choices:
        ticks = [round(m * decade, 12) for decade in decades for m in mantissas if low <= m * decade <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]


def _bar_value(bar: Bar, format_value: Callable[[float], str]) -> str:
    return format_value(bar.value) + (f" {bar.note}" if bar.note else "")


def _bar(bar: Bar, top: float, scale: Axis, format_value: Callable[[float], str]) -> Markup:
    middle = top + 29
    end = scale(bar.value if bar.high is None else max(bar.value, bar.high))
    whisker = None
    if bar.low is not None and bar.high is not None:
        low, high = scale(bar.low), scale(bar.high)
        path = f"M{low:.1f},{middle}H{high:.1f}M{low:.1f},{middle - 6}v12M{high:.1f},{middle - 6}v12"
        whisker = join(tag("path", class_="halo", d=path), tag("path", class_="whisker", d=path))
    return join(
        tag("text", bar.label, class_="name", x=0, y=top + 14),
        tag("rect", class_="track", x=0, y=middle - 5, width=scale.end, height=10, rx=2),
        tag(
            "rect", class_=f"bar tone-{bar.tone}", x=0, y=middle - 5, width=max(scale(bar.value), 1.0), height=10, rx=2
        ),
        whisker,
        tag("text", _bar_value(bar, format_value), class_="value", x=end + 8, y=middle + 4),
    )
