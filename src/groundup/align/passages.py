"""A passage as a conversation shows and quotes it: a first line with the name, paragraphs unwrapped, sentences.

Answers are literal quotes of what is shown, so showing and quoting live together: every sentence that `Passage` offers
stands in its text letter for letter.
"""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

# A quote longer than this is hard to reproduce for a small model and leaves little of the context for documents.
MAX_QUOTE_CHARACTERS = 200
MIN_QUOTE_CHARACTERS = 12
MAX_HEAD_CHARACTERS = 240

_SENTENCE_END = re.compile(r"(?<=[.!?])([\"')\]]*)[ \t]+(?=[\"'(`*]*[A-Z]|[\"'`]\w)|\n+")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|cf|approx|resp|Mr|Mrs|Ms|Dr|St|No|[A-Z])\.)$")


@dataclass(frozen=True)
class Passage:
    """One row of passages.parquet; `kind` is 'function', 'class' or 'text'."""

    id: str
    kind: str
    name: str
    signature: str
    text: str
    group: str

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Passage":
        """Raises KeyError where a column is missing."""
        return cls(row["id"], row["kind"], row["name"], row["signature"], row["text"], row["group"])

    @property
    def is_text(self) -> bool:
        return self.kind == "text"

    @property
    def is_public(self) -> bool:
        """Whether no part of the name is private, as `_pydecimal` and `_reset` are and `__init__` is not."""
        return not re.search(r"(?:^|\.)_(?!_\w+__(?:\.|$))", self.name)

    @cached_property
    def head(self) -> str:
        """`json.dumps(obj, *, indent=None)`, `class json.JSONEncoder(object)`, or '' for text."""
        if self.is_text:
            return ""
        call = self.signature if self.signature.startswith(self.name) else self.name + self.signature
        return f"class {call}" if self.kind == "class" else call

    @cached_property
    def body(self) -> str:
        """The text with each paragraph in one line."""
        return unwrap(self.text)

    @cached_property
    def summary(self) -> str:
        """The first sentence, or '' if it is no sentence that could be quoted."""
        sentences = split_sentences(self.body)
        return sentences[0] if sentences and is_quotable(sentences[0]) else ""

    def shown(self, limit: int) -> str:
        """The document as given to the model: head and body, cut at the end of a sentence or line within `limit`.

        The first sentence is kept whatever the limit.
        """
        start = f"{self.head}\n" if self.head else ""
        if len(start) + len(self.body) <= limit:
            return start + self.body
        return start + _cut(self.body, max(limit - len(start), len(self.summary)))


def unwrap(text: str) -> str:
    """Indentation removed and the lines of each prose paragraph joined, so that a sentence stands on one line.

    Examples, lists and tables keep their lines.
    """
    blocks = re.split(r"\n[ \t]*\n", inspect.cleandoc(text))
    return "\n".join(_unwrap_block(block) for block in blocks if block.strip()).strip()


def split_sentences(text: str) -> list[str]:
    """The sentences of unwrapped text, in order; a line end always ends one."""
    sentences: list[str] = []
    start = 0
    for match in _SENTENCE_END.finditer(text):
        is_line_end = match[1] is None
        end = match.start() if is_line_end else match.end(1)
        if is_line_end or not _ABBREVIATION.search(text[start:end]):
            sentences.append(text[start:end].strip())
            start = match.end()
    return [sentence for sentence in [*sentences, text[start:].strip()] if sentence]


def is_quotable(sentence: str) -> bool:
    """Whether a sentence is prose of a fit length: no code, no heading, no table."""
    return (
        MIN_QUOTE_CHARACTERS <= len(sentence) <= MAX_QUOTE_CHARACTERS
        and sentence.count(" ") >= 2
        and sentence[0].isalpha()
        and not sentence.endswith((":", ",", "("))
        and not re.search(r">>>|<==>|--\s|::|  |->|={2,}|-{3,}|\bXXX\b|\bTODO\b|\bFIXME\b", sentence)
    )


def _unwrap_block(block: str) -> str:
    lines = block.split("\n")
    is_prose = not any(line[:1] in " \t>*-|+#.:=0123456789" for line in lines)
    return " ".join(line.strip() for line in lines) if is_prose else "\n".join(line.rstrip() for line in lines)


def _cut(text: str, limit: int) -> str:
    """The longest beginning within `limit` characters that ends with a sentence or a line, else with a word."""
    if len(text) <= limit:
        return text
    ends = [match.start() for match in re.finditer(r"(?<=[.!?])\s|\n", text[: limit + 1])]
    words = [match.start() for match in re.finditer(r"\s", text[: limit + 1])]
    end = ends[-1] if ends else words[-1] if words else limit
    return text[:end].rstrip()
