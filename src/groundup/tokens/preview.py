"""A conversation in colour, token by token: what is trained on, what is only read, and what nobody should trust.

Look at this before training: a wrong mask teaches the wrong words while the loss goes down all the same. Where there
are no colours, each kind of token has its own brackets instead.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from groundup.tokens.chat import Rendered
from groundup.tokens.template import TURN_TOKENS
from groundup.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class _Kind:
    """How one kind of token is drawn: in brackets, or in two styles that alternate to tell neighbours apart."""

    meaning: str
    opening: str
    closing: str
    styles: tuple[str, str]


# Chosen so that the three kinds keep apart when a terminal of sixteen colours rounds them.
_TRAINED = _Kind("trained on", "[", "]", ("#101010 on #2da44e", "#101010 on #62e07c"))
_READ = _Kind("only read", "(", ")", ("#ffffff on #202428", "#ffffff on #4a4f58"))
_UNTRUSTED = _Kind("only read, untrusted", "{", "}", ("#ffffff on #a01515", "#ffffff on #d93a3a"))


def show(console: Console, tokenizer: Tokenizer, rendered: Rendered) -> None:
    """Print the conversation turn by turn, with a legend above and the counts below."""
    in_colour = console.color_system is not None and not console.no_color
    legend = Text("  ").join(_drawn(f" {kind.meaning} ", kind, 0, in_colour) for kind in (_TRAINED, _READ, _UNTRUSTED))
    legend.append("  · blank  ↵ line break\n")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for turn in _turns(tokenizer, rendered):
        tokens = (_token(tokenizer, rendered, place, in_colour) for place in turn)
        table.add_row(rendered.roles[turn.start], Text.assemble(*tokens))
    console.print(legend, table, Text(f"\n{_counts(tokenizer, rendered)}"))


def _turns(tokenizer: Tokenizer, rendered: Rendered) -> Iterator[range]:
    """The places of each turn's tokens; `<|begin_of_text|>` stands alone."""
    openings = {tokenizer.control[token] for token in TURN_TOKENS.values()}
    starts = [place for place, index in enumerate(rendered.ids) if place == 0 or index in openings]
    for start, stop in itertools.pairwise([*starts, len(rendered.ids)]):
        yield range(start, stop)


def _token(tokenizer: Tokenizer, rendered: Rendered, place: int, in_colour: bool) -> Text:
    index = rendered.ids[place]
    kind = _TRAINED if rendered.trained[place] else _READ if rendered.trusted[place] else _UNTRUSTED
    name = tokenizer.control_name(index)
    if name is not None:
        drawn = _drawn(name, kind, place, in_colour)
        drawn.stylize("bold italic")
        return drawn
    return _drawn(_visible(tokenizer.piece(index)), kind, place, in_colour)


def _drawn(text: str, kind: _Kind, place: int, in_colour: bool) -> Text:
    if in_colour:
        return Text(text, kind.styles[place % 2])
    return Text(f"{kind.opening}{text}{kind.closing}")


def _visible(piece: bytes) -> str:
    """A token's bytes so that every one can be seen and none can command the terminal."""
    # A part of a character shows as its bytes.
    text = piece.decode(errors="backslashreplace")
    return "".join(_visible_character(character) for character in text)


def _visible_character(character: str) -> str:
    if character == " ":
        return "·"
    if character == "\n":
        return "↵\n"
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def _counts(tokenizer: Tokenizer, rendered: Rendered) -> str:
    total, trained, untrusted = len(rendered.ids), sum(rendered.trained), rendered.trusted.count(False)
    if trained == 0:
        return f"{total} tokens, none trained on: nothing is learned from this conversation; {untrusted} untrusted"
    stops = sum(mask for index, mask in zip(rendered.ids, rendered.trained, strict=True) if index == tokenizer.end_id)
    share = f"{100 * trained / total:.0f} %, {stops} × <|end|>"
    return f"{total} tokens, {trained} trained on ({share}), {untrusted} untrusted"
