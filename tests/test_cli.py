"""The command line: what it says, what its verbs do on a small run, how it ends."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from adapted import write_adapter
from small_street import texts

from groundup import __version__
from groundup.cli import main
from groundup.cli.conversation import printable
from groundup.cli.failures import explain
from groundup.cli.parser import build_parser, every_action
from groundup.errors import UserError
from groundup.formats.huggingface import load_decoder
from groundup.recipe.reading import read_recipe
from groundup.recipe.stages import STAGES

VERBS = [
    *"run corpus tokenizer tokens pretrain sft evaluate chat sample".split(),
    *"quantize bench export report ledger doctor completion".split(),
]


def _help(capsys: pytest.CaptureFixture[str], *verb: str) -> str:
    with pytest.raises(SystemExit) as end:
        main([*verb, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_the_help_lists_every_verb_and_where_to_start(capsys: pytest.CaptureFixture[str]):
    shown = _help(capsys)
    assert [verb for verb in VERBS if f"\n    {verb} " not in shown] == []
    assert "groundup run pocket" in shown
    assert main([]) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_explains_each_flag(verb: str, capsys: pytest.CaptureFixture[str]):
    assert "usage: groundup " + verb in _help(capsys, verb)
    unexplained = [action for action in every_action(build_parser()) if not action.help and action.option_strings]
    assert unexplained == []


@pytest.mark.parametrize(
    "stage", [stage for stage in STAGES if stage.name != "documents"], ids=lambda stage: stage.name
)
def test_a_stage_has_the_same_settings_as_flags_and_as_recipe_flags(stage, capsys: pytest.CaptureFixture[str]):
    names = [name.replace("_", "-") for name in stage.config_kind.__dataclass_fields__]
    own, of_recipe = _help(capsys, stage.name), _help(capsys, "run")
    assert [name for name in names if f"--{name} " not in own] == []
    assert [name for name in names if f"--{stage.name}.{name} " not in of_recipe] == []


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"groundup {__version__}\n"


def test_recipes_are_listed_and_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["run"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["pocket", "stories"]
    assert main(["run", "pocket", "--show"]) == 0
    copy = tmp_path / "mine.toml"
    copy.write_text(capsys.readouterr().out)
    assert read_recipe(str(copy)).configs == read_recipe("pocket").configs


def test_completion_knows_the_verbs_and_their_flags(capsys: pytest.CaptureFixture[str]):
    for shell in ("bash", "zsh"):
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert "pretrain" in script
        assert "--batch-tokens" in script


@pytest.mark.parametrize("place", [["--quiet", "run"], ["run", "--quiet"]])
def test_shared_flags_stand_before_the_verb_or_after(place: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert main(place) == 0
    assert os.environ["GROUNDUP_QUIET"] == "1"


def test_threads_are_set_before_any_library_is_loaded():
    program = "import os, sys; from groundup.cli import main; main(['run', '--threads', '1']);"
    program += "import torch; print(torch.get_num_threads())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "1"


# How a command ends


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UserError("what and where"), "what and where"),
        (OSError(28, "No space left on device", "/x/y"), "the disk is full at /x/y"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (PermissionError(13, "Permission denied", "/root/x"), "no permission to use /root/x"),
        (OSError(30, "Read-only file system", "/x/y"), "/x/y lies on a disk that is read-only: choose another"),
        (ModuleNotFoundError("No module named 'rich'", name="rich"), "`rich` is missing"),
        (ModuleNotFoundError("No module named 'groundup.x'", name="groundup.x"), None),
        (ValueError("a defect"), None),
    ],
)
def test_what_a_user_can_mend_is_one_sentence_and_a_defect_is_not(error: Exception, sentence: str | None):
    said = explain(error)
    assert (said is None) == (sentence is None)
    assert said is None or sentence in said


def test_the_cause_of_an_error_is_looked_at():
    try:
        try:
            raise OSError(122, "Disk quota exceeded")
        except OSError as cause:
            raise RuntimeError("could not write") from cause
    except RuntimeError as error:
        assert "quota" in str(explain(error))


@pytest.mark.parametrize(
    ("command", "struck", "next_time"),
    [
        (["run"], "running.shipped_recipes", "goes on from here"),
        (["pretrain", "--out", "x"], "running.remembered", "goes on from here"),
        (["doctor"], "looking._doctor", "begins anew"),
        (["sample", "x"], "talking.find_model", "begins anew"),
        (["--threads", "1", "x"], "parser.parse", "begins anew"),
    ],
)
@pytest.mark.parametrize(("signalled", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_is_interrupted_says_whether_it_goes_on(
    command: list[str], struck: str, next_time: str, signalled: int, code: int, monkeypatch, capsys
):
    """Struck as soon as it does anything: parsing what is asked, finding a model, looking at a run."""
    monkeypatch.setattr(f"groundup.cli.{struck}", lambda *arguments, **options: signal.raise_signal(signalled))
    assert main(command) == code
    assert capsys.readouterr().err == (
        f"groundup: {'interrupted' if code == 130 else 'stopped'}; the same command {next_time}\n"
    )


def test_a_defect_shows_its_traceback_and_where_to_report(monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("groundup.cli.running.shipped_recipes", lambda: 1 / 0)
    assert main(["run"]) == 1
    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said
    assert said.splitlines()[-1].startswith("groundup: this is a defect")


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path):
    command = f"{sys.executable} -m groundup run --help | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""


# The verbs, on a small model

SMALL = "--depth 1 --width 32 --head-dim 16 --context 256 --batch-tokens 512 --micro-batch-tokens 512".split()
SMALL += "--tokens 4096 --compile never --precision float32 --evaluations 1".split()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder made by `pretrain --documents`, and a chat model in it."""
    place = tmp_path_factory.mktemp("cli")
    for split, part in (("train", texts()[:-2]), ("heldout", texts()[-2:])):
        (place / f"{split}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in part))
    documents = ["--documents", str(place / "train.jsonl"), "--heldout", str(place / "heldout.jsonl")]
    folder = place / "run"
    assert main(["pretrain", *documents, *SMALL, "--tokenizer.vocab-size", "300", "--out", str(folder)]) == 0
    chat = "--context 256 --batch-tokens 512 --epochs 0.1 --compile never --precision float32 --evaluations 1".split()
    assert main(["sft", str(folder), *chat]) == 0
    return folder


def _say(monkeypatch: pytest.MonkeyPatch, lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))


def test_pretraining_takes_plain_documents(run: Path):
    stages = [json.loads(line)["stage"] for line in (run / "ledger.jsonl").read_text().splitlines()]
    assert stages == ["documents", "tokenizer", "tokens", "pretrain", "sft"]


def test_a_model_tells_what_it_was_made_of(run: Path):
    story = json.loads((run / "05-sft" / "groundup.json").read_text())
    assert [step["stage"] for step in story["lineage"]] == ["documents", "tokenizer", "tokens", "pretrain", "sft"]
    assert story["cost"]["pretrain"]["wall_seconds"]["value"] > 0
    assert story["lineage"][0]["config"]["train"][0].endswith("train.jsonl")


def test_another_kind_of_model_trains_on_the_same_tokens_and_is_scored_without_a_chat_model(run: Path, tmp_path: Path):
    other = tmp_path / "masked"
    same = ["--shards", str(run), "--tokenizer", str(run)]
    assert main(["pretrain", "--preset", "bert", *same, *SMALL, "--out", str(other)]) == 0
    figures = ["--context", "256", "--ngram-order", "2", "--masked-tokens", "20"]
    assert main(["evaluate", str(other), "--corpus", str(run), "--shards", str(run), *figures]) == 0
    (row,) = json.loads((other / "06-evaluate" / "scores.json").read_text())["hidden_text"]
    summary = json.loads((other / "04-pretrain" / "summary.json").read_text())
    assert row["value"] == pytest.approx(summary["heldout_masked_loss"], rel=1e-5)
    assert main(["report", str(other)]) == 0
    assert "guesses hidden text (masked tokens)" in (other / "report.html").read_text()


def test_an_unknown_preset_is_refused_with_those_there_are(run: Path, tmp_path: Path, capsys):
    assert main(["pretrain", "--preset", "lama", "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "lama" in told and "mixtral" in told and "t5" in told


def test_sample_goes_on_from_the_prompt_and_repeats_itself(run: Path, capsys: pytest.CaptureFixture[str]):
    for _ in range(2):
        assert main(["sample", str(run), "--prompt", "The ", "--max-tokens", "5", "--seed", "3"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("The ")
    assert shown[: len(shown) // 2] == shown[len(shown) // 2 :]


def test_sample_says_that_a_prompt_is_too_long(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["sample", str(run), "--prompt", "word " * 300]) == 2
    assert "leaves no room: this model holds 256" in capsys.readouterr().err


def test_an_adapter_changes_what_is_said(run: Path, tmp_path: Path, monkeypatch, capsys):
    def sampled(*flags: str) -> str:
        assert main(["sample", str(run), "--prompt", "The ", "--max-tokens", "20", "--temperature", "0", *flags]) == 0
        return capsys.readouterr().out

    def answered(*flags: str) -> str:
        _say(monkeypatch, "hello\n")
        assert main(["chat", str(run), "--max-tokens", "20", *flags]) == 0
        return capsys.readouterr().out

    adapter = write_adapter(tmp_path / "lora", load_decoder(run / "04-pretrain"), "attention")
    flags = ["--adapter", str(adapter)]
    assert sampled() != sampled(*flags) == sampled(*flags)
    assert answered() != answered(*flags) == answered(*flags)
    assert main(["sample", str(run), "--adapter", str(tmp_path / "none")]) == 2
    assert "adapter_config.json: there is no such file" in capsys.readouterr().err


def test_chat_answers_a_script_and_obeys_commands(run: Path, tmp_path: Path, monkeypatch, capsys):
    notes, saved = tmp_path / "notes.txt", tmp_path / "chat.json"
    notes.write_text("Notes on squares.")
    _say(monkeypatch, f"/help\n/document {notes}\n/system be brief\nhello\n\n/save {saved}\n/quit\nnever read\n")
    assert main(["chat", str(run), "--max-tokens", "4"]) == 0
    shown = capsys.readouterr().out
    assert "/temperature T" in shown
    assert "> hello\n" in shown
    assert "never read" not in shown
    messages = json.loads(saved.read_text())
    assert [message["role"] for message in messages[:3]] == ["system", "document", "user"]
    assert messages[0]["content"] == "be brief"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/dance", "no command `/dance`"),
        ("/document nowhere.txt", "nowhere.txt: No such file"),
        ("/temperature warm", "/temperature takes a number"),
        ("/temperature -1", "/temperature takes a number"),
        ("/save", "/save takes the path"),
    ],
)
def test_a_command_that_cannot_be_obeyed_ends_a_script(line: str, sentence: str, run: Path, monkeypatch, capsys):
    _say(monkeypatch, f"{line}\n")
    assert main(["chat", str(run)]) == 2
    assert sentence in capsys.readouterr().err


def test_what_a_model_writes_cannot_steer_the_terminal():
    assert printable("a\x1b[31mred\x07\n\tb é ✓") == "a\ufffd[31mred\ufffd\n\tb é ✓"


def test_the_ledger_can_be_read_and_checked(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["ledger", "show", "--run", str(run)]) == 0
    listed = capsys.readouterr().out
    assert main(["ledger", "show", "pretrain", "--run", str(run)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["id"][:12] in listed
    assert main(["ledger", "trace", record["id"][:8], "--run", str(run)]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == [
        *("documents", "tokenizer", "tokens", "pretrain"),
    ]
    assert main(["ledger", "show", "ffffffffffff", "--run", str(run)]) == 2


def _flip_a_byte(path: Path) -> Callable[[], object]:
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    return lambda: path.write_bytes(whole)


@pytest.mark.parametrize("name", ["04-pretrain/model.safetensors", "ledger.jsonl"])
def test_a_changed_byte_is_found(name: str, run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["ledger", "verify", "--run", str(run)]) == 0
    mend = _flip_a_byte(run / name)
    try:
        assert main(["ledger", "verify", "--run", str(run)]) == 2
    finally:
        mend()
    assert name in capsys.readouterr().err


def test_a_folder_without_a_record_is_found(run: Path, capsys: pytest.CaptureFixture[str]):
    ledger = run / "ledger.jsonl"
    whole = ledger.read_bytes()
    ledger.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    try:
        assert main(["ledger", "verify", "--run", str(run)]) == 2
    finally:
        ledger.write_bytes(whole)
    assert "05-sft" in capsys.readouterr().err


def test_the_preview_shows_conversations_and_trains_nothing(run: Path, capsys: pytest.CaptureFixture[str]):
    before = (run / "ledger.jsonl").read_bytes()
    assert main(["sft", str(run), "--preview"]) == 0
    assert "trained on" in capsys.readouterr().out
    assert (run / "ledger.jsonl").read_bytes() == before


def test_the_report_is_one_page(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert (run / "report.html").read_text().startswith("<!doctype html>")
