"""The corpus stage as a whole: what goes in comes out once, on one side, whatever machine does it."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import xxhash

from groundup.corpus.config import CorpusConfig
from groundup.corpus.passages import MAX_PASSAGE_CHARS, text_passages
from groundup.corpus.pipeline import run
from groundup.corpus.tables import DOCUMENT_SCHEMA, PASSAGE_SCHEMA
from groundup.errors import UserError
from groundup.storage import hash_folder

TABLES = ("train", "heldout", "rejected", "passages")
# Names with no meaning; only the hash decides which of these modules is held out.
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "r", "sk", "lt", "m")]


def make_corpus(config: CorpusConfig, out: Path, workers: int = 1) -> dict[str, list[dict[str, Any]]]:
    out.mkdir()
    run(config, out, workers=workers)
    return {name: pq.read_table(out / f"{name}.parquet").to_pylist() for name in TABLES}


def sentence(source: random.Random, words: int) -> str:
    return " ".join(source.choices(WORDS, k=words)).capitalize() + "."


def module(source: random.Random, quoting: str = "") -> str:
    functions = []
    for number in range(8):
        docstring = f"{sentence(source, 6)}\n\n    {sentence(source, 25)}\n    {quoting if number == 3 else ''}\n    "
        body = "\n".join(f"    {source.choice(WORDS)} = {source.choice(WORDS)}(value)" for _ in range(6))
        functions.append(
            f'def {source.choice(WORDS)}_{number}(value):\n    """{docstring}"""\n{body}\n    return value\n'
        )
    return "\n\n".join(functions)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 modules and 60 texts, with copies, junk and quotes of one another among them."""
    folder = tmp_path_factory.mktemp("source")
    source = random.Random(11)
    for number in range(60):
        (folder / f"module{number:02}.py").write_text(module(source))
        (folder / f"text{number:02}.txt").write_text("\n\n".join(sentence(source, 40) for _ in range(12)) + "\n")
    shutil.copy(folder / "text05.txt", folder / "text99-copy.txt")
    (folder / "text99-near.txt").write_text((folder / "text07.txt").read_text() + sentence(source, 10))
    (folder / "short.txt").write_text("Too short.\n")
    (folder / "old.py").write_text(module(source) + "print 'Python 2'\n")
    return folder


@pytest.fixture(scope="module")
def corpus(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return make_corpus(CorpusConfig((str(folder),)), tmp_path_factory.mktemp("made") / "corpus")


def test_every_document_comes_out_exactly_once(folder: Path, corpus):
    paths = [row["path"] for name in ("train", "heldout", "rejected") for row in corpus[name]]
    assert sorted(paths) == sorted(path.name for path in folder.iterdir())
    assert all(row["kept"] and not row["reason"] for name in ("train", "heldout") for row in corpus[name])
    assert not any(row["kept"] for row in corpus["rejected"])


def test_what_is_rejected_is_rejected_for_its_reason(corpus):
    reasons = {row["path"]: row["reason"] for row in corpus["rejected"]}
    assert reasons == {
        "text99-copy.txt": "exact duplicate",
        "text99-near.txt": "near duplicate",
        "short.txt": "too short",
        "old.py": "does not parse",
    }
    (near,) = (row for row in corpus["rejected"] if row["reason"] == "near duplicate")
    (original,) = (row for name in ("train", "heldout") for row in corpus[name] if row["path"] == "text07.txt")
    scores = json.loads(near["scores"])
    assert scores["copy_of"] == original["id"]
    assert 0.8 <= scores["similarity"] < 1


def test_columns_and_ids_are_those_agreed(corpus, tmp_path: Path):
    for name in ("train", "heldout", "rejected"):
        for row in corpus[name]:
            assert list(row) == DOCUMENT_SCHEMA.names
            assert row["id"] == xxhash.xxh3_128_hexdigest(row["text"].encode())
            json.loads(row["meta"]), json.loads(row["scores"])
    assert list(corpus["passages"][0]) == PASSAGE_SCHEMA.names
    ids = [passage["id"] for passage in corpus["passages"]]
    assert len(set(ids)) == len(ids)


def test_passages_stand_on_the_side_of_their_document(corpus):
    sides = {row["id"]: name for name in ("train", "heldout") for row in corpus[name]}
    assert {passage["split"] for passage in corpus["passages"]} == {"train", "heldout"}
    for passage in corpus["passages"]:
        assert sides[passage["document"]] == passage["split"]
    functions = [passage for passage in corpus["passages"] if passage["kind"] == "function"]
    assert len(functions) == 60 * 8
    assert all(passage["name"].startswith("module") and passage["signature"] == "(value)" for passage in functions)


def test_the_output_does_not_depend_on_workers_place_or_file_system_order(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("groundup.corpus.prepare.CHUNK_CHARS", 20_000)
    monkeypatch.chdir(folder.parent)
    make_corpus(CorpusConfig((folder.name,)), tmp_path / "one")
    make_corpus(CorpusConfig((folder.name,)), tmp_path / "three", workers=3)
    elsewhere = tmp_path / "elsewhere" / folder.name
    elsewhere.mkdir(parents=True)
    for path in sorted(folder.iterdir(), reverse=True):
        shutil.copy(path, elsewhere / path.name)
    monkeypatch.chdir(elsewhere.parent)
    make_corpus(CorpusConfig((folder.name,)), tmp_path / "moved")
    assert hash_folder(tmp_path / "one") == hash_folder(tmp_path / "three") == hash_folder(tmp_path / "moved")
    assert set(hash_folder(tmp_path / "one")) == {*(f"{name}.parquet" for name in TABLES), "summary.json"}


def test_chunks_do_not_change_what_is_decided(folder: Path, corpus, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("groundup.corpus.prepare.CHUNK_CHARS", 3_000)
    assert make_corpus(CorpusConfig((str(folder),)), tmp_path / "corpus") == corpus


def test_quotes_of_heldout_passages_are_cut_from_train(folder: Path, corpus, tmp_path: Path):
    """A program and a text learn a held-out docstring by heart; both lose it and little else."""
    quoted = next(passage for passage in corpus["passages"] if passage["split"] == "heldout" and passage["name"])
    sources = tmp_path / "source"
    shutil.copytree(folder, sources)
    train_module, train_text = (
        next(row["path"] for row in corpus["train"] if row["path"].startswith(kind)) for kind in ("module", "text")
    )
    before = {name: (folder / name).read_text() for name in (train_module, train_text)}
    text = " ".join(quoted["text"].split())
    (sources / train_module).write_text(before[train_module].replace('"""', f'"""{text} ', 1))
    (sources / train_text).write_text(before[train_text].replace("\n\n", f"\n\nAs they say: {text}\n\n", 1))
    made = make_corpus(CorpusConfig((str(sources),)), tmp_path / "corpus")
    assert {row["path"] for row in made["heldout"]} == {row["path"] for row in corpus["heldout"]}
    after = {row["path"]: row["text"] for row in made["train"]}
    assert quoted["text"].split(".")[0] not in after[train_module] + after[train_text]
    assert after[train_module].replace('""". ', '"""').split() == before[train_module].split()
    assert after[train_text].split() == before[train_text].split()
    summary = json.loads((tmp_path / "corpus/summary.json").read_text())
    assert summary["quotes"]["documents"] == 2
    assert [passage["name"] for passage in made["passages"] if text in " ".join(passage["text"].split())] == [
        quoted["name"]
    ]
    assert all(row["id"] == xxhash.xxh3_128_hexdigest(row["text"].encode()) for row in made["train"])


def test_the_summary_adds_up(folder: Path, corpus, tmp_path: Path):
    out = tmp_path / "corpus"
    make_corpus(CorpusConfig((str(folder),)), out)
    summary = json.loads((out / "summary.json").read_text())
    rejected = {entry["reason"]: entry for entry in summary["rejected"]}
    assert summary["read"]["documents"] == len(list(folder.iterdir()))
    assert summary["read"]["source_bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    for name in ("train", "heldout"):
        rows = corpus[name]
        split = summary["splits"][name]
        assert split["documents"] == len(rows)
        assert split["bytes"] == sum(len(row["text"].encode()) for row in rows)
        assert split["groups"] == len({row["group"] for row in rows})
        assert split["passages"] == sum(passage["split"] == name for passage in corpus["passages"])
    assert sum(entry["documents"] for entry in rejected.values()) == len(corpus["rejected"])
    assert rejected["too short"]["example"] == {"path": "short.txt", "text": "Too short.\n"}


def test_a_text_of_one_file_can_be_held_out_in_part(tmp_path: Path):
    source = random.Random(2)
    (tmp_path / "book.txt").write_text("\n\n".join(sentence(source, 60) for _ in range(3000)))
    made = make_corpus(CorpusConfig((str(tmp_path / "book.txt"),), heldout_fraction=0.1), tmp_path / "corpus")
    assert made["train"] and made["heldout"]


def test_nothing_left_is_said_with_the_reasons(tmp_path: Path):
    (tmp_path / "a.txt").write_text("short")
    (tmp_path / "b.txt").write_text("1 2 3 4 " * 100)
    with pytest.raises(UserError, match=r"no document is left of 2 \(1 too short, 1 words too short or too long\)"):
        make_corpus(CorpusConfig((str(tmp_path / "*.txt"),)), tmp_path / "corpus")
    assert not (tmp_path / "corpus/.rows.arrow").exists()


def test_filters_can_be_turned_off(tmp_path: Path):
    (tmp_path / "names.txt").write_text("\n".join(f"name{number}" for number in range(30_000)))
    (tmp_path / "list.txt").write_text("- a\n" * 200)
    with_filters = make_corpus(CorpusConfig((str(tmp_path / "*.txt"),)), tmp_path / "with")
    without = make_corpus(CorpusConfig((str(tmp_path / "*.txt"),), quality_filters=False), tmp_path / "without")
    assert {row["path"] for row in with_filters["rejected"]} == {"list.txt"}
    assert not without["rejected"]


def test_ctrl_c_passes_and_leaves_no_spool(folder: Path, tmp_path: Path, monkeypatch):
    def interrupt(work: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("groundup.corpus.pipeline.prepare", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_corpus(CorpusConfig((str(folder),)), tmp_path / "corpus")
    assert not (tmp_path / "corpus/.rows.arrow").exists()


def test_passages_of_prose_are_paragraphs_of_a_readable_size():
    source = random.Random(4)
    paragraphs = [sentence(source, words) for words in (5, 5, 60, 80, 2, 400, 30)]
    for separator in ("\n\n", "\n"):
        passages = text_passages(separator.join(paragraphs) + "\n")
        assert " ".join(" ".join(passage.text for passage in passages).split()) == " ".join(paragraphs)
        assert all(100 <= len(passage.text) <= MAX_PASSAGE_CHARS + 200 for passage in passages)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"paths": ()}, "`paths` is empty"),
        ({"min_chars": 0}, "`min_chars` must be at least 1"),
        ({"near_duplicate_threshold": 0.1}, "between 0.3 and 1"),
        ({"heldout_fraction": 0.9}, "at most 0.5"),
        ({"heldout_fraction": 0.0}, "above 0"),
        ({"quote_words": 3}, "at least 8"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        CorpusConfig(**wrong)
