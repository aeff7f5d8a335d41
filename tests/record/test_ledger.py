import errno
import hashlib
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from groundup.errors import UserError
from groundup.record.ledger import Ledger, Record, code_version, stage_key


def append(ledger: Ledger, stage: str, inputs: dict[str, Record] | None = None, **config: Any) -> Record:
    ids = {name: record.id for name, record in (inputs or {}).items()}
    content = {"summary.json": hashlib.sha256(stage.encode()).hexdigest()}
    return ledger.append(stage, stage_key(stage, config, "code", ids), ids, config, "code", content)


def street(path: Path) -> tuple[Ledger, dict[str, Record]]:
    """corpus → tokenizer → tokens → pretrain, and an unrelated corpus."""
    ledger, made = Ledger(path), {}
    made["corpus"] = append(ledger, "corpus", seed=1)
    made["other"] = append(ledger, "corpus", seed=2)
    made["tokenizer"] = append(ledger, "tokenizer", {"corpus": made["corpus"]}, vocab_size=4096)
    made["tokens"] = append(ledger, "tokens", {"corpus": made["corpus"], "tokenizer": made["tokenizer"]})
    made["pretrain"] = append(ledger, "pretrain", {"tokens": made["tokens"]}, text="grün")
    return ledger, made


def test_what_was_appended_is_read_back_and_verifies(tmp_path: Path) -> None:
    ledger, made = street(tmp_path / "ledger.jsonl")
    again = Ledger(tmp_path / "ledger.jsonl")
    assert again.records == ledger.records == tuple(made.values())
    again.verify()


def test_an_id_is_the_sha256_of_everything_else_in_the_line(tmp_path: Path) -> None:
    street(tmp_path / "ledger.jsonl")
    previous = ""
    for index, line in enumerate((tmp_path / "ledger.jsonl").read_text().splitlines()):
        values = json.loads(line)
        claimed = values.pop("id")
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert claimed == hashlib.sha256(canonical.encode()).hexdigest()
        assert (values["index"], values["previous"]) == (index, previous)
        previous = claimed


def test_two_equal_runs_have_equal_ledgers_byte_for_byte(tmp_path: Path) -> None:
    street(tmp_path / "first.jsonl")
    street(tmp_path / "second.jsonl")
    assert (tmp_path / "first.jsonl").read_bytes() == (tmp_path / "second.jsonl").read_bytes()


@pytest.mark.parametrize("field", ["stage", "key", "inputs", "config", "code", "content", "previous", "index"])
def test_altering_any_field_of_a_line_is_found_and_the_line_named(field: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    street(path)
    lines = path.read_text().splitlines()
    values = json.loads(lines[2])
    altered = {"inputs": {}, "config": {"vocab_size": 1}, "content": {}, "index": 7}.get(field, "0" * 64)
    lines[2] = json.dumps(values | {field: altered})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="line 3: the record was altered"):
        Ledger(path).verify()


def test_a_line_forged_with_a_fitting_id_breaks_the_chain_at_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    _, made = street(path)
    forged = Record(**{**vars(made["tokenizer"]), "config": {"vocab_size": 1}})
    forged = Record(**{**vars(forged), "id": forged.expected_id()})
    lines = path.read_text().splitlines()
    lines[2] = json.dumps(vars(forged))
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="line 4: the chain is broken"):
        Ledger(path).verify()


@pytest.mark.parametrize(
    ("order", "line"), [([1, 2, 3, 4], 1), ([0, 2, 3, 4], 2), ([0, 2, 1, 3, 4], 2), ([0, 0, 1], 2)]
)
def test_removed_moved_and_repeated_lines_are_found(order: list[int], line: int, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    street(path)
    lines = path.read_text().splitlines()
    path.write_text("".join(lines[index] + "\n" for index in order))
    with pytest.raises(UserError, match=f"line {line}: the chain is broken"):
        Ledger(path).verify()


def test_nothing_is_built_on_a_ledger_that_was_tampered_with(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    street(path)
    path.write_text(path.read_text().replace("4096", "8192"))
    before = path.read_bytes()
    with pytest.raises(UserError, match="line 3"):
        append(Ledger(path), "sft")
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ['{"index": 1', "[]", '{"index": 1, "id": "x"}', "\x00\x00"])
def test_a_broken_line_that_is_not_the_last_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    street(path)
    lines = path.read_text().splitlines()
    lines[1] = damage
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="line 2: not a ledger record"):
        Ledger(path)


def test_a_line_torn_at_any_byte_is_dropped_by_the_next_append_and_no_whole_line_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    _, made = street(path)
    whole = path.read_bytes()
    last_line = whole.splitlines(keepends=True)[-1]
    before_last = len(whole) - len(last_line)
    for length in range(1, len(last_line) - 1, 7):
        path.write_bytes(whole[: before_last + length])
        assert len(Ledger(path).records) == 4
        again = append(Ledger(path), "pretrain", {"tokens": made["tokens"]}, text="grün")
        assert path.read_bytes() == whole, "the finished line must stand where the torn one stood"
        assert again == made["pretrain"]


def test_a_last_line_that_lacks_only_its_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    _, made = street(path)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    append(Ledger(path), "sft", {"pretrain": made["pretrain"]})
    Ledger(path).verify()
    assert [record.stage for record in Ledger(path).records] == [
        "corpus", "corpus", "tokenizer", "tokens", "pretrain", "sft",
    ]  # fmt: skip


def test_a_full_disk_leaves_the_ledger_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    street(path)
    before = path.read_bytes()
    program = (
        "import resource, signal, sys; from pathlib import Path; from groundup.record.ledger import Ledger\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); ledger = Ledger(Path(sys.argv[1])); limit = int(sys.argv[2])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))\n"
        "try: ledger.append('sft', 'key', {}, {}, 'code', {})\n"
        "except OSError as error: print(error.errno)"
    )
    limit = len(before) + 20  # twenty bytes of the line still fit
    ended = subprocess.run(
        [sys.executable, "-c", program, str(path), str(limit)], capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == str(errno.EFBIG)
    assert path.read_bytes() == before
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_two_writers_do_not_lose_each_others_records(tmp_path: Path) -> None:
    first, second = Ledger(tmp_path / "ledger.jsonl"), Ledger(tmp_path / "ledger.jsonl")
    append(first, "corpus")
    append(second, "tokenizer")
    append(first, "tokens")
    assert [record.stage for record in first.records] == ["corpus", "tokenizer", "tokens"]
    first.verify()


def test_find_gives_the_latest_record_with_that_key_or_none(tmp_path: Path) -> None:
    ledger, made = street(tmp_path / "ledger.jsonl")
    again = append(ledger, "corpus", seed=1)
    assert again.id != made["corpus"].id
    assert ledger.find("corpus", made["corpus"].key) == again
    assert ledger.find("corpus", made["other"].key) == made["other"]
    assert ledger.find("tokens", made["other"].key) is None


def test_get_takes_a_prefix_and_says_when_it_is_unknown_or_ambiguous(tmp_path: Path) -> None:
    ledger, made = street(tmp_path / "ledger.jsonl")
    assert ledger.get(made["tokens"].id[:10]) == made["tokens"]
    with pytest.raises(UserError, match="no record `xyz`"):
        ledger.get("xyz")
    with pytest.raises(UserError, match="give more of the id"):
        ledger.get("")


def test_ancestry_holds_all_that_a_model_was_made_from_and_nothing_else(tmp_path: Path) -> None:
    ledger, made = street(tmp_path / "ledger.jsonl")
    assert ledger.ancestry(made["pretrain"].id) == [
        made[name] for name in ("corpus", "tokenizer", "tokens", "pretrain")
    ]
    assert ledger.ancestry(made["other"].id[:12]) == [made["other"]]


def test_ancestry_ends_at_inputs_from_elsewhere(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    record = ledger.append("sft", "key", {"model": "f" * 64}, {}, "code", {})
    assert ledger.ancestry(record.id) == [record]


def test_the_key_changes_with_everything_that_decides_the_outcome_and_with_nothing_else() -> None:
    base = stage_key("pretrain", {"depth": 4, "seed": 1}, "c0de", {"tokens": "a", "tokenizer": "b"})
    same = stage_key("pretrain", {"seed": 1, "depth": 4}, "c0de", {"tokenizer": "b", "tokens": "a"})
    assert base == same
    others = {
        stage_key("sft", {"depth": 4, "seed": 1}, "c0de", {"tokens": "a", "tokenizer": "b"}),
        stage_key("pretrain", {"depth": 5, "seed": 1}, "c0de", {"tokens": "a", "tokenizer": "b"}),
        stage_key("pretrain", {"depth": 4}, "c0de", {"tokens": "a", "tokenizer": "b"}),
        stage_key("pretrain", {"depth": 4, "seed": 1}, "c0df", {"tokens": "a", "tokenizer": "b"}),
        stage_key("pretrain", {"depth": 4, "seed": 1}, "c0de", {"tokens": "a2", "tokenizer": "b"}),
        stage_key("pretrain", {"depth": 4, "seed": 1}, "c0de", {"tokens": "b", "tokenizer": "a"}),
        stage_key("pretrain", {"depth": 4, "seed": 1}, "c0de", {"tokens": "a"}),
    }
    assert len(others) == 7 and base not in others


def test_content_hash_depends_on_the_files_and_not_on_where_the_record_stands(tmp_path: Path) -> None:
    ledger, made = street(tmp_path / "ledger.jsonl")
    again = append(ledger, "corpus", seed=1)
    assert again.content_hash == made["corpus"].content_hash
    assert again.content_hash != made["tokens"].content_hash


def test_code_version_follows_every_source_file_of_its_rooms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/filters.py").write_text("a")
    (tmp_path / "corpus/filters.pyc").write_text("compiled")
    (tmp_path / "hardware.py").write_text("b")
    monkeypatch.setattr("groundup.record.ledger._PACKAGE", tmp_path)
    corpus, both = code_version(["corpus"]), code_version(["corpus", "hardware"])
    assert both == code_version(["hardware", "corpus"]) != corpus
    (tmp_path / "corpus/filters.pyc").write_text("compiled again")
    assert code_version(["corpus"]) == corpus
    (tmp_path / "hardware.py").write_text("c")
    assert code_version(["corpus"]) == corpus and code_version(["corpus", "hardware"]) != both
    (tmp_path / "corpus/dedup.py").write_text("")
    assert code_version(["corpus"]) != corpus
    with pytest.raises(ValueError, match="no room `attic`"):
        code_version(["attic"])
