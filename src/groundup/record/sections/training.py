"""Chapters on training: the curves of pretraining and of the conversations, speed, and samples along the way."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from markupsafe import Markup

from groundup.record.charts import Bar, Series, bar_chart, line_chart
from groundup.record.markup import join, tag
from groundup.record.page import (
    Section,
    chart,
    format_count,
    format_percent,
    format_scaled,
    format_seconds,
    maybe,
    tile,
    tiles,
)
from groundup.record.run_folder import Row, RunFolder, number

_SAMPLES_PER_PROMPT = 5
_SMALL_CHART_HEIGHT = 130
# Of models that read both ways.
PSEUDO = "heldout_sampled_pseudo_bits_per_byte"
# The held-out figures of models that guess hidden text, in nats per guessed token.
HIDDEN = ("heldout_masked_loss", "heldout_span_loss")


def pretrain_section(run: RunFolder) -> Section | None:
    """The loss curve, and how fast the machine went compared with what it can do.

    Reads of the pretrain summary: preset, parameters, steps, tokens, epochs, flops, dtype, and heldout_bits_per_byte or
    objective and its figure of HIDDEN, of a model that reads both ways also PSEUDO and heldout_sampled_tokens; of
    measured.json: train_seconds, tokens_per_second, flops_per_second, peak_flops, utilisation, threads; of
    metrics.jsonl: tokens, bits_per_byte, loss, the held-out figures, learning_rate, grad_norm, expert_load_max; of
    timings.jsonl: tokens_per_second.
    """
    stage = run.stage("pretrain")
    if not stage.summary and not stage.metrics:
        return None
    summary = stage.summary
    return Section(
        "Pretraining",
        _pretrain_intro(summary),
        tiles(
            tile("held out", maybe(number(summary, "heldout_bits_per_byte"), _three_digits), "bits per byte"),
            tile("held out", maybe(number(summary, PSEUDO), _three_digits), _sampled_note(summary)),
            *(tile("held out", maybe(number(summary, name), _three_digits), "nats a guessed token") for name in HIDDEN),
            tile("parameters", maybe(number(summary, "parameters"), _scaled), _preset_note(summary)),
            tile("trained on", maybe(number(summary, "tokens"), _scaled), _steps_note(summary)),
            tile("time", maybe(number(summary, "train_seconds"), format_seconds), _compute_note(summary)),
        ),
        _quality_curve(stage.metrics),
        _small_curves(stage.metrics, stage.timings),
        _speed(summary),
    )


def samples_section(run: RunFolder) -> Section | None:
    """What the model said to the same prompts as it grew. Reads samples.jsonl of pretrain, sft: step, prompt, text."""
    # A text is continued where it ends; an answer begins below its question.
    spoken = [("While it learned the text", "pretrain", ""), ("While it learned to answer", "sft", "\n")]
    parts = [(title, _samples(run.stage(stage).samples, separator)) for title, stage, separator in spoken]
    told = [join(tag("h3", title), lists) for title, lists in parts if lists is not None]
    if not told:
        return None
    return Section(
        "Samples", "The same beginnings and questions, put to the model at several steps of its training.", *told
    )


def _samples(said: Sequence[Row], separator: str) -> Markup | None:
    by_prompt: dict[str, list[Row]] = defaultdict(list)
    for row in said:
        by_prompt[str(row.get("prompt", ""))].append(row)
    lists = (
        tag("ol", *(_sample(row, prompt + separator) for row in _spread(rows, _SAMPLES_PER_PROMPT)), class_="samples")
        for prompt, rows in by_prompt.items()
    )
    return join(*lists) if by_prompt else None


def sft_section(run: RunFolder) -> Section | None:
    """The conversations, and the loss on the assistant's words.

    Reads of the sft summary: conversations, conversation_tokens, trained_tokens, epochs, steps, kinds: {name: count};
    of metrics.jsonl: step, loss, heldout_loss.
    """
    stage = run.stage("sft")
    summary = stage.summary
    if not summary and not stage.metrics:
        return None
    return Section(
        "Conversations",
        "Teaching the model to answer. Only the assistant's own words are trained; all else is context.",
        tiles(
            tile("conversations", maybe(number(summary, "conversations"), format_count)),
            tile("tokens", maybe(number(summary, "conversation_tokens"), _scaled)),
            tile("trained", maybe(number(summary, "trained_tokens"), _scaled), _trained_note(summary)),
            tile("steps", maybe(number(summary, "steps"), format_count), _epochs(summary)),
        ),
        _kinds(summary),
        _curve_figure(
            "Loss on the assistant's words",
            [
                _series(stage.metrics, "step", "loss", "train", "b", is_faint=True),
                _series(stage.metrics, "step", "heldout_loss", "held out", "a"),
            ],
            "steps",
        ),
    )


def _pretrain_intro(summary: Row) -> str:
    if any(number(summary, name) is not None for name in HIDDEN):
        return (
            f"From random weights to a model that guesses hidden text ({summary.get('objective')}). Its loss is that "
            "of each guessed token, in nats: lower is better, for the same tokenizer and the same way of hiding."
        )
    return (
        "From random weights to a model of the text. Bits per byte say how well it guesses the next piece of text: "
        "lower is better, and tokenizers do not matter to it."
    )


def _three_digits(value: float) -> str:
    return f"{value:.3f}"


def _sampled_note(summary: Row) -> str:
    sampled = maybe(number(summary, "heldout_sampled_tokens"), lambda count: f", {format_count(count)} tokens sampled")
    return f"pseudo bits per byte{sampled or ''}"


def _scaled(value: float) -> str:
    return format_scaled(value, "")


def _preset_note(summary: Row) -> str | None:
    preset = summary.get("preset")
    return f"preset {preset}" if preset else None


def _steps_note(summary: Row) -> str:
    steps = maybe(number(summary, "steps"), lambda steps: f"tokens in {format_count(steps)} steps")
    return ", ".join(part for part in (steps or "tokens", _epochs(summary)) if part)


def _epochs(summary: Row) -> str | None:
    return maybe(number(summary, "epochs"), lambda epochs: f"{epochs:.3g} epochs")


def _compute_note(summary: Row) -> str | None:
    return maybe(number(summary, "flops"), lambda flops: f"for {format_scaled(flops, 'FLOP')}")


def _trained_note(summary: Row) -> str | None:
    trained, tokens = number(summary, "trained_tokens"), number(summary, "conversation_tokens")
    return f"tokens, {format_percent(trained / tokens)}" if trained is not None and tokens else None


def _series(metrics: Sequence[Row], x: str, y: str, name: str, tone: str, is_faint: bool = False) -> Series:
    points = [(number(row, x), number(row, y)) for row in metrics]
    return Series(name, [(at, value) for at, value in points if at is not None and value is not None], tone, is_faint)


def _quality_curve(metrics: Sequence[Row]) -> Markup | None:
    """Bits per byte of train and held-out text; the plain loss where a run did not write the former."""
    x = "tokens" if any(number(row, "tokens") is not None for row in metrics) else "step"
    over = "tokens" if x == "tokens" else "steps"
    quality = [
        _series(metrics, x, "bits_per_byte", "train", "b", is_faint=True),
        _series(metrics, x, "heldout_bits_per_byte", "held out", "a"),
    ]
    curves = _curve_figure("Bits per byte", quality, over, log_y=True)
    if not quality[0].points:
        hidden = [series for name in HIDDEN if (series := _series(metrics, x, name, "held out", "a")).points]
        title = "Loss, nats per guessed token" if hidden else "Training loss, nats per token"
        losses = [_series(metrics, x, "loss", "train", "b", is_faint=True), *hidden]
        return join(curves, _curve_figure(title, losses, over, log_y=True))
    return curves


def _curve_figure(title: str, series: Sequence[Series], over: str, log_y: bool = False) -> Markup | None:
    present = [one for one in series if any(y > 0 or not log_y for _, y in one.points)]
    if not present:
        return None
    last = "; ".join(f"{one.name} ends at {one.points[-1][1]:.3f}" for one in present)
    key = [(one.tone, f"{one.name} {one.points[-1][1]:.3f}") for one in present]

    def draw(width: int) -> Markup:
        return line_chart(present, title, f"Over {over}: {last}.", width, log_y=log_y)

    return chart(join(tag("strong", title), tag("span", f" over {over}", class_="soft")), draw, key)


def _small_curves(metrics: Sequence[Row], timings: Sequence[Row]) -> Markup | None:
    """Three little curves beside each other: what to look at when the big one looks odd."""
    choices: list[tuple[str, Series, Callable[[float], str]]] = [
        ("Learning rate", _series(metrics, "step", "learning_rate", "", "c"), lambda value: f"{value:.2g}"),
        ("Gradient norm", _series(metrics, "step", "grad_norm", "", "d"), lambda value: f"{value:g}"),
        ("Busiest expert, in even shares", _series(metrics, "step", "expert_load_max", "", "e"), _plain),
        ("Tokens per second", _series(timings, "step", "tokens_per_second", "", "a"), lambda value: f"{value:,.0f}"),
    ]
    figures = [_small_figure(title, series, written) for title, series, written in choices if len(series.points) > 1]
    return tag("div", *figures, class_="several") if figures else None


def _plain(value: float) -> str:
    return f"{value:.3g}"


def _small_figure(title: str, series: Series, format_y: Callable[[float], str]) -> Markup:
    values = [value for _, value in series.points]
    description = f"Between {format_y(min(values))} and {format_y(max(values))}, {format_y(values[-1])} at the end."
    drawing = line_chart([series], title, description, 240, _SMALL_CHART_HEIGHT, format_y=format_y)
    return tag("figure", tag("figcaption", title), drawing)


def _speed(summary: Row) -> Markup | None:
    """What training reached beside what a matrix product alone reaches on the same machine."""
    reached, peak = number(summary, "flops_per_second"), number(summary, "peak_flops")
    if reached is None or not peak:
        return None
    utilisation = number(summary, "utilisation")
    bars = [
        Bar("training", reached, note=f"· {format_percent(reached / peak if utilisation is None else utilisation)}"),
        Bar(f"peak of a {summary.get('dtype') or ''} matrix product".replace("  ", " "), peak, tone="e"),
    ]

    def draw(width: int) -> Markup:
        description = f"Training reached {_flops_rate(reached)} of {_flops_rate(peak)} measured."
        return bar_chart(bars, "Speed and utilisation", description, width, _flops_rate)

    threads = maybe(number(summary, "threads"), lambda count: f" on {count:.0f} threads")
    rate = maybe(number(summary, "tokens_per_second"), lambda rate: f": {rate:,.0f} tokens per second{threads or ''}")
    return join(tag("h3", "Speed", tag("span", rate, class_="soft")), chart(None, draw))


def _flops_rate(value: float) -> str:
    return format_scaled(value, "FLOP/s")


def _spread(said: Sequence[Row], most: int) -> list[Row]:
    """The first, the last and some between, evenly."""
    if len(said) <= most:
        return list(said)
    return [said[round(index * (len(said) - 1) / (most - 1))] for index in range(most)]


def _sample(row: Row, prompt: str) -> Markup:
    step = maybe(number(row, "step"), lambda step: f"step {format_count(step)}")
    return tag("li", tag("span", step, class_="step"), tag("pre", tag("b", prompt), str(row.get("text", ""))))


def _kinds(summary: Row) -> Markup | None:
    kinds = summary.get("kinds")
    if not isinstance(kinds, dict):
        return None
    counted = [(str(name), count) for name, count in kinds.items() if isinstance(count, int | float)]
    if not counted:
        return None
    bars = [Bar(name, count, tone="c") for name, count in sorted(counted, key=lambda pair: -pair[1])]

    def draw(width: int) -> Markup:
        description = "; ".join(f"{bar.label}: {format_count(bar.value)}" for bar in bars)
        return bar_chart(bars, "Conversations by kind", description, width, format_count)

    return join(tag("h3", "Kinds of conversation"), chart(None, draw))
