"""Cleaning: what is cut is licence or table, what is left still parses and reads the same."""

import ast
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.corpus.config import CorpusConfig
from groundup.corpus.extract import TABLE_LINES, TABLE_LINES_KEPT, extract_python, extract_text, normalise
from groundup.corpus.sources import read_documents

MIT = """\
# tidy.py
# Sorts things into drawers.
#
# Copyright (c) 2020 A. Person.
# All rights  reserved.
#
# Permission  is  hereby
#   granted, free of charge, to any person.
#
# THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND.

import os
"""


@given(st.text())
def test_normalised_text_is_clean_and_stays_as_it_is(text: str):
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert not any(unicodedata.category(letter) == "Cc" and letter not in "\n\t" for letter in once)
    assert all(line == line.rstrip() for line in once.split("\n"))
    once.encode("utf-8")


def test_newlines_of_every_system_become_one():
    assert normalise("a\r\nb\rc\nd") == "a\nb\nc\nd"


def test_half_a_surrogate_pair_becomes_the_replacement_character():
    assert normalise("a\ud83db") == "a\ufffdb"


def test_joiners_that_scripts_need_stay():
    family = "👩\u200d👧 می\u200cخواهم"
    assert normalise(f"\ufeff{family}\u200b") == family


def test_a_licence_goes_and_the_description_above_it_stays():
    extract = extract_python(MIT)
    assert extract.text == "# tidy.py\n# Sorts things into drawers.\n\nimport os\n"
    # Bare `#` lines go with the licence that they framed.
    assert extract.licence_lines == 5
    assert extract.licence_chars == len(MIT) - len(extract.text)


@pytest.mark.parametrize(
    "text",
    [
        "# The license plate of a car.\nplate = read()\n",
        "# Copying is the right thing to do here.\n",
        "def f():\n    # Copyright 2020 of the text shown, not of this program.\n    return 'x'\n",
        "x = '# Copyright 2020'\n",
    ],
)
def test_other_comments_stay(text: str):
    assert extract_python(text).text == text


@pytest.mark.parametrize(
    "phrase",
    [
        "Copyright (c) 2020",
        "(C) 2020 A. Person",
        "ALL RIGHTS RESERVED",
        "Licenced under the terms of",
        "SPDX-License-Identifier: MIT",
        "Permission to use, copy",
        "Redistribution and use in source",
        "Redistributions of source code",
        "WITHOUT WARRANTY OF ANY KIND",
        "disclaims all warranties",
        "provided as is, and only so",
        "in no event shall the author",
        "See the licence",
        "fitness and merchantability",
        "specific prior written permission",
    ],
)
def test_every_sign_of_a_licence_is_seen(phrase: str):
    text = f"# Copyright 2020 A. Person\n\nx = 1\n\n# {phrase}\n"
    assert extract_python(text).text == "x = 1\n"


def test_a_phrase_of_licences_is_none_in_a_program_that_speaks_of_no_licence():
    text = "# Leave it as is and go on.\nx = 1\n"
    assert extract_python(text).text == text
    assert extract_python(text + "print('copyright')\n").text == "x = 1\nprint('copyright')\n"


def table(lines: int) -> str:
    entries = "".join(f"    {number:#06x}: '\\x{number % 256:02x}',  # entry {number}\n" for number in range(lines))
    return f"def before():\n    pass\n\ntable = {{\n{entries}}}\n\nafter = 1\n"


def test_the_inside_of_a_long_table_goes_and_the_rest_still_means_the_same():
    whole, extract = table(1000), extract_python(table(1000))
    assert extract.table_lines == 1000 - TABLE_LINES_KEPT
    namespace: dict[str, object] = {}
    exec(extract.text, namespace)
    assert namespace["table"] == {number: chr(number) for number in range(TABLE_LINES_KEPT)}
    assert namespace["after"] == 1
    assert extract.table_chars == len(whole) - len(extract.text)


def test_a_table_is_found_wherever_it_stands_and_shorter_ones_stay():
    for shift in range(0, 2 * TABLE_LINES, 11):
        extract = extract_python("x = 1\n" * shift + table(TABLE_LINES))
        assert extract.table_lines == TABLE_LINES - TABLE_LINES_KEPT
        short = "x = 1\n" * shift + table(TABLE_LINES - 1)
        assert extract_python(short).text == short


def test_nested_literals_and_strings_with_brackets_stay_whole():
    rows = "".join(f"    ('(', {number}),\n    [{number}, ')'],\n" for number in range(TABLE_LINES))
    extract = extract_python(f"table = [\n{rows}]\n")
    assert extract.table_lines == 2 * TABLE_LINES - TABLE_LINES_KEPT
    ast.parse(extract.text)
    opening = "table = [\n" + "    [\n    1,\n    ],\n" * TABLE_LINES + "]\n"
    ast.parse(extract_python(opening).text)


def test_a_gutenberg_licence_goes_from_both_ends():
    text = (
        "The Project Gutenberg eBook of Tales\n\n*** START OF THE PROJECT GUTENBERG EBOOK TALES ***\n"
        "Once upon a time.\n*** END OF THE PROJECT GUTENBERG EBOOK TALES ***\nLicence follows.\n"
    )
    extract = extract_text(text)
    assert extract.text == "Once upon a time.\n"
    assert extract.licence_lines == 5


def test_the_standard_library_still_parses_and_keeps_its_code():
    """Comments and table entries go, statements stay: the trees differ in literals at most."""
    documents = list(read_documents(CorpusConfig(("python:stdlib",))))[::7]
    assert len(documents) > 80
    for document in documents:
        before, after = ast.parse(document.text), ast.parse(extract_python(document.text).text)
        assert [type(node) for node in before.body] == [type(node) for node in after.body], document.path


def test_licences_of_real_files_go(tmp_path: Path):
    import tarfile

    text = Path(tarfile.__file__).read_text(encoding="utf-8")
    assert "Permission" in text[:1500]
    extract = extract_python(text)
    assert "Permission" not in extract.text[:1500]
    assert "Read from and write to tar format archives." in extract.text
