"""Chapters on what the model was made from: the corpus and the tokenizer."""

from markupsafe import Markup

from groundup.record.markup import join, tag
from groundup.record.page import (
    Section,
    format_bytes,
    format_count,
    format_percent,
    format_scaled,
    maybe,
    shown,
    strip,
    table,
    tile,
    tiles,
)
from groundup.record.run_folder import Row, RunFolder, last_number, number, rows

_EXAMPLE_LETTERS = 280


def corpus_section(run: RunFolder) -> Section | None:
    """What went in, and what was thrown out and why.

    Reads of the corpus summary: read: {source_bytes, documents, bytes}; splits: {train|heldout: {documents, bytes,
    passages}}; rejected: [{reason, documents, bytes, example: {path, text}}]; cut: {what: count}; quotes: {documents,
    quotes, words}; of timings.jsonl: mb_per_second.
    """
    stage = run.stage("corpus")
    summary = stage.summary
    if not summary:
        return None
    return Section(
        "Corpus",
        "The raw text, what of it was kept, and what was thrown out. Held-out text was never trained on.",
        tiles(
            tile("read", maybe(number(summary, "read", "source_bytes"), format_bytes)),
            tile("documents", maybe(number(summary, "read", "documents"), format_count)),
            tile("kept", maybe(kept(summary, "bytes"), format_bytes), _documents_note(summary)),
            tile("speed", maybe(last_number(stage.timings, "mb_per_second"), lambda rate: f"{rate:.1f} MB/s")),
        ),
        _division(summary),
        _rejected(summary),
        _cuts(summary),
    )


def kept(summary: Row, unit: str) -> float | None:
    """Documents or bytes of both splits together."""
    parts = [number(summary, "splits", split, unit) for split in ("train", "heldout")]
    present = [part for part in parts if part is not None]
    return sum(present) if present else None


def tokenizer_section(run: RunFolder) -> Section | None:
    """The vocabulary, and what it learned.

    Reads of the tokenizer summary: vocab_size, control_tokens, sample_bytes, longest_words: [text]; of the tokens
    summary: splits: {train|heldout: {tokens, bytes_per_token}}.
    """
    summary = run.stage("tokenizer").summary
    if not summary:
        return None
    tokens = run.stage("tokens").summary
    return Section(
        "Tokenizer",
        "Byte-level pair encoding, learned from the corpus. The longer its tokens, the further back the model sees.",
        tiles(
            tile("vocabulary", maybe(number(summary, "vocab_size"), format_count), _vocabulary_note(summary)),
            tile("learned from", maybe(number(summary, "sample_bytes"), format_bytes)),
            tile("train", _scaled(number(tokens, "splits", "train", "tokens")), "tokens"),
            tile("held out", _scaled(number(tokens, "splits", "heldout", "tokens")), _density_note(tokens)),
        ),
        _longest_words(summary),
    )


def _documents_note(summary: Row) -> str | None:
    return maybe(kept(summary, "documents"), lambda count: f"in {format_count(count)} documents")


def _division(summary: Row) -> Markup | None:
    """One bar from all text read to the parts it was divided into."""
    parts = [
        ("a", "train", number(summary, "splits", "train", "bytes"), number(summary, "splits", "train", "documents")),
        (
            "c",
            "held out",
            number(summary, "splits", "heldout", "bytes"),
            number(summary, "splits", "heldout", "documents"),
        ),
        ("b", "thrown out", _rejected_total(summary, "bytes"), _rejected_total(summary, "documents")),
    ]
    named = [
        (tone, f"{name}: {format_bytes(size)}, {shown(documents, format_count)} documents", size)
        for tone, name, size, documents in parts
        if size
    ]
    return strip(named) if named else None


def _rejected_total(summary: Row, key: str) -> float:
    return sum(number(row, key) or 0.0 for row in rows(summary, "rejected"))


def _rejected(summary: Row) -> Markup | None:
    rejected = sorted(rows(summary, "rejected"), key=lambda row: -(number(row, "bytes") or 0.0))
    if not rejected:
        return None
    most = max(number(row, "bytes") or 0.0 for row in rejected) or 1.0
    read = number(summary, "read", "bytes")
    body = [
        (
            join(str(row.get("reason", "")), _share_bar((number(row, "bytes") or 0.0) / most)),
            shown(number(row, "documents"), format_count),
            shown(number(row, "bytes"), format_bytes),
            _share_of(number(row, "bytes"), read),
            _example(row.get("example")),
        )
        for row in rejected
    ]
    headers = ("reason", "documents", "size", "share", "for example")
    return join(tag("h3", "Thrown out, and why"), table(headers, body, numbers=(1, 2, 3)))


def _example(example: object) -> Markup | None:
    """Where it was found, and how it begins."""
    if not isinstance(example, dict):
        return None
    path = example.get("path")
    return tag(
        "div",
        tag("span", str(path), class_="path") if path else None,
        tag("div", _shorten(str(example.get("text") or "")), class_="example mono"),
    )


def _cuts(summary: Row) -> Markup | None:
    """What was taken out of documents that stayed."""
    cut = summary.get("cut")
    counted = [(name, count) for name, count in cut.items() if isinstance(count, int)] if isinstance(cut, dict) else []
    lines = [
        join(str(name).replace("_", " "), ": ", tag("strong", format_count(count))) for name, count in counted if count
    ]
    quotes, words = number(summary, "quotes", "quotes"), number(summary, "quotes", "words")
    if quotes:
        where = shown(number(summary, "quotes", "documents"), format_count)
        told = f" ({shown(words, format_count)} words in {where} documents)"
        lines.append(join("quotes of held-out passages: ", tag("strong", format_count(quotes)), told))
    if not lines:
        return None
    return join(tag("h3", "Cut from what was kept"), tag("p", join(*lines, separator=" · "), class_="fine"))


def _share_bar(share: float) -> Markup:
    return tag("span", class_="share", style=f"width:{100 * share:.1f}%")


def _share_of(part: float | None, whole: float | None) -> str:
    return shown(part / whole if part is not None and whole else None, format_percent)


def _shorten(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _EXAMPLE_LETTERS else f"{flat[:_EXAMPLE_LETTERS]}…"


def _scaled(count: float | None) -> str | None:
    return maybe(count, lambda tokens: format_scaled(tokens, ""))


def _vocabulary_note(summary: Row) -> str:
    control = maybe(number(summary, "control_tokens"), lambda count: f", {format_count(count)} of them for control")
    return f"tokens{control or ''}"


def _density_note(tokens: Row) -> str:
    density = maybe(number(tokens, "splits", "heldout", "bytes_per_token"), lambda value: f", {value:.2f} bytes each")
    return f"tokens{density or ''}"


def _longest_words(summary: Row) -> Markup | None:
    words = summary.get("longest_words")
    if not isinstance(words, list) or not words:
        return None
    chips = join(*(tag("span", str(word)) for word in words), separator=" ")
    return join(tag("h3", "Longest words that became one token"), tag("div", chips, class_="tokens"))
