"""The preview shows each token once, as what it is, and lets no text command the terminal."""

import io
import re
from typing import Any

from rich.console import Console

from groundup.tokens.chat import render
from groundup.tokens.preview import show
from groundup.tokens.tokenizer import Tokenizer

MESSAGES: list[dict[str, Any]] = [
    {"role": "document", "content": "Seven."},
    {"role": "user", "content": "How much?"},
    {"role": "assistant", "content": "Seven."},
]


def shown(tokenizer: Tokenizer, messages: list[dict[str, Any]], **options: Any) -> str:
    stream = io.StringIO()
    show(Console(file=stream, width=300, **options), tokenizer, render(tokenizer, messages))
    return stream.getvalue()


def turn(tokenizer: Tokenizer, role: str) -> str:
    """The line of a role in the preview without colours."""
    (line,) = (line for line in shown(tokenizer, MESSAGES).splitlines() if line.startswith(role))
    return line.removeprefix(role).strip()


def in_brackets(tokenizer: Tokenizer, text: str, brackets: str) -> str:
    pieces = (tokenizer.decode([index]).replace(" ", "·") for index in tokenizer.encode(text))
    return "".join(f"{brackets[0]}{piece}{brackets[1]}" for piece in pieces)


def test_without_colours_brackets_tell_the_kinds_apart(tokenizer: Tokenizer) -> None:
    assert turn(tokenizer, "begin") == "(<|begin_of_text|>)"
    assert turn(tokenizer, "document") == f"(<|document|>){in_brackets(tokenizer, 'Seven.', '{}')}(<|end|>)"
    assert turn(tokenizer, "user") == f"(<|user|>){in_brackets(tokenizer, 'How much?', '()')}(<|end|>)"
    assert turn(tokenizer, "assistant") == f"(<|assistant|>){in_brackets(tokenizer, 'Seven.', '[]')}[<|end|>]"


def test_sixteen_colours_keep_the_kinds_apart(tokenizer: Tokenizer) -> None:
    output = shown(tokenizer, MESSAGES, force_terminal=True, color_system="standard")
    # What is drawn: an escape sequence with the style, text, and a reset.
    drawn = re.findall(r"\x1b\[([\d;]+)m([^\x1b]+)\x1b\[0m", output)
    style_of = {text.strip(): style.split(";")[-1] for style, text in drawn if text.startswith(" ")}
    legend = [style_of[kind] for kind in ("trained on", "only read", "only read, untrusted")]
    assert len(set(legend)) == 3
    turns = output.splitlines()[2:]
    trained = [line for line in turns if re.search(rf"\x1b\[[\d;]*{legend[0]}m", line)]
    untrusted = [line for line in turns if re.search(rf"\x1b\[[\d;]*{legend[2]}m", line)]
    assert ["assistant" in line for line in trained] == [True]
    assert ["document" in line for line in untrusted] == [True]
    plain = re.sub(r"\x1b\[[\d;]*m", "", output)
    assert "<|document|>Seven.<|end|>" in plain  # no brackets beside colours


def test_the_counts_are_those_of_the_tokens(tokenizer: Tokenizer) -> None:
    rendered = render(tokenizer, MESSAGES)
    last = shown(tokenizer, MESSAGES).splitlines()[-1]
    seven = len(tokenizer.encode("Seven."))
    assert last.startswith(f"{len(rendered.ids)} tokens, {seven + 1} trained on (")
    assert last.endswith(f"1 × <|end|>), {seven} untrusted")


def test_a_conversation_that_teaches_nothing_is_called_out(tokenizer: Tokenizer) -> None:
    assert "nothing is learned from this conversation" in shown(tokenizer, MESSAGES[:2])


def test_no_text_commands_the_terminal(tokenizer: Tokenizer) -> None:
    hostile = [{"role": "document", "content": "\x1b[2J\x07\r\u202e\x9b31m [bold]x[/bold] :smile:"}]
    output = shown(tokenizer, hostile)
    assert not set(output) & set("\x1b\x07\r\u202e\x9b")
    text = re.sub(r"[{}]", "", output)
    assert r"\x1b[2J\x07\r" in text and "[bold]x[/bold]·:smile:" in text


def test_half_a_character_shows_as_its_bytes(tokenizer: Tokenizer) -> None:
    assert r"{\xf0}{\x9f}{\xa6}{\x9a}" in shown(tokenizer, [{"role": "document", "content": "🦚"}])


def test_line_breaks_stay_visible(tokenizer: Tokenizer) -> None:
    lines = [line.strip() for line in shown(tokenizer, [{"role": "document", "content": "a\nb"}]).splitlines()]
    assert "document  (<|document|>){a}{↵" in lines and "}{b}(<|end|>)" in lines
