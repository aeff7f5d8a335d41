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
from groundup.record.run_folder import Row, RunFolder, number, rows

_EXAMPLE_LETTERS = 280
_EXAMPLES_SHOWN = 6


def corpus_section(run: RunFolder) -> Section | None:
    """What went in, and what was thrown out and why.

    Reads of the corpus summary: files, bytes_read, documents, kept, kept_bytes, megabytes_per_second,
    train|heldout: {documents, bytes}, rejected: [{reason, documents, bytes, example}].
    """
    summary = run.stage("corpus").summary
    if not summary:
        return None
    return Section(
        "Corpus",
        "The raw text, what of it was kept, and what was thrown out. Held-out text was never trained on.",
        tiles(
            tile("read", maybe(number(summary, "bytes_read"), format_bytes), _files_note(summary)),
            tile("documents", maybe(number(summary, "documents"), format_count)),
            tile("kept", maybe(number(summary, "kept"), format_count), _kept_note(summary)),
            tile("speed", maybe(number(summary, "megabytes_per_second"), lambda rate: f"{rate:.1f} MB/s")),
        ),
        _division(summary),
        _rejected(summary),
    )


def tokenizer_section(run: RunFolder) -> Section | None:
    """The vocabulary, and how it cuts text.

    Reads of the tokenizer summary: vocab_size, bytes_per_token, examples: each {text, tokens: [text]} or a list of
    token texts; of the tokens summary: train|heldout: {tokens}.
    """
    summary = run.stage("tokenizer").summary
    if not summary:
        return None
    tokens = run.stage("tokens").summary
    return Section(
        "Tokenizer",
        "Byte-level pair encoding, trained on the corpus itself. Longer tokens let the model see further back.",
        tiles(
            tile("vocabulary", maybe(number(summary, "vocab_size"), format_count), "tokens, control tokens included"),
            tile("bytes per token", maybe(number(summary, "bytes_per_token"), lambda value: f"{value:.2f}")),
            tile("train", _tokens(tokens, "train"), "tokens"),
            tile("held out", _tokens(tokens, "heldout"), "tokens"),
        ),
        _token_examples(summary),
    )


def _files_note(summary: Row) -> str | None:
    return maybe(number(summary, "files"), lambda files: f"in {format_count(files)} files")


def _kept_note(summary: Row) -> str | None:
    return maybe(number(summary, "kept_bytes"), lambda size: f"documents, {format_bytes(size)}")


def _division(summary: Row) -> Markup | None:
    """One bar from all text read to the parts it was divided into."""
    parts = [
        ("a", "train", number(summary, "train", "bytes"), number(summary, "train", "documents")),
        ("c", "held out", number(summary, "heldout", "bytes"), number(summary, "heldout", "documents")),
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
    read = number(summary, "bytes_read")
    body = [
        (
            join(str(row.get("reason", "")), _share_bar((number(row, "bytes") or 0.0) / most)),
            shown(number(row, "documents"), format_count),
            shown(number(row, "bytes"), format_bytes),
            _share_of(number(row, "bytes"), read),
            tag("div", _shorten(str(row.get("example") or "")), class_="example mono"),
        )
        for row in rejected
    ]
    headers = ("reason", "documents", "size", "share", "for example")
    return join(tag("h3", "Thrown out, and why"), table(headers, body, numbers=(1, 2, 3)))


def _share_bar(share: float) -> Markup:
    return tag("span", class_="share", style=f"width:{100 * share:.1f}%")


def _share_of(part: float | None, whole: float | None) -> str:
    return shown(part / whole if part is not None and whole else None, format_percent)


def _shorten(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _EXAMPLE_LETTERS else f"{flat[:_EXAMPLE_LETTERS]}…"


def _tokens(summary: Row, part: str) -> str | None:
    return maybe(number(summary, part, "tokens"), lambda count: format_scaled(count, "").strip())


def _token_examples(summary: Row) -> Markup | None:
    examples = summary.get("examples")
    if not isinstance(examples, list) or not examples:
        return None
    cut = [example.get("tokens") if isinstance(example, dict) else example for example in examples[:_EXAMPLES_SHOWN]]
    lines = [
        tag("div", *(tag("span", str(token)) for token in tokens), class_="tokens")
        for tokens in cut
        if isinstance(tokens, list)
    ]
    return join(tag("h3", "How text is cut"), *lines) if lines else None
