"""The documented functions and classes of Python source, several times faster than by its syntax tree.

`parse_definitions` asks CPython's parser (`ast`) and is always right. Most of its time goes into function bodies that
nobody asked about, and at about 15 MB/s it would take half the time of the whole corpus stage. `scan_definitions`
finds the same with one regular expression that steps over strings and comments, and hands over to the parser whatever
it is not sure of. On the whole standard library the two agree, definition by definition (tests/corpus).
"""

import ast
import copy
import gc
import inspect
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Definition:
    """name: qualified within the module, `JSONDecoder.decode`. signature: `(self, s)`, or a class's `(Base)`.

    docstring: cleaned as by `inspect.cleandoc`, never empty.
    """

    kind: Literal["function", "class"]
    name: str
    signature: str
    docstring: str


def find_definitions(text: str) -> list[Definition]:
    """Each documented function, method and class, in order of the source; of two with one name the first.

    Functions inside functions are left out: nobody can name them.
    Raises SyntaxError where the source shows signs of not being Python 3 and the parser confirms it.
    """
    found = scan_definitions(text)
    if found is None:
        found = parse_definitions(text)
    unique: dict[str, Definition] = {}
    for definition in found:
        unique.setdefault(definition.name, definition)
    return list(unique.values())


def parse_definitions(text: str) -> list[Definition]:
    """All documented definitions by CPython's parser. Raises SyntaxError if it refuses the text for any reason."""
    with warnings.catch_warnings(), _no_garbage_collection():
        # An invalid escape in somebody's source is no news to the user of this program.
        warnings.simplefilter("ignore")
        try:
            line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
            return list(_documented(ast.parse(text).body, text, line_starts, ""))
        except (ValueError, RecursionError, MemoryError) as error:
            raise SyntaxError(str(error)) from None


def scan_definitions(text: str) -> list[Definition] | None:
    """All documented definitions by a regular expression, or None where only the parser can tell."""
    definitions = []
    # Enclosing functions and classes as (width of indentation, name, is a function).
    enclosing: list[tuple[int, str, bool]] = []
    for match in _SCAN.finditer("\n" + text):
        if match.lastindex is None:
            # A string or a comment.
            continue
        if match.lastgroup is None:
            return None
        width = len(match["indent"].expandtabs(8))
        while enclosing and enclosing[-1][0] >= width:
            enclosing.pop()
        name = match["name"]
        if name is None:
            # `if`, `try` and the like end what stands deeper, and have no name to add.
            continue
        is_class = match["keyword"] == "class"
        literal = match["literal"]
        if literal is not None and not any(is_function for _, _, is_function in enclosing):
            docstring = _clean(_value(literal))
            if docstring:
                qualified = ".".join([*(block for _, block, _ in enclosing), name])
                signature = _signature(match["parameters"])
                definitions.append(Definition("class" if is_class else "function", qualified, signature, docstring))
        enclosing.append((width, name, not is_class))
    return definitions


_STRING_ALTERNATIVES = (
    r'"""[^"\\]*+(?:(?:\\[\s\S]|"(?!""))[^"\\]*+)*+"""'
    r"|'''[^'\\]*+(?:(?:\\[\s\S]|'(?!''))[^'\\]*+)*+'''"
    r'|"(?!"")[^"\\\n]*+(?:\\[\s\S][^"\\\n]*+)*+"'
    r"|'(?!'')[^'\\\n]*+(?:\\[\s\S][^'\\\n]*+)*+'"
)
_STRING = f"(?:{_STRING_ALTERNATIVES})"


def _nested_brackets(depth: int) -> str:
    inner = rf"|{_nested_brackets(depth - 1)}" if depth else ""
    return rf"[(\[{{](?:[^()\[\]{{}}\"'#]++|{_STRING}|\#.*+{inner})*+[)\]}}]"


_PARAMETERS = rf"(?:[^()\[\]{{}}\"'#:\\\n]++|{_STRING}|{_nested_brackets(4)})*+"
_HEADER = re.compile(rf"[ \t]*+(?:(?:async[ \t]++)?def|class)[ \t]++\w++(?P<parameters>{_PARAMETERS}):")

# Every alternative starts with a plain character (a newline, a quote, `#`, a doubtful sign) and none with a group: only
# then does the search skip to these characters before it tries to match, four times faster over all. An empty group
# without a name marks what is doubtful: signs of Python 2, of a merge conflict, of a header too intricate for this
# expression, of a string without end.
_SCAN = re.compile(
    rf"""
    \n(?P<indent>[ \t]*+)(?=[acdefimprtw<])(?:
        (?P<keyword>(?:async[ \t]++)?def|class)[ \t]++(?P<name>\w++)(?P<parameters>{_PARAMETERS}):[ \t]*+
        (?:
            (?:(?:\#.*+)?\n(?:[ \t]*+(?:\#.*+)?\n)*+[ \t]++)?
            (?P<literal>[rRuU]?{_STRING}(?:[ \t]*+[rRuU]?{_STRING})*+)(?=[ \t]*+(?:\#|;|\n|\Z))
        )?
        | (?:if|elif|else|try|finally|with|for|while|async|match|case|except(?![ \t]++[\w.]++[ \t]*+,))\b
        | (?:async[ \t]++)?(?:def|class)[ \t]()
        | (?:print|exec)[ \t]++[\w"'`%]()
        | (?:except|raise)[ \t]++[\w.]++[ \t]*+,()
        | <<<<<<<()
    )
    | {_STRING_ALTERNATIVES}
    | \#.*+
    | `() | <>() | 0(?<![\w.]0)[0-9]() | "() | '()
    """,
    re.VERBOSE,
)


_SPACE = r"(?:\s|\#.*+)++"
_LAYOUT = re.compile(rf"({_STRING})|(?<=[(\[{{]){_SPACE}|,?+{_SPACE}(?=[)\]}}])|({_SPACE})")


def _value(literal: str) -> str:
    """What one or several adjoining string literals stand for."""
    quotes = literal[:3]
    # One string in triple quotes without escapes, as nearly all docstrings are, says what it is.
    if quotes in ('"""', "'''") and "\\" not in literal and literal.index(quotes, 3) == len(literal) - 3:
        return literal[3:-3]
    value: str = ast.literal_eval(literal)
    return value


def _signature(parameters: str) -> str:
    """Parameters as written, in one line and without comments."""
    return _LAYOUT.sub(lambda match: match[1] or (" " if match[2] else ""), parameters).strip()


def _clean(docstring: str) -> str:
    # Most docstrings have one line, which needs no cleaning by a much slower function.
    return (inspect.cleandoc(docstring) if "\n" in docstring else docstring).strip()


_Node = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _documented(body: list[ast.stmt], text: str, line_starts: list[int], prefix: str) -> Iterator[Definition]:
    for node in body:
        if isinstance(node, _Node):
            docstring = _clean(ast.get_docstring(node, clean=False) or "")
            if docstring:
                kind: Literal["function", "class"] = "class" if isinstance(node, ast.ClassDef) else "function"
                signature = _signature(_written_parameters(node, text, line_starts[node.lineno - 1]))
                yield Definition(kind, prefix + node.name, signature, docstring)
            if isinstance(node, ast.ClassDef):
                yield from _documented(node.body, text, line_starts, f"{prefix}{node.name}.")
        else:
            for block in ("body", "handlers", "cases", "orelse", "finalbody"):
                yield from _documented(getattr(node, block, []), text, line_starts, prefix)


def _written_parameters(node: _Node, text: str, line_start: int) -> str:
    header = _HEADER.match(text, line_start)
    if header:
        return header["parameters"]
    # More deeply nested than the expression goes.
    bare = copy.copy(node)
    bare.body, bare.decorator_list = [ast.Pass()], []
    return ast.unparse(bare).partition("\n")[0].partition(node.name)[2].removesuffix(":")


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A syntax tree is many objects and no garbage: the collector would cost a fifth of the parsing time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
