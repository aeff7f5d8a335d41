"""How fast a model answered, shown: a table on the terminal, and a page with charts."""

from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from rich.table import Table

from groundup.engine.speed import EngineSpeed
from groundup.engine.speed_plan import Plan
from groundup.hardware import Hardware
from groundup.record.charts import Bar, bar_chart
from groundup.record.markup import join, tag
from groundup.record.page import Section, chart, format_bytes, maybe, page, shown, tile, tiles
from groundup.record.page import table as html_table

COLUMNS = ("streams", "first token", "gap p50", "gap p95", "gap p99", "decode tokens/s", "overall tokens/s")


@dataclass(frozen=True)
class Measured:
    """What `groundup bench` found out. load_seconds: until the engine could be asked; libraries were loaded before."""

    model: Path
    device: str
    machine: Hardware
    plan: Plan
    load_seconds: float
    peak_memory_bytes: int | None
    speed: EngineSpeed

    @property
    def where(self) -> str:
        """The processor or GPU, and what it was asked."""
        plan, threads = self.plan, self.machine.torch_threads
        processor = f"{self.machine.processor}, {threads} thread{'s' if threads > 1 else ''}"
        return (
            f"{processor if self.device == 'cpu' else self.machine.gpu}; "
            f"prompts of {plan.prompt_length} tokens, answers of {plan.new_tokens}, each measured {plan.repeats} ×"
        )


def terminal_table(measured: Measured) -> Table:
    """A row for each number of streams."""
    table = Table(title=str(measured.model), caption=measured.where)
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for cells in _cells(measured.speed):
        table.add_row(*cells)
    return table


def terminal_lines(measured: Measured) -> list[str]:
    """What is one figure for all."""
    return [
        f"prefill      {tokens_per_s(measured.speed.prefill_tokens_per_s)}",
        f"loaded in    {measured.load_seconds:.2f} s",
        f"peak memory  {shown(measured.peak_memory_bytes, format_bytes)}",
    ]


def speed_page(measured: Measured) -> str:
    """One HTML file without scripts that fetches nothing."""
    speed = measured.speed
    header = join(
        tag("p", "groundup · bench", class_="kind"),
        tag("h1", str(measured.model)),
        tag("p", measured.where, class_="lede"),
        tiles(
            tile("prefill", tokens_per_s(speed.prefill_tokens_per_s), "a prompt alone"),
            tile("loaded in", f"{measured.load_seconds:.2f} s", "libraries not included"),
            tile("peak memory", maybe(measured.peak_memory_bytes, format_bytes), "weights, cache and libraries"),
        ),
    )
    together = [Bar(_streams(row.streams), row.overall_tokens_per_s, tone="b") for row in speed.streams]
    writing = [
        Bar(_streams(row.streams), row.decode_tokens_per_s)
        for row in speed.streams
        if row.decode_tokens_per_s is not None
    ]
    gaps = [
        Bar(_streams(row.streams), row.gap_s.p50, low=row.gap_s.p50, high=row.gap_s.p99, tone="c")
        for row in speed.streams
    ]
    firsts = [
        Bar(_streams(row.streams), row.first_token_s.p50, low=row.first_token_s.p50, high=row.first_token_s.p99)
        for row in speed.streams
    ]
    rates = [
        _bars("Tokens per second while all streams are writing", writing, "decode"),
        _bars("New tokens per second from the first question to the last token", together, "overall"),
    ]
    times = [
        _bars("From the question to the first token: half of all texts, and 99 of 100", firsts, "first token"),
        _bars("From each token to the next: half of all, and 99 of 100", gaps, "gap"),
    ]
    sections = [
        Section("Together", "What the machine gives: all streams share each pass over the weights.", *rates),
        Section("Each", "What one reader waits for, while as many others read along.", *times),
        Section("Figures", "The same as numbers.", html_table(COLUMNS, _cells(speed), numbers=range(len(COLUMNS)))),
    ]
    return page(str(measured.model), header, sections)


def milliseconds(seconds: float) -> str:
    """Three figures: 0.52 ms, 13.4 ms, 1,250 ms."""
    value = 1000 * seconds
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def tokens_per_s(rate: float) -> str:
    """Three figures: 8.21, 327, 2,745."""
    return f"{_rate(rate)} tokens/s"


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _streams(count: int) -> str:
    return f"{count} stream{'s' if count > 1 else ''}"


def _cells(speed: EngineSpeed) -> list[list[str]]:
    return [
        [
            str(row.streams),
            *(milliseconds(one) for one in (row.first_token_s.p50, row.gap_s.p50, row.gap_s.p95, row.gap_s.p99)),
            shown(row.decode_tokens_per_s, _rate),
            _rate(row.overall_tokens_per_s),
        ]
        for row in speed.streams
    ]


def _bars(caption: str, bars: list[Bar], kind: str) -> Markup | None:
    """None where there is no bar to draw."""
    show_value = tokens_per_s if kind in ("decode", "overall") else milliseconds
    described = ", ".join(f"{bar.label}: {show_value(bar.value)}" for bar in bars)
    return chart(caption, lambda width: bar_chart(bars, kind, described, width, show_value)) if bars else None
