"""Bad input, full disks, Ctrl-C and kills, through the command line as a user meets them."""

import json
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_street import RECIPE, write_texts

INTERRUPTING = Path(__file__).with_name("interrupting.py")
# Each stage's folder, and at which of its reports of progress it is struck: training far enough to have checkpoints.
STAGES = {
    "corpus": ("01-corpus", 1),
    "tokenizer": ("02-tokenizer", 1),
    "tokens": ("03-tokens", 1),
    "pretrain": ("04-pretrain", 4),
    "sft": ("05-sft", 3),
    "evaluate": ("06-evaluate", 1),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a recipe and its texts, to work in."""
    (tmp_path / "mini.toml").write_text(RECIPE)
    write_texts(tmp_path / "texts")
    return tmp_path


def groundup(place: Path, *arguments: str, program: tuple[str, ...] = ("-m", "groundup"), **options: object):
    return subprocess.run(
        [sys.executable, *program, *arguments, "--threads", "1"],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
        **options,  # type: ignore[call-overload]
    )


def assert_one_sentence(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    """The command ended with `code` and a single line from groundup, the last one, that holds all parts."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("groundup: ")] == lines[-1:], done.stderr
    for part in parts:
        assert part in lines[-1]


def assert_nothing_half_made(run: Path) -> None:
    """Whatever stands in the run folder under its final name is whole and stamped so."""
    for folder in run.glob("[0-9]*"):
        stamp = json.loads((folder / ".stage.json").read_text())
        assert {name: (folder / name).stat().st_size for name in stamp["sizes"]} == stamp["sizes"]


# Bad input


def _empty_folder(place: Path) -> None:
    shutil.rmtree(place / "texts")
    (place / "texts").mkdir()


def _not_utf8(place: Path) -> None:
    (place / "texts" / "latin.txt").write_bytes("erste Zeile\nna\u00efve Worte".encode("latin-1"))


def _truncated_parquet(place: Path) -> None:
    path = place / "texts" / "rows.parquet"
    pq.write_table(pa.table({"text": ["some words to read"] * 500}), path)
    path.write_bytes(path.read_bytes()[:-100])


def _torn_json_line(place: Path) -> None:
    (place / "texts" / "rows.jsonl").write_text('{"text": "whole"}\n{"text": "to')


def _cut_archive(place: Path) -> None:
    import gzip

    (place / "texts" / "cut.txt.gz").write_bytes(gzip.compress(random.Random(1).randbytes(9000))[:-1000])


def _recipe(before: str, after: str) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        assert before in RECIPE
        (place / "mini.toml").write_text(RECIPE.replace(before, after))

    return change


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (_empty_folder, ("texts", "holds no text", ".jsonl")),
        (_not_utf8, ("latin.txt, line 2", "not UTF-8")),
        (_truncated_parquet, ("rows.parquet", "cut short")),
        (_torn_json_line, ("rows.jsonl, line 2", "JSON")),
        (_cut_archive, ("cut.txt.gz", "cut short")),
        (_recipe('["texts"]', '["nowhere"]'), ("nowhere", "no such file or folder")),
        (_recipe("depth = 1", "dept = 1"), ("mini.toml [pretrain]", "`dept`", "did you mean `depth`")),
        (_recipe("depth = 1", "depth = 'deep'"), ("mini.toml [pretrain]", "`depth` must be integer", "'deep'")),
        (_recipe("[tokenizer]", "[tokeniser]"), ("mini.toml", "`tokeniser`", "did you mean [tokenizer]")),
        (_recipe("tokens = 10240", "tokens = 10240\nminutes = 1.0"), ("give one budget", "minutes and tokens")),
        (_recipe("[tokens]", "[tokens"), ("mini.toml", "TOML", "line")),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_bad_input_gets_one_sentence_and_leaves_nothing(
    spoil: Callable[[Path], None], parts: tuple[str, ...], place: Path
):
    spoil(place)
    assert_one_sentence(groundup(place, "run", "mini.toml"), 2, *parts)
    run = place / "runs" / "mini"
    assert not run.exists() or {path.name for path in run.iterdir()} <= {".lock"}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["run", "mini.toml", "--pretrain.depth", "deep"], ("--pretrain.depth must be integer", "deep")),
        (["run", "mini.toml", "--pretrain.dept", "2"], ("--pretrain.dept", "did you mean --pretrain.depth")),
        (["run", "nothing"], ("no recipe `nothing`", "pocket")),
        (["rnu"], ("no verb `rnu`", "did you mean run")),
        (["pretrain"], ("which run folder", "--out")),
        (["pretrain", "--documents", "mini.toml", "--out", "x"], ("--documents and --heldout go together",)),
        (["evaluate", "nowhere"], ("nowhere", "`groundup corpus --out nowhere`")),
        (["chat", "nowhere"], ("nowhere", "no such folder")),
        (["sample", "texts"], ("texts holds no model",)),
        (["report", "texts"], ("texts is no run folder",)),
        (["ledger", "show", "--run", "texts"], ("no ledger.jsonl in texts",)),
        (["run", "mini.toml", "--out", "mini.toml"], ("mini.toml is a file",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_arguments_get_one_sentence(arguments: list[str], parts: tuple[str, ...], place: Path):
    assert_one_sentence(groundup(place, *arguments), 2, *parts)


# Interruptions


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a run that nothing disturbed."""
    place = tmp_path_factory.mktemp("unbroken")
    (place / "mini.toml").write_text(RECIPE)
    write_texts(place / "texts")
    done = groundup(place, "run", "mini.toml")
    assert done.returncode == 0, done.stderr
    return place / "runs" / "mini"


def assert_equal_runs(run: Path, unbroken: Path) -> None:
    assert (run / "ledger.jsonl").read_bytes() == (unbroken / "ledger.jsonl").read_bytes()
    # The ledger holds the hashes of all files; metrics are looked at once more because a reader would.
    for name in ("04-pretrain/metrics.jsonl", "05-sft/metrics.jsonl", "04-pretrain/model.safetensors"):
        assert (run / name).read_bytes() == (unbroken / name).read_bytes()
    assert not list(run.glob(".*.partial"))


@pytest.mark.slow  # beside the one that kills, and that of a training that is interrupted (train/test_resume.py)
def test_a_run_interrupted_in_every_stage_ends_as_an_unbroken_one(place: Path, unbroken: Path):
    run = place / "runs" / "mini"
    for stage, (folder, count) in STAGES.items():
        done = groundup(place, "run", "mini.toml", program=(str(INTERRUPTING), stage, "SIGINT", str(count)))
        assert_one_sentence(done, 130, "interrupted", "the same command goes on")
        assert not (run / folder).exists()
        assert_nothing_half_made(run)
    assert groundup(place, "run", "mini.toml").returncode == 0
    assert_equal_runs(run, unbroken)


def test_a_run_killed_in_every_stage_ends_as_an_unbroken_one(place: Path, unbroken: Path):
    run = place / "runs" / "mini"
    for stage, (folder, count) in STAGES.items():
        done = groundup(place, "run", "mini.toml", program=(str(INTERRUPTING), stage, "SIGKILL", str(count)))
        assert done.returncode == -9
        assert not (run / folder).exists()
        assert_nothing_half_made(run)
    assert groundup(place, "run", "mini.toml").returncode == 0
    assert_equal_runs(run, unbroken)


def test_a_request_to_end_is_obeyed(place: Path):
    done = groundup(place, "run", "mini.toml", program=(str(INTERRUPTING), "tokens", "SIGTERM", "1"))
    assert_one_sentence(done, 143, "stopped")


# Full disks


@pytest.mark.parametrize("stage", STAGES)
def test_a_file_that_may_not_grow_gets_one_sentence_in_every_stage(stage: str, place: Path, unbroken: Path):
    run, (folder, _) = place / "runs" / "mini", STAGES[stage]
    shutil.copytree(unbroken, run)
    shutil.rmtree(run / folder)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    done = groundup(place, "run", "mini.toml", preexec_fn=limit)
    assert_one_sentence(done, 2, "size limit", "make room")
    assert not (run / folder).exists()
    assert_nothing_half_made(run)
    assert (run / "ledger.jsonl").read_bytes() == (unbroken / "ledger.jsonl").read_bytes()


def _can_mount() -> bool:
    command = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


@pytest.mark.skipif(not _can_mount(), reason="needs user namespaces, to mount a small disk")
@pytest.mark.parametrize("size_kb", [48, 120, 700])
def test_a_full_disk_gets_one_sentence_and_loses_nothing(size_kb: int, place: Path, unbroken: Path):
    script = f"""
mkdir runs; mount -t tmpfs -o size={size_kb}k tmpfs runs
"$0" -m groundup run mini.toml --threads 1; code=$?
cp -r runs kept
mount -o remount,size=64m runs
"$0" -m groundup run mini.toml --threads 1 --quiet || exit 1
cp -r runs completed
exit $code
"""
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, sys.executable]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert_one_sentence(done, 2, "the disk is full", "make room")
    assert_nothing_half_made(place / "kept" / "mini")
    assert_equal_runs(place / "completed" / "mini", unbroken)
