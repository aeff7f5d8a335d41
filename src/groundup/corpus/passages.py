"""Passages that a question can be asked about: documented functions and classes, or paragraphs of prose."""

import ast
import contextlib
import copy
import gc
import inspect
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

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


def parse_python(text: str) -> ast.Module:
    """The syntax tree. Raises SyntaxError, also where CPython says ValueError, RecursionError or MemoryError."""
    with _no_garbage_collection(), warnings.catch_warnings():
        # An invalid escape in somebody's source is no news to the user of this program.
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (ValueError, RecursionError, MemoryError) as error:
            raise SyntaxError(str(error)) from None


def python_passages(tree: ast.Module, text: str, module: str) -> list[Passage]:
    """Each documented function and class of a module, methods and nested classes included, in order of the source.

    The definition that comes first wins where two bear the same name (a property and its setter).
    Functions inside functions are left out: nobody can name them.
    """
    lines = text.split("\n")
    passages: dict[str, Passage] = {}
    for node, name in _definitions(tree.body, f"{module}." if module else ""):
        docstring = _docstring(node)
        if docstring and name not in passages:
            kind: Literal["function", "class"] = "class" if isinstance(node, ast.ClassDef) else "function"
            passages[name] = Passage(kind, name, _signature(node, lines), docstring)
    return list(passages.values())


def module_name(path: str) -> str:
    """`json/decoder.py` → `json.decoder`, `json/__init__.py` → `json`."""
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


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


_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_BLANK_LINE = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*\s+|\n")


def _definitions(body: list[ast.stmt], prefix: str) -> Iterator[tuple[_Definition, str]]:
    """Functions and classes with their qualified names, also those under `if` and `try`."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node, prefix + node.name
        elif isinstance(node, ast.ClassDef):
            yield node, prefix + node.name
            yield from _definitions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.If):
            yield from _definitions(node.body + node.orelse, prefix)
        elif isinstance(node, ast.Try):
            handled = [statement for handler in node.handlers for statement in handler.body]
            yield from _definitions(node.body + handled + node.orelse + node.finalbody, prefix)


def _docstring(node: _Definition) -> str:
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        written = first.value.value
        # Most docstrings have one line, which needs no cleaning by a function fifty times slower.
        return (inspect.cleandoc(written) if "\n" in written else written).strip()
    return ""


def _signature(node: _Definition, lines: list[str]) -> str:
    """The header without `def`, name and colon, in one line, spelled as in the source."""
    header = " ".join(line.strip() for line in lines[node.lineno - 1 : node.body[0].lineno - 1])
    if "#" in header or not header.endswith(":"):
        # A comment, or a docstring on the header's own line: the slower way that is always right.
        bare = copy.copy(node)
        bare.body = [ast.Pass()]
        bare.decorator_list = []
        header = ast.unparse(bare).partition("\n")[0]
    written = header[header.index(node.name) + len(node.name) :].removesuffix(":").strip()
    return written.replace("( ", "(").replace(", )", ")").replace(" )", ")")


def _cut_at_sentences(text: str) -> Iterator[str]:
    """Pieces of at most MAX_PASSAGE_CHARS that end where a sentence or a line does, if there is such a place."""
    while len(text) > MAX_PASSAGE_CHARS:
        ends = [match.end() for match in _SENTENCE_END.finditer(text, MIN_PASSAGE_CHARS, MAX_PASSAGE_CHARS)]
        end = ends[-1] if ends else MAX_PASSAGE_CHARS
        yield text[:end].strip()
        text = text[end:]
    if text.strip():
        yield text.strip()


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Building a tree makes many objects and no garbage: the collector would cost a quarter of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
