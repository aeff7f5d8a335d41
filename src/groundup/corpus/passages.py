"""Passages that a question can be asked about: documented functions and classes, or paragraphs of prose."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from groundup.corpus.definitions import find_definitions
from groundup.corpus.sources import Kind

# Shorter paragraphs are joined with the next, longer ones are cut: 1,200 characters are about 300 tokens.
MIN_PASSAGE_CHARS = 200
MAX_PASSAGE_CHARS = 1200


@dataclass(frozen=True)
class Passage:
    """name: qualified, `json.dumps`, '' for text. signature: as written, `(obj, *, indent=None)`; a class's bases."""

    kind: Literal["function", "class", "text"]
    name: str
    signature: str
    text: str


def find_passages(text: str, kind: Kind, path: str) -> list[Passage]:
    """What a question can be asked about in a document. Raises SyntaxError for Python that does not parse."""
    if kind == "text":
        return text_passages(text)
    module = _module_name(path)
    return [
        Passage(definition.kind, f"{module}.{definition.name}", definition.signature, definition.docstring)
        for definition in find_definitions(text)
    ]


def text_passages(text: str) -> list[Passage]:
    """Paragraphs of prose: blocks between blank lines, or lines where the text has no blank line."""
    blocks = _BLANK_LINE.split(text.strip()) if "\n\n" in text.strip() else text.strip().split("\n")
    passages: list[str] = []
    gathered = ""
    for block in blocks:
        gathered = f"{gathered}\n\n{block.strip(chr(10))}" if gathered else block.strip("\n")
        if len(gathered) >= MIN_PASSAGE_CHARS:
            passages.extend(_cut_at_sentences(gathered))
            gathered = ""
    if len(gathered) >= MIN_PASSAGE_CHARS // 2:
        passages.append(gathered)
    return [Passage("text", "", "", passage) for passage in passages]


_BLANK_LINE = re.compile(r"\n\s*\n")
_SENTENCE_ENDS = (". ", "! ", "? ", '." ', '!" ', '?" ', "\n")


def _module_name(path: str) -> str:
    """`json/decoder.py` → `json.decoder`, `json/__init__.py` → `json`."""
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def _cut_at_sentences(text: str) -> Iterator[str]:
    """Pieces of at most MAX_PASSAGE_CHARS that end where a sentence or a line does, if there is such a place."""
    while len(text) > MAX_PASSAGE_CHARS:
        found = [(text.rfind(sign, MIN_PASSAGE_CHARS, MAX_PASSAGE_CHARS), sign) for sign in _SENTENCE_ENDS]
        end = max((position + len(sign) for position, sign in found if position >= 0), default=MAX_PASSAGE_CHARS)
        yield text[:end].strip()
        text = text[end:]
    if text.strip():
        yield text.strip()
