"""Reading: every accepted format gives its text, and what cannot be read is named with file and line."""

import gzip
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from groundup.corpus.config import CorpusConfig
from groundup.corpus.sources import (
    PART_CHARS,
    Document,
    _read_stdlib,
    read_documents,
    source_bytes,
    source_fingerprint,
)
from groundup.errors import UserError


def read(*paths: Path | str, text_columns: tuple[str, ...] = ("text",)) -> list[Document]:
    return list(read_documents(CorpusConfig(tuple(map(str, paths)), text_columns=text_columns)))


def texts(*paths: Path | str, text_columns: tuple[str, ...] = ("text",)) -> list[str]:
    return [document.text for document in read(*paths, text_columns=text_columns)]


def test_every_format_gives_its_text(tmp_path: Path):
    (tmp_path / "a.txt").write_text("ä\n", encoding="utf-8")
    (tmp_path / "b.md").write_text("# b\n")
    (tmp_path / "c.py").write_bytes(b"# coding: latin-1\nx = '\xe4'\n")
    (tmp_path / "d.jsonl").write_text('{"text": "d1"}\n\n{"text": ["d2", "d3"]}\n')
    with gzip.open(tmp_path / "e.jsonl.gz", "wt") as file:
        file.write('{"text": "e"}\n')
    with lzma.open(tmp_path / "f.txt.xz", "wt") as file:
        file.write("f")
    pq.write_table(pa.table({"text": ["g1", "g2"]}), tmp_path / "g.parquet")
    (tmp_path / "ignored.bin").write_bytes(b"\0")
    assert texts(tmp_path) == ["ä\n", "# b\n", "# coding: latin-1\nx = 'ä'\n", "d1", "d2\n\nd3", "e", "f", "g1", "g2"]


def test_order_is_that_of_the_names_and_hidden_files_are_left_out(tmp_path: Path):
    for name in ("b/2.txt", "a/1.txt", "c.txt", ".git/x.txt", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts(tmp_path) == ["a/1.txt", "b/2.txt", "c.txt"]


def test_a_glob_gives_the_same_documents_as_the_folder(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    by_glob = [(document.path, document.text) for document in read(tmp_path / "**/*.txt")]
    assert by_glob == [("b.txt", "b"), ("sub/a.txt", "a")]


def test_rows_bring_their_licence_and_their_other_columns(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "t", "licence": "MIT", "title": "T", "nested": {}}\n')
    (document,) = read(tmp_path / "a.jsonl")
    assert (document.license, document.meta, document.kind) == ("MIT", {"row": 1, "title": "T"}, "text")


def test_files_that_name_their_text_differently_are_read_together(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "story": "title"}\n{"story": "b"}\n')
    pq.write_table(pa.table({"title": ["T"], "body": [["c", "d"]]}), tmp_path / "b.parquet")
    assert texts(tmp_path, text_columns=("text", "story", "body")) == ["a", "b", "c\n\nd"]
    with pytest.raises(UserError, match=r"b\.parquet: no `text` or `story`; it has title, body: add .* `text_columns`"):
        texts(tmp_path, text_columns=("text", "story"))


def test_a_row_that_names_a_python_file_is_python(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "x = 1", "path": "pkg/mod.py"}\n')
    (document,) = read(tmp_path / "a.jsonl")
    assert (document.kind, document.path) == ("python", "pkg/mod.py")


def test_read_bytes_add_up_to_the_size_of_the_sources(tmp_path: Path):
    (tmp_path / "a.txt").write_text("line\n\n" * PART_CHARS)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.writelines(f'{{"text": "{number}"}}\n' for number in range(9999))
    pq.write_table(pa.table({"text": ["g"] * 777}), tmp_path / "c.parquet")
    config = CorpusConfig((str(tmp_path), "python:topics"))
    assert sum(document.read_bytes for document in read_documents(config)) == source_bytes(config)


def test_a_long_text_is_cut_into_parts_that_join_to_the_whole(tmp_path: Path):
    text = "".join(f"Paragraph {number} of the book.\n\n" for number in range(20_000))
    (tmp_path / "book.txt").write_text(text)
    parts = texts(tmp_path / "book.txt")
    assert len(parts) > 5
    assert "".join(parts) == text
    assert all(len(part) <= 2 * PART_CHARS for part in parts)
    assert all(part.endswith(".\n\n") for part in parts)
    assert len({document.group for document in read(tmp_path / "book.txt")}) == 1


def test_a_long_text_without_line_ends_is_cut_all_the_same(tmp_path: Path):
    (tmp_path / "line.txt").write_text("x" * (5 * PART_CHARS))
    assert "".join(texts(tmp_path / "line.txt")) == "x" * (5 * PART_CHARS)


def bad_utf8(folder: Path) -> None:
    (folder / "a.txt").write_bytes(b"fine\nstill fine\n\xe4\n")


def bad_json(folder: Path) -> None:
    (folder / "a.jsonl").write_text('{"text": "fine"}\n{"text": \n')


def bad_utf8_in_json(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "\xe4"}\n')


def missing_key(folder: Path) -> None:
    (folder / "a.jsonl").write_text('{"text": "fine"}\n{"body": "t", "title": "T"}\n')


def no_object(folder: Path) -> None:
    (folder / "a.jsonl").write_text("[1]\n")


def wrong_type(folder: Path) -> None:
    (folder / "a.jsonl").write_text('{"text": 3}\n')


def truncated_parquet(folder: Path) -> None:
    pq.write_table(pa.table({"text": ["word " * 1000] * 1000}), folder / "a.parquet")
    data = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(data[: len(data) // 2])


def damaged_parquet(folder: Path) -> None:
    pq.write_table(pa.table({"text": [str(number) * 50 for number in range(5000)]}), folder / "a.parquet")
    data = bytearray((folder / "a.parquet").read_bytes())
    data[100:2000] = bytes(1900)
    (folder / "a.parquet").write_bytes(data)


def missing_column(folder: Path) -> None:
    pq.write_table(pa.table({"body": ["t"], "title": ["T"]}), folder / "a.parquet")


def truncated_gzip(folder: Path) -> None:
    data = gzip.compress(b'{"text": "fine"}\n' * 1000)
    (folder / "a.jsonl.gz").write_bytes(data[:-20])


def truncated_xz(folder: Path) -> None:
    data = lzma.compress(b"fine " * 1000)
    (folder / "a.txt.xz").write_bytes(data[:-20])


def no_gzip(folder: Path) -> None:
    (folder / "a.jsonl.gz").write_text('{"text": "not compressed"}\n')


def bad_cookie(folder: Path) -> None:
    (folder / "a.py").write_bytes(b"# coding: klingon\nx = 1\n")


def empty_folder(folder: Path) -> None:
    (folder / "a.bin").touch()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (bad_utf8, ["a.txt, line 3", "not UTF-8", "0xe4"]),
        (bad_json, ["a.jsonl, line 2", "not a JSON value"]),
        (bad_utf8_in_json, ["a.jsonl, line 2", "not UTF-8"]),
        (missing_key, ["a.jsonl, line 2", "no `text`", "body, title", "text_columns"]),
        (no_object, ["a.jsonl, line 1", "JSON object", "a list"]),
        (wrong_type, ["a.jsonl, line 1", "string", "a number"]),
        (truncated_parquet, ["a.parquet", "Parquet"]),
        (damaged_parquet, ["a.parquet", "Parquet"]),
        (missing_column, ["a.parquet", "no `text`", "body, title", "text_columns"]),
        (truncated_gzip, ["a.jsonl.gz", "cut short"]),
        (truncated_xz, ["a.txt.xz", "cut short"]),
        (no_gzip, ["a.jsonl.gz", "damaged"]),
        (bad_cookie, ["a.py", "klingon"]),
        (empty_folder, ["holds no text", ".jsonl"]),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, spoil, words: list[str]):
    spoil(tmp_path)
    with pytest.raises(UserError) as error:
        read(tmp_path)
    message = str(error.value)
    assert "\n" not in message
    assert str(tmp_path) in message
    for word in words:
        assert word in message


def test_a_path_that_is_not_there_and_an_unknown_kind_are_named(tmp_path: Path):
    with pytest.raises(UserError, match="no such file or folder"):
        read(tmp_path / "nowhere")
    (tmp_path / "a.docx").touch()
    with pytest.raises(UserError, match=r"a\.docx: unknown kind of file; accepted are \.txt"):
        read(tmp_path / "a.docx")


def test_the_standard_library_comes_without_tests_and_grouped_by_module():
    documents = {document.path: document for document in read("python:stdlib")}
    assert documents["json/decoder.py"].group == "json"
    assert documents["_pydecimal.py"].group == documents["decimal.py"].group
    assert not any(part in ("test", "tests", "site-packages") for path in documents for part in path.split("/"))
    assert all(document.license == "PSF-2.0" for document in documents.values())
    assert sum(len(document.text) for document in documents.values()) > 8_000_000


def test_a_module_in_another_encoding_than_it_says_is_a_problem_and_no_stop(tmp_path: Path):
    (tmp_path / "good.py").write_bytes("# coding: latin-1\nx = 'ä'\n".encode("latin-1"))
    (tmp_path / "worse.py").write_bytes("x = 'ä'\n".encode("latin-1"))
    good, worse = _read_stdlib(tmp_path)
    assert "ä" in good.text and not good.problem
    assert worse.text == "" and worse.problem


def test_the_fingerprint_follows_content_and_names_but_not_time(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one")
    config = CorpusConfig((str(tmp_path),))
    before = source_fingerprint(config)
    (tmp_path / "a.txt").write_text("one")
    assert source_fingerprint(config) == before
    (tmp_path / "a.txt").write_text("onf")
    changed = source_fingerprint(config)
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    renamed = source_fingerprint(config)
    (tmp_path / "c.txt").touch()
    assert len({before, changed, renamed, source_fingerprint(config)}) == 4
