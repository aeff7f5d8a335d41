"""Sentences and documents against cases read by eye, and the promise that every quote stands in its document."""

import pyarrow as pa
import pytest

from groundup.align.passages import Passage, is_quotable, split_sentences, unwrap


def _passage(
    text: str, kind: str = "function", name: str = "json.dumps", signature: str = "(obj, *, indent=None)"
) -> Passage:
    return Passage("id", kind, name, signature, text, "json")


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One here. Two here.", ["One here.", "Two here."]),
        ("Accepts suffixes, e.g. Roman ones. Then more.", ["Accepts suffixes, e.g. Roman ones.", "Then more."]),
        ("Mr. Smith met J. R. Hartley. They spoke.", ["Mr. Smith met J. R. Hartley.", "They spoke."]),
        ('He said "Stop!" Then he left.', ['He said "Stop!"', "Then he left."]),
        ("Read a .plist file. 'fp' is the file.", ["Read a .plist file.", "'fp' is the file."]),
        ("No end\nAnother line", ["No end", "Another line"]),
        ("Python 3.12 is out. Is it?  Yes.", ["Python 3.12 is out.", "Is it?", "Yes."]),
        ("Calls json.dumps internally.", ["Calls json.dumps internally."]),
        ("", []),
    ],
)
def test_sentences_end_where_a_reader_would_end_them(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_prose_is_unwrapped_and_examples_keep_their_lines() -> None:
    text = """Return a
    string.

    The second
    paragraph.

        >>> f(1)
        2

    - one
    - two
    """
    assert unwrap(text) == "Return a string.\nThe second paragraph.\n    >>> f(1)\n    2\n- one\n- two"


@pytest.mark.parametrize(
    "sentence", [">>> f(1)", "x <==> y or z", "Too short.", "Variables used in this class:", "w " * 150]
)
def test_code_headings_and_long_text_are_not_quoted(sentence: str) -> None:
    assert not is_quotable(sentence)


def test_the_first_line_names_the_function_whole() -> None:
    assert _passage("Text.").head == "json.dumps(obj, *, indent=None)"
    assert _passage("Text.", signature="json.dumps(obj)").head == "json.dumps(obj)"
    assert _passage("Text.", "class", "json.JSONEncoder", "(object)").head == "class json.JSONEncoder(object)"
    assert _passage("Text.", "text", "", "").head == ""


@pytest.mark.parametrize(
    ("name", "is_public"),
    [
        ("json.dumps", True),
        ("json.JSONEncoder.__init__", True),
        ("__future__.all_feature_names", True),
        ("_pydecimal.Decimal.sqrt", False),
        ("shutil._make_tarball", False),
        ("enum.Enum.__private", False),
    ],
)
def test_a_name_with_a_private_part_is_private(name: str, is_public: bool) -> None:
    assert _passage("Text.", name=name).is_public == is_public


def test_a_cut_document_ends_with_a_sentence_and_keeps_the_first() -> None:
    passage = _passage("Return the first thing. Then the second thing. Then the third thing.", signature="()")
    assert passage.shown(1000) == "json.dumps()\nReturn the first thing. Then the second thing. Then the third thing."
    assert passage.shown(70) == "json.dumps()\nReturn the first thing. Then the second thing."
    assert passage.shown(10) == "json.dumps()\nReturn the first thing."


def test_every_sentence_of_real_docstrings_stands_in_the_document(code_passages: pa.Table) -> None:
    for row in code_passages.to_pylist():
        passage = Passage.from_row(row)
        assert "".join(split_sentences(passage.body)).replace(" ", "") == "".join(passage.body.split())
        for sentence in split_sentences(passage.body):
            assert sentence in passage.body
        for limit in (50, 150, 400):
            shown = passage.shown(limit)
            assert (passage.head + "\n" + passage.body).startswith(shown)
            assert passage.summary in shown
            assert len(shown) <= max(limit, len(passage.head) + 1 + len(passage.summary))
