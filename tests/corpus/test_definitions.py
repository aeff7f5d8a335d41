"""The quick scan of Python source against CPython's own parser."""

import ast
import json
import lzma
from pathlib import Path

import pytest

from groundup.corpus.config import CorpusConfig
from groundup.corpus.definitions import Definition, find_definitions, parse_definitions, scan_definitions
from groundup.corpus.extract import extract_python
from groundup.corpus.sources import read_documents

DATA = Path(__file__).parents[2] / "../shared/data"


def test_on_the_whole_standard_library_the_scan_finds_what_the_parser_finds():
    documents = list(read_documents(CorpusConfig(("python:stdlib",))))
    scanned = 0
    for document in documents:
        text = extract_python(document.text).text
        found = scan_definitions(text)
        if found is not None:
            scanned += 1
            assert found == parse_definitions(text), document.path
    assert scanned > 0.98 * len(documents)


def test_the_parser_finds_the_docstrings_that_ast_finds():
    text = "".join(
        document.text for document in read_documents(CorpusConfig(("python:stdlib",))) if document.path == "argparse.py"
    )
    nodes = [
        node
        for parent in ast.walk(ast.parse(text))
        if isinstance(parent, ast.Module | ast.ClassDef)
        for node in parent.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    ]
    docstrings = sorted(docstring.strip() for node in nodes if (docstring := ast.get_docstring(node)))
    assert sorted(definition.docstring for definition in parse_definitions(text)) == docstrings


def test_on_other_peoples_code_too():
    path = DATA / "code_python/python.jsonl.xz"
    if not path.exists():
        pytest.skip("needs code_python/python.jsonl.xz of the shared data")
    with lzma.open(path) as file:
        texts = [json.loads(line)["text"] for line in file][::4]
    for text in map(extract_python, texts):
        found = scan_definitions(text.text)
        if found is not None:
            try:
                assert found == parse_definitions(text.text)
            except SyntaxError:
                # The syntax of a later Python is no reason to throw a program away.
                continue


@pytest.mark.parametrize(
    "literal",
    [
        '"one"',
        '"""three"""',
        "'''three'''",
        '""""quoted" at its start"""',
        "'''it's \"\"\" in it'''",
        '"""one""" """two"""',
        '"""one""" \'two\'',
        "'one' '''two'''",
        "r'''raw'''",
        '"""an escaped \\""" in it"""',
        '"" "after an empty one"',
        '"""after an empty one""" ""',
        '""""""',
    ],
)
def test_a_docstring_is_what_its_literals_stand_for(literal: str):
    text = f"def f(x):\n    {literal}\n"
    value = ast.literal_eval(literal)
    assert [definition.docstring for definition in scan_definitions(text) or []] == ([value] if value else [])


TRICKY = '''
"""def not_a_function(): 'x'"""
# def neither(): "y"
def plain(a, b=")", *, c: "dict[str, int]" = {"#": (1, 2)}) -> list[int]:
    """Plain."""
class Outer(Base, metaclass=Meta):
    # a comment first

    r"""Outer \\d."""
    text = """
class Fake:
    \'\'\'Fake.\'\'\'
"""
    def method(
        self,  # the object
        value: int = 3,
    ):
        "Method" " in two."
        def inner():
            """Hidden."""
    if True:
        async def waits(self): "On its own line."
    class Inner:
        """Inner."""
        @property
        def value(self):
            """First."""
        @value.setter
        def value(self, new):
            """Second."""
if True:
    def under_if():
        """Under if."""
def undocumented(): return "no docstring"
def formatted():
    f"""No docstring."""
def computed():
    "No docstring" % 3
def empty():
    """   """
class Bare: """Bare."""
'''


def test_tricky_source_is_read_as_the_parser_reads_it():
    found = scan_definitions(TRICKY)
    assert found is not None
    assert found == parse_definitions(TRICKY)
    assert [definition.name for definition in find_definitions(TRICKY)] == [
        *("plain", "Outer", "Outer.method", "Outer.waits", "Outer.Inner", "Outer.Inner.value", "under_if", "Bare"),
    ]


def test_signatures_are_as_written_in_one_line_without_comments():
    signatures = {definition.name: definition.signature for definition in find_definitions(TRICKY)}
    assert signatures["plain"] == '(a, b=")", *, c: "dict[str, int]" = {"#": (1, 2)}) -> list[int]'
    assert signatures["Outer"] == "(Base, metaclass=Meta)"
    assert signatures["Outer.method"] == "(self, value: int = 3)"
    assert signatures["Bare"] == ""


def test_of_two_definitions_with_one_name_the_first_counts():
    assert Definition("function", "Outer.Inner.value", "(self)", "First.") in find_definitions(TRICKY)


@pytest.mark.parametrize(
    "text",
    [
        "print 'hello'\n",
        "def f():\n    exec code in namespace\n    print x, y\n",
        "try:\n    pass\nexcept ValueError, error:\n    pass\n",
        "raise ValueError, 'no'\n",
        "x = `y`\n",
        "if a <> b: pass\n",
        "mode = 0777\n",
        "<<<<<<< HEAD\nx = 1\n",
        'text = """never closed\n',
        "def f(:\n    '''Broken.'''\n",
    ],
)
def test_what_is_not_python_3_is_refused(text: str):
    with pytest.raises(SyntaxError):
        find_definitions(text)


def test_what_only_looks_old_is_not_refused():
    text = "print ('x')\nraise_ = 00\ndef f():\n    '''Prints.'''\n    print (1), 2\n"
    assert [definition.name for definition in find_definitions(text)] == ["f"]


def test_a_header_too_deep_for_the_scan_goes_to_the_parser():
    text = "def f(a=((((((((1,),),),),),),),)):\n    '''Deep.'''\n"
    assert scan_definitions(text) is None
    assert [definition.docstring for definition in find_definitions(text)] == ["Deep."]
