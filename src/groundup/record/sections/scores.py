"""The chapter on evaluation: held-out text, questions, arithmetic."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from groundup.record.charts import Bar, bar_chart
from groundup.record.markup import join, tag
from groundup.record.page import Section, chart, format_bytes, format_count, format_percent, shown, table
from groundup.record.run_folder import Row, RunFolder, number, rows

_TONES = {"closed book": "c", "with passage": "a"}


def evaluation_section(run: RunFolder) -> Section | None:
    """How good the model is, beside things that are not models.

    Reads of scores.json: bits_per_byte: [{name, value, bytes, is_model?}], questions: [{name, model, mode, n,
    exact_match: {value, low, high}, f1: {…}}], comparisons: [{name, difference, low, high, p_value}], calculator:
    {n, accuracy: {…}}.
    """
    scores = run.stage("evaluate").scores
    parts = [_bits_per_byte(scores), _questions(scores), _comparisons(scores), _calculator(scores)]
    if not any(parts):
        return None
    return Section(
        "Evaluation",
        "On text and questions that were kept out of training. Whiskers are 95 % intervals: where two of them overlap "
        "widely, do not read a difference into the bars.",
        *parts,
    )


def is_model(entry: Mapping[str, Any]) -> bool:
    """Whether a bits-per-byte entry is one of our models rather than a compressor or a table of counts."""
    return str(entry.get("name", "")).split()[0:1] in (["model"], ["pretrain"], ["sft"])


def _bits_per_byte(scores: Row) -> Markup | None:
    entries = [(row, number(row, "value")) for row in rows(scores, "bits_per_byte")]
    present = sorted(((row, value) for row, value in entries if value is not None), key=lambda pair: pair[1])
    if not present:
        return None
    bars = [Bar(str(row.get("name", "")), value, tone="a" if is_model(row) else "e") for row, value in present]
    sizes = {size for row, _ in present if (size := number(row, "bytes")) is not None}
    of_bytes = f", all on the same {format_bytes(sizes.pop())}" if len(sizes) == 1 else ""

    def draw(width: int) -> Markup:
        description = "; ".join(f"{bar.label}: {bar.value:.3f}" for bar in bars)
        return bar_chart(bars, "Bits per byte of held-out text", description, width, lambda value: f"{value:.3f}")

    caption = join(
        tag("strong", "Bits per byte of held-out text"), tag("span", f"{of_bytes}; lower is better", class_="soft")
    )
    return chart(caption, draw)


def _questions(scores: Row) -> Markup | None:
    entries = rows(scores, "questions")
    figures = [
        _answers(entries, "exact_match", "Questions answered word for word"),
        _answers(entries, "f1", "Words shared with the right answer (F1)"),
    ]
    return join(*figures) if any(figures) else None


def _answers(entries: Sequence[Row], measure: str, title: str) -> Markup | None:
    bars = [
        Bar(
            _question_label(row),
            value,
            number(row, measure, "low"),
            number(row, measure, "high"),
            tone=_TONES.get(str(row.get("mode")), "d"),
        )
        for row in entries
        if (value := number(row, measure, "value")) is not None
    ]
    if not bars:
        return None

    def draw(width: int) -> Markup:
        description = "; ".join(f"{bar.label}: {_with_interval(bar.value, bar.low, bar.high)}" for bar in bars)
        return bar_chart(bars, title, description, width, format_percent, highest=1.0)

    modes = [mode for mode in _TONES if any(row.get("mode") == mode for row in entries)]
    return chart(tag("strong", title), draw, [(_TONES[mode], mode) for mode in modes])


def _question_label(row: Row) -> str:
    """What was asked, of which model, with what at hand, how often."""
    named = [str(row[key]) for key in ("name", "model", "mode") if row.get(key)]
    count = number(row, "n")
    return " · ".join([*named, f"{format_count(count)} questions"] if count is not None else named)


def _comparisons(scores: Row) -> Markup | None:
    entries = rows(scores, "comparisons")
    if not entries:
        return None
    body = [
        (
            str(row.get("name", "")),
            shown(number(row, "difference"), _signed_percent),
            _interval(row, _signed_percent),
            shown(number(row, "p_value"), lambda p: "< 0.001" if p < 0.001 else f"{p:.3f}"),
        )
        for row in entries
    ]
    note = "Each question is compared with itself under the other condition: sharper than comparing averages."
    headers = ("comparison", "difference", "95 % interval", "p")
    return join(tag("h3", "Paired tests"), tag("p", note, class_="fine"), table(headers, body, numbers=(1, 2, 3)))


def _calculator(scores: Row) -> Markup | None:
    calculator = scores.get("calculator")
    if not isinstance(calculator, dict) or (accuracy := number(calculator, "accuracy", "value")) is None:
        return None
    count = number(calculator, "n")
    asked = f"arithmetic · {format_count(count)} questions" if count is not None else "arithmetic"
    low, high = number(calculator, "accuracy", "low"), number(calculator, "accuracy", "high")

    def draw(width: int) -> Markup:
        description = f"{asked}: {_with_interval(accuracy, low, high)}"
        return bar_chart(
            [Bar(asked, accuracy, low, high, "d")], "Calculator", description, width, format_percent, highest=1.0
        )

    return chart(tag("strong", "Sums solved by calling the calculator"), draw)


def _interval(row: Row, written: Any) -> str:
    low, high = number(row, "low"), number(row, "high")
    return "–" if low is None or high is None else f"{written(low)} … {written(high)}"


def _with_interval(value: float, low: float | None, high: float | None) -> str:
    between = f" ({format_percent(low)} to {format_percent(high)})" if low is not None and high is not None else ""
    return format_percent(value) + between


def _signed_percent(value: float) -> str:
    return f"{100 * value:+.1f} %".replace("-", "−")
