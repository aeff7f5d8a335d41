"""Text as it should be learned: normalised, without licence headers and without generated tables.

Every cut is counted, so that the summary can say what went. Nothing here judges a document; that is `filters.py`.
"""

import re
import unicodedata
from dataclasses import dataclass

# Nobody writes so many lines of literals by hand; shorter tables (`__all__`, options, tests) are worth reading.
TABLE_LINES = 200
# What is left of a table, so that the reader still sees its shape.
TABLE_LINES_KEPT = 4


@dataclass(frozen=True)
class Extract:
    """The text that is left, and how many lines and characters of what kind were cut."""

    text: str
    licence_lines: int = 0
    licence_chars: int = 0
    table_lines: int = 0
    table_chars: int = 0


def extract_python(text: str) -> Extract:
    """Python source, normalised, without licence comments and the inside of generated tables."""
    text = normalise(text)
    unlicensed, licence_lines = _strip_licence_comments(text)
    shortened, table_lines = _shorten_tables(unlicensed)
    return Extract(
        _as_file(shortened), licence_lines, len(text) - len(unlicensed), table_lines, len(unlicensed) - len(shortened)
    )


def extract_text(text: str) -> Extract:
    """Prose, normalised, without the licence that Project Gutenberg puts before and after a book."""
    text = normalise(text)
    unlicensed = _strip_gutenberg_licence(text)
    return Extract(_as_file(unlicensed), text.count("\n") - unlicensed.count("\n"), len(text) - len(unlicensed))


def normalise(text: str) -> str:
    """One spelling for what looks the same: NFC, newlines, no trailing spaces, no invisible characters."""
    if not text.isascii():
        text = _replace_lone_surrogates(text)
        text = unicodedata.normalize("NFC", text)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    # Three times faster than the expression, but for ASCII alone.
    text = text.translate(_INVISIBLE_IN_ASCII) if text.isascii() else _INVISIBLE.sub("", text)
    # Eight times faster than a regular expression.
    text = "\n".join(map(str.rstrip, text.split("\n")))
    return _BLANK_LINES.sub("\n\n\n", text) if "\n\n\n\n" in text else text


def _as_file(text: str) -> str:
    text = text.strip("\n")
    return text + "\n" if text else ""


# Control characters but tab and newline, soft hyphen, zero-width space, byte order mark, noncharacters.
# Zero-width joiners stay: scripts and emoji need them.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b\ufeff\ufffe\uffff]")
_INVISIBLE_IN_ASCII = {code: None for code in range(0x80) if _INVISIBLE.match(chr(code))}
_BLANK_LINES = re.compile(r"\n{4,}")


def _replace_lone_surrogates(text: str) -> str:
    """JSON may hold half of a surrogate pair, which no UTF-8 file can."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


# Comments at the left margin; those inside code speak about the code. The lookbehind comes after the `#` because
# the search for a pattern that starts with a plain character is many times faster.
_COMMENT_BLOCK = re.compile(r"#(?<![^\n]#).*\n(?:#.*\n)*")
_LICENCE_WORDS = ("copyright", "licens", "licenc", "(c)", "rights reserved", "permission", "warrant")
_LICENCE_SIGN = re.compile(
    r"copyright\s*(?:\(c\)|©|by\b|\d{4}|holders?\b|notice\b|owners?\b)|\(c\)\s*(?:copyright|\d{4})"
    r"|all rights reserved|licen[sc]ed? (?:to|under)\b|SPDX-License|permission (?:is hereby granted|to use, copy)"
    r"|redistributions? (?:of|and use)\b|without warrant|disclaims? all warrant|as is\W+and\b"
    r"|in no event shall|see the licen[sc]e|\blicen[sc]e(?:d|s)?\b.{0,40}\b(?:file|agreement|terms|version|details)\b"
    r"|warranties\b|merchantability|written permission|this permission notice",
    re.IGNORECASE,
)
# Every sign holds one of these. Those that are no licence words say nothing in a program without a licence word.
_SIGN_WORDS = (*_LICENCE_WORDS, "redistribution", "as is", "in no event", "merchantability")


def _strip_licence_comments(text: str) -> tuple[str, int]:
    """Cut the licence paragraphs of comment blocks; returns the text and the number of lines cut."""
    if not any(_shows_licence(block) for block in _COMMENT_BLOCK.findall(text)):
        return text, 0
    lowered = text.lower()
    if not any(word in lowered for word in _LICENCE_WORDS):
        return text, 0
    cut_lines = 0

    def keep_other_paragraphs(match: re.Match[str]) -> str:
        """A comment block without its paragraphs of licence; counts the lines that these had."""
        nonlocal cut_lines
        block = match.group()
        if not _shows_licence(block):
            return block
        kept = []
        for paragraph in _comment_paragraphs(block):
            # Licences come wrapped and justified: neither a line end nor a double space may hide a phrase.
            if _LICENCE_SIGN.search(" ".join(" ".join(paragraph).replace("#", " ").split())):
                cut_lines += len(paragraph)
            else:
                kept.extend(paragraph)
        # Bare `#` lines that stood around the licence would now frame nothing.
        while kept and not kept[0].strip("# \n"):
            kept.pop(0)
        while kept and not kept[-1].strip("# \n"):
            kept.pop()
        return "".join(kept)

    return _COMMENT_BLOCK.sub(keep_other_paragraphs, text), cut_lines


def _shows_licence(block: str) -> bool:
    # The expression is slow on the many comments without any of its words.
    lowered = block.lower()
    return any(word in lowered for word in _SIGN_WORDS) and _LICENCE_SIGN.search(block) is not None


def _comment_paragraphs(block: str) -> list[list[str]]:
    """The lines of a comment block, parted at its bare `#` lines; each bare line is a paragraph of its own."""
    paragraphs: list[list[str]] = []
    after_bare = True
    for line in block.splitlines(keepends=True):
        bare = not line.strip("#-=* \n")
        if bare or after_bare:
            paragraphs.append([])
        paragraphs[-1].append(line)
        after_bare = bare
    return paragraphs


# A line of nothing but literals and the signs between them, a comment at its end allowed. Possessive quantifiers
# (`++`, Python 3.11) keep the search linear.
_TABLE_LINE = re.compile(
    r"[ \t]*+(?:(?:[\[\](){},:+-]|[bru]?'(?:[^'\\]|\\.)*+'|[bru]?\"(?:[^\"\\]|\\.)*+\"|0[xX][0-9a-fA-F]++"
    r"|\d[\d.eE_]*+|None\b|True\b|False\b)[ \t]*+)++(?:#.*+)?"
)
_BRACKET = re.compile(r"[()\[\]{}]")
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*+'|\"(?:[^\"\\]|\\.)*+\"")


def _shorten_tables(text: str) -> tuple[str, int]:
    """Cut the inside of long runs of literal lines; returns the text and the number of lines cut.

    Only whole entries of one literal are cut, so the source still parses.
    """
    lines = text.split("\n")
    cut_lines = 0
    # A run of n lines holds one whose number is a multiple of n: looking at those is enough to find it.
    probe = 0
    while probe < len(lines):
        if not _is_table_entry(lines[probe]):
            probe += TABLE_LINES
            continue
        start, end = probe, probe + 1
        while start > 0 and _is_table_entry(lines[start - 1]):
            start -= 1
        while end < len(lines) and _is_table_entry(lines[end]):
            end += 1
        if end - start >= TABLE_LINES:
            cut_lines += end - start - TABLE_LINES_KEPT
            del lines[start + TABLE_LINES_KEPT : end]
            end = start + TABLE_LINES_KEPT
        probe = (end // TABLE_LINES + 1) * TABLE_LINES
    return ("\n".join(lines), cut_lines) if cut_lines else (text, 0)


def _is_table_entry(line: str) -> bool:
    """Whether a line holds only literals and a literal around it stays valid without it: its brackets are balanced."""
    if not _TABLE_LINE.fullmatch(line):
        return False
    if not _BRACKET.search(line):
        return True
    bare = _QUOTED.sub("", line).split("#")[0]
    return all(bare.count(opening) == bare.count(closing) for opening, closing in ("()", "[]", "{}"))


_GUTENBERG_START = re.compile(r"^\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG EBOOK.*\n", re.MULTILINE)
_GUTENBERG_END = re.compile(r"^\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG EBOOK", re.MULTILINE)


def _strip_gutenberg_licence(text: str) -> str:
    if "PROJECT GUTENBERG" not in text:
        return text
    start = _GUTENBERG_START.search(text)
    end = _GUTENBERG_END.search(text)
    return text[start.end() if start else 0 : end.start() if end else len(text)]
