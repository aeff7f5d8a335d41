"""The chapter on evaluation: held-out text, questions, arithmetic."""

from collections.abc import Callable, Sequence

from markupsafe import Markup

from groundup.record.charts import Bar, bar_chart
from groundup.record.markup import join, tag
from groundup.record.page import Section, chart, format_bytes, format_count, format_percent, maybe, shown, table
from groundup.record.run_folder import Row, RunFolder, number, rows

_TONES = {"with passage": "a", "closed book": "c", "unanswerable": "d"}


def evaluation_section(run: RunFolder) -> Section | None:
    """How good the model is, beside things that are not models.

    Reads of scores.json: heldout: {bytes, of_bytes}; bits_per_byte: [{name, value, bytes, how}]; hidden_text: [{name,
    value, unigram_entropy, targets, how}]; pseudo_bits_per_byte: [{name, value, low, high, how}]; questions: [{model,
    mode, n, exact_match: {value, low, high}, f1: {…}, refused: {…}}]; kinds: the same with kind; comparisons: [{name,
    difference, low, high, p_value, detectable}]; calculator: {n, accuracy: {…}}.
    """
    scores = run.stage("evaluate").scores
    parts = [_hidden_text(scores), _bits_per_byte(scores), _pseudo_bits_per_byte(scores), _questions(scores)]
    parts += [_comparisons(scores), _calculator(scores), _kinds(scores)]
    if not any(parts):
        return None
    return Section(
        "Evaluation",
        "On text and questions that were kept out of training. Whiskers are 95 % intervals: where two of them overlap "
        "widely, do not read a difference into the bars.",
        *parts,
    )


def is_model(entry: Row) -> bool:
    """Whether a bits-per-byte entry is a model of ours (`model`, `chat model`), no compressor or table of counts."""
    return str(entry.get("name", "")).endswith("model")


def _bits_per_byte(scores: Row) -> Markup | None:
    entries = [(row, number(row, "value")) for row in rows(scores, "bits_per_byte")]
    present = sorted(((row, value) for row, value in entries if value is not None), key=lambda pair: pair[1])
    if not present:
        return None
    bars = [Bar(str(row.get("name", "")), value, tone="a" if is_model(row) else "e") for row, value in present]
    sizes = {size for row, _ in present if (size := number(row, "bytes")) is not None}
    of_bytes = f", all on the same {format_bytes(sizes.pop())}{_sampled(scores)}" if len(sizes) == 1 else ""

    def draw(width: int) -> Markup:
        description = "; ".join(f"{bar.label}: {bar.value:.3f}" for bar in bars)
        return bar_chart(bars, "Bits per byte of held-out text", description, width, lambda value: f"{value:.3f}")

    title = join(
        tag("strong", "Bits per byte of held-out text"), tag("span", f"{of_bytes}; lower is better", class_="soft")
    )
    told = [join(tag("strong", str(row.get("name", ""))), f": {row['how']}") for row, _ in present if row.get("how")]
    return join(chart(title, draw), tag("p", join(*told, separator=" · "), class_="fine") if told else None)


def _sampled(scores: Row) -> str:
    """Of how much text the scored bytes are a sample, where they are not all of it."""
    scored, held_out = (number(scores, "heldout", key) for key in ("bytes", "of_bytes"))
    if scored is None or held_out is None or scored == held_out:
        return ""
    return f", a sample of the {format_bytes(held_out)} held out"


def _pseudo_bits_per_byte(scores: Row) -> Markup | None:
    """Of models that read both ways; apart from the others, which had not seen what comes after."""
    entries = [(row, number(row, "value")) for row in rows(scores, "pseudo_bits_per_byte")]
    bars = [
        Bar(str(row.get("name", "")), value, number(row, "low"), number(row, "high"))
        for row, value in entries
        if value is not None
    ]
    if not bars:
        return None

    def draw(width: int) -> Markup:
        description = "; ".join(f"{bar.label}: {bar.value:.3f}" for bar in bars)
        return bar_chart(bars, "Pseudo bits per byte", description, width, lambda value: f"{value:.3f}")

    told = [str(row["how"]) for row, _ in entries if row.get("how")]
    title = join(
        tag("strong", "Pseudo bits per byte of held-out text"),
        tag("span", ", each token guessed from both sides: not to be compared with the others", class_="soft"),
    )
    return join(chart(title, draw), tag("p", " · ".join(told), class_="fine") if told else None)


def _hidden_text(scores: Row) -> Markup | None:
    """What a model that does not continue text makes of what is hidden from it."""
    entries = rows(scores, "hidden_text")
    if not entries:
        return None
    body = [
        (
            str(row.get("name", "")),
            shown(number(row, "value"), lambda value: f"{value:.3f}"),
            shown(number(row, "unigram_entropy"), lambda value: f"{value:.3f}"),
            shown(number(row, "targets"), format_count),
            str(row.get("how", "")),
        )
        for row in entries
    ]
    headers = ("model", "nats per guessed token", "from their frequencies alone", "guessed tokens", "which")
    return join(tag("h3", "Hidden text"), table(headers, body, numbers=(1, 2, 3)))


def _questions(scores: Row) -> Markup | None:
    entries = rows(scores, "questions")
    figures = [
        _answers(entries, "exact_match", "Questions answered right", "word for word; unanswerable ones by saying so"),
        _answers(entries, "f1", "Words shared with the right answer", "F1, so a good paraphrase counts in part"),
    ]
    return join(*figures) if any(figures) else None


def _answers(entries: Sequence[Row], measure: str, title: str, remark: str) -> Markup | None:
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

    return chart(join(tag("strong", title), tag("span", f", {remark}", class_="soft")), draw)


def _question_label(row: Row) -> str:
    """With what at hand, and how many were asked."""
    count = maybe(number(row, "n"), lambda n: f" · {format_count(n)} asked")
    refused = maybe(number(row, "refused", "value"), format_percent)
    told = f" · refused {refused}" if refused and row.get("mode") != "unanswerable" else ""
    return f"{row.get('mode', '')}{count or ''}{told}"


def _kinds(scores: Row) -> Markup | None:
    """What kind of question it finds hard."""
    entries = rows(scores, "kinds")
    if not entries:
        return None
    body = [
        (
            str(row.get("kind", "")),
            str(row.get("mode", "")),
            shown(number(row, "n"), format_count),
            shown(number(row, "exact_match", "value"), format_percent),
            _interval(row.get("exact_match"), format_percent),
            shown(number(row, "f1", "value"), format_percent),
        )
        for row in entries
    ]
    headers = ("kind", "asked", "questions", "right", "95 % interval", "F1")
    return join(tag("h3", "By kind of question"), table(headers, body, numbers=(2, 3, 4, 5)))


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
            shown(number(row, "detectable"), lambda effect: f"± {format_percent(effect)}"),
        )
        for row in entries
    ]
    note = (
        "Each question is compared with itself under the other condition, which is sharper than comparing averages. "
        "Detectable is the smallest true difference that so many questions would show four times in five."
    )
    headers = ("comparison", "difference", "95 % interval", "p", "detectable")
    return join(tag("h3", "Paired tests"), tag("p", note, class_="fine"), table(headers, body, numbers=(1, 2, 3, 4)))


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


def _interval(row: object, written: Callable[[float], str]) -> str:
    low, high = (number(row, end) for end in ("low", "high")) if isinstance(row, dict) else (None, None)
    return "–" if low is None or high is None else f"{written(low)} … {written(high)}"


def _with_interval(value: float, low: float | None, high: float | None) -> str:
    between = f" ({format_percent(low)} to {format_percent(high)})" if low is not None and high is not None else ""
    return format_percent(value) + between


def _signed_percent(value: float) -> str:
    return f"{100 * value:+.1f} %".replace("-", "−")
