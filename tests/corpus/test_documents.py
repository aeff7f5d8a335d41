"""The stage `documents`: what goes in comes out, on the side it was put on."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from groundup.corpus.config import DocumentsConfig
from groundup.corpus.documents import fingerprint, run
from groundup.corpus.tables import DOCUMENT_SCHEMA
from groundup.errors import UserError

TRAIN = [
    "  short \n\n",
    "short",
    "def f(x):\n    '''Doubles x, as the name does not say.'''\n    return 2 * x\n",
    "a ✓",
]


@pytest.fixture
def config(tmp_path: Path) -> DocumentsConfig:
    rows = [{"text": text, "path": "mod.py" if "def" in text else "note"} for text in TRAIN]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "heldout.jsonl").write_text(json.dumps({"text": "short"}) + "\n")
    return DocumentsConfig((str(tmp_path / "train.jsonl"),), (str(tmp_path / "heldout.jsonl"),))


def test_every_document_comes_out_as_it_went_in(config: DocumentsConfig, tmp_path: Path):
    run(config, tmp_path)
    train, heldout = (pq.read_table(tmp_path / f"{split}.parquet") for split in ("train", "heldout"))
    assert train["text"].to_pylist() == TRAIN
    assert heldout["text"].to_pylist() == ["short"]  # although it is in train too: the split is the user's
    assert train.schema.equals(DOCUMENT_SCHEMA)
    assert pq.read_table(tmp_path / "rejected.parquet").num_rows == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["splits"]["train"]["bytes"] == sum(len(text.encode()) for text in TRAIN)


def test_a_module_in_a_row_gives_its_functions_as_passages(config: DocumentsConfig, tmp_path: Path):
    run(config, tmp_path)
    passages = pq.read_table(tmp_path / "passages.parquet").to_pylist()
    assert [(passage["name"], passage["split"]) for passage in passages if passage["kind"] == "function"] == [
        ("mod.f", "train")
    ]


def test_the_fingerprint_changes_with_either_side(config: DocumentsConfig, tmp_path: Path):
    seen = {fingerprint(config)}
    for name in ("train", "heldout"):
        with open(tmp_path / f"{name}.jsonl", "a") as file:
            file.write(json.dumps({"text": "one more"}) + "\n")
        seen.add(fingerprint(config))
    assert len(seen) == 3


def test_half_a_surrogate_pair_is_replaced(config: DocumentsConfig, tmp_path: Path):
    (tmp_path / "train.jsonl").write_text('{"text": "a \\ud83d b"}\n')
    run(config, tmp_path)
    assert pq.read_table(tmp_path / "train.parquet")["text"].to_pylist() == ["a ? b"]


def test_both_sides_must_be_named():
    with pytest.raises(ValueError, match="`heldout` is empty"):
        DocumentsConfig(("train.jsonl",), ())


def test_a_bad_line_is_named(config: DocumentsConfig, tmp_path: Path):
    (tmp_path / "train.jsonl").write_text('{"text": "fine"}\n{"txt": "not"}\n')
    with pytest.raises(UserError, match=r"train.jsonl, line 2: no `text`; it has txt"):
        run(config, tmp_path)
