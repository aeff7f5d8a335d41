"""Files that are whole or absent, and hashes that say what a folder holds."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from groundup.storage import (
    finish_folder,
    hash_file,
    hash_folder,
    hash_value,
    staged,
    working_folder,
    write_atomically,
    write_json,
)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_json_is_written_as_it_reads(tmp_path: Path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None], "a": "ü"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"b": [1, 2.5, None], "a": "ü"}
    assert "ü" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_a_finished_folder_replaces_the_old_one_as_a_whole(tmp_path: Path):
    out = tmp_path / "out"
    for round, name in enumerate(("first", "second")):
        working = working_folder(out)
        assert working.parent == tmp_path
        working.mkdir()
        (working / name).write_text(str(round))
        finish_folder(working, out)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert [entry.name for entry in out.iterdir()] == ["second"]


def test_staged_files_come_at_once_beside_others_and_replace_their_forerunners(tmp_path: Path):
    out = tmp_path / "deep" / "out"
    for name in ("first.bin", "second.bin"):
        with staged(out, replaces=("*.bin",)) as working:
            (working / name).write_text(name)
            assert not (out / name).exists()
        (out / "notes.txt").write_text("kept")
    assert sorted(entry.name for entry in out.iterdir()) == ["notes.txt", "second.bin"]
    assert [entry.name for entry in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=repr)
def test_staging_that_fails_changes_nothing(error: BaseException, tmp_path: Path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "first.bin").write_text("first")
    for out in (tmp_path / "old", tmp_path / "new"):
        with pytest.raises(type(error)), staged(out, replaces=("*.bin",)) as working:
            (working / "second.bin").write_text("second")
            raise error
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["old", "old/first.bin"]


def test_hashes_are_those_of_sha256(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"abc")
    assert hash_file(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()
    assert hash_value({"b": 1, "a": ["ü"]}) == hashlib.sha256('{"a":["ü"],"b":1}'.encode()).hexdigest()


def test_a_folder_is_its_content_without_hidden_and_measured_files(tmp_path: Path):
    for name in ("b/deep.txt", "a.txt", "cost.json", "timings.jsonl", "groundup.json", ".stage.json", ".hidden/x"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    assert list(hash_folder(tmp_path)) == ["a.txt", "b/deep.txt"]
    before = hash_folder(tmp_path)
    (tmp_path / "b" / "deep.txt").write_text("changed")
    assert hash_folder(tmp_path) != before
