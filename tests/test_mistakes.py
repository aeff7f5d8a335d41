"""Mistakes of newcomers at the command line: one sentence that says what would be right, exit code 2, nothing left."""

import io
import math
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import hot_model

import groundup
from groundup.cli import main
from groundup.model.presets import build_config
from groundup.tokens.config import CONTROL_TOKENS, PATTERNS
from groundup.tokens.tokenizer import Tokenizer, train

BENCH = ["--streams", "1", "--prompt-tokens", "8", "--new-tokens", "4", "--repeats", "1"]
W8 = ["--out", "new", "--format", "w8"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder and an encoder whose tokens are bytes, and what is no whole model."""
    root = tmp_path_factory.mktemp("models")
    words = Tokenizer(train(iter([["any text"]]), len(CONTROL_TOKENS) + 256, PATTERNS["qwen2"]))
    for preset in ("llama", "bert"):
        config = build_config(preset, depth=1, vocab_size=words.vocab_size, context=64, width=32, head_dim=16)
        groundup.save(hot_model(config, dtype=torch.float32), root / preset)
        words.save(root / preset)
    for name, file, content in (
        ("undecided", "generation_config.json", '{"eos_token_id": "x"}'),
        ("unsummed", "summary.json", "[]"),
    ):
        shutil.copytree(root / "llama", root / name)
        (root / name / file).write_text(content)
    shutil.copytree(root / "llama", root / "numberless")
    weights = load_file(root / "llama" / "model.safetensors")
    save_file({name: math.nan * one for name, one in weights.items()}, root / "numberless" / "model.safetensors")
    for name, missing in (("wordless", "tokenizer.json"), ("weightless", "model.safetensors")):
        shutil.copytree(root / "llama", root / name)
        (root / name / missing).unlink()
    return root


@pytest.fixture
def place(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with links to the models, and files that are taken for others; one message waits to be read."""
    for folder in models.iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "text.txt").write_text("some words here. " * 40)
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    (tmp_path / "fake.gguf").write_bytes(b"no GGUF")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GROUNDUP_QUIET", "1")
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    return tmp_path


def _told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that a command ends with."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert printed.out == "" and line.startswith("groundup: ")
    return line


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no such model": (
        ["bench", "nowhere"],
        "nowhere: there is no such folder; `groundup run pocket` makes runs/pocket",
    ),
    "a file as a model": (["sample", "text.txt"], "text.txt is a file; a model is a folder with config.json and"),
    "a name beyond all names": (
        ["quantize", "llama", "--out", 300 * "x", "--format", "w8", "--unmeasured"],
        "xxx is too long a name",
    ),
    "a file of a model": (["bench", "llama/config.json"], "llama/config.json is a file; a model is a folder with"),
    "a GGUF file as a model": (["chat", "fake.gguf"], "which `groundup export fake.gguf --to FOLDER` makes of it"),
    "a folder that is no model": (["quantize", "empty", *W8, "--unmeasured"], "empty holds no model to use here"),
    "a model without weights": (["bench", "weightless", *BENCH], "weightless has no model.safetensors"),
    "a model without words": (["sample", "wordless"], "wordless/tokenizer.json: no such file"),
    "a model that does not write": (["sample", "bert"], "bert holds a bert model, which cannot go on from a text"),
    "a model of no numbers": (
        ["bench", "numberless", *BENCH],
        "the largest of the logits is nan: no token can be chosen",
    ),
    "an end that is no token": (["bench", "undecided", *BENCH], "`eos_token_id` must be token ids below"),
    "no summary": (["quantize", "unsummed", *W8, "--unmeasured"], "unsummed/summary.json must hold a JSON object"),
    "prompts beyond all memory": (
        ["bench", "llama", "--prompt-tokens", "1" + 20 * "0"],
        "this model holds texts of 64 tokens, which has no room for 1000",
    ),
    "figures into a folder": (["bench", "llama", *BENCH, "--json", "empty"], "empty is a folder; name a file to write"),
    "figures where nothing can be": (
        ["bench", "weightless", *BENCH, "--json", "/proc/speed.json"],
        "/proc/speed.json cannot be written (No such file or directory); choose another place",
    ),
    "drawing under too long a name": (
        ["bench", "weightless", *BENCH, "--plot", 250 * "x"],
        "xxx cannot be written (File name too long); choose another place",
    ),
    "drawing into a pipe": (
        ["bench", "weightless", *BENCH, "--plot", "pipe"],
        "pipe is a device or a pipe, which the file would replace; name a file to write",
    ),
    "few bits where nothing can be": (
        ["quantize", "weightless", "--out", "/proc/new", "--format", "w8", "--unmeasured"],
        "/proc/new cannot be written (No such file or directory); choose another place",
    ),
    "GGUF where nothing can be": (
        ["export", "weightless", "--to", "/proc/new.gguf"],
        "/proc/new.gguf cannot be written (No such file or directory); choose another place",
    ),
    "a folder where nothing can be": (
        ["export", "fake.gguf", "--to", "/proc/new"],
        "/proc/new cannot be written (No such file or directory); choose another place",
    ),
    "a run where nothing can be": (
        ["run", "pocket", "--out", "/proc/new"],
        "/proc/new: nothing can be written there; name another folder with --out",
    ),
    "a stage where nothing can be": (
        ["corpus", "--paths", "text.txt", "--out", "/proc"],
        "/proc: nothing can be written there; name another folder with --out",
    ),
    "drawing into a folder": (["bench", "llama", *BENCH, "--plot", "empty"], "empty is a folder; name a file to write"),
    "no value": (["bench", "llama", "--streams"], "expected at least one argument; `groundup bench --help` shows"),
    "no model": (["quantize", *W8], "arguments are required: RUN|MODEL; `groundup quantize --help` shows"),
    "no format": (["quantize", "llama", "--out", "new"], "are required: --format; `groundup quantize --help` shows"),
    "unknown format": (
        ["quantize", "llama", "--out", "new", "--format", "q4_0"],
        "invalid choice: 'q4_0' (choose from 'w8', 'w4', 'w4_g32'); `groundup quantize --help` shows what is accepted",
    ),
    "nothing to measure on": (["quantize", "llama", *W8], "give --heldout texts, or --unmeasured to write it all the"),
    "missing text": (["quantize", "llama", *W8, "--heldout", "no.txt"], "no.txt: no such file or folder"),
    "blank text": (["quantize", "llama", *W8, "--heldout", "blank.txt"], "blank.txt: there is no text in it"),
    "folder without text": (["quantize", "llama", *W8, "--heldout", "empty"], "empty: the folder holds no text"),
    "text that is none": (["quantize", "llama", *W8, "--heldout", "binary.txt"], "binary.txt, line 2: not UTF-8"),
    "model as text": (
        ["quantize", "llama", *W8, "--heldout", "fake.gguf"],
        "fake.gguf: unknown kind of file; accepted",
    ),
    "into a folder that is there": (
        ["quantize", "llama", "--out", "empty", "--format", "w8", "--unmeasured"],
        "empty is there already; name a folder that is not",
    ),
    "no tokens": (["sample", "llama", "--max-tokens", "0"], "`max_tokens` must be an integer of at least 1, not 0"),
    "below zero": (
        ["sample", "llama", "--temperature", "-1"],
        "`temperature` must be a number of at least 0, not -1.0",
    ),
    "no number": (["sample", "llama", "--top-k", "few"], "invalid int value: 'few'; `groundup sample --help` shows"),
    "bytes as a prompt": (
        ["sample", "llama", "--prompt", "so \udcff"],
        "--prompt: text is not valid Unicode at character 3; send UTF-8 text",
    ),
    "bytes as a system message": (["chat", "llama", "--system", "\udcff"], "is not valid Unicode at character 0"),
    "no such document": (
        ["chat", "llama", "--document", "no.txt"],
        "no.txt: No such file or directory; /document takes",
    ),
    "hub without a name": (["export", "hf:", "--to", "new.gguf"], "`hf:` names no model; write hf:organisation/model"),
    "a folder into a folder": (
        ["export", "llama", "--to", "new"],
        "a model folder is exported `--to` a file that ends",
    ),
    "into a folder of that name": (
        ["export", "llama", "--to", "folder.gguf"],
        "folder.gguf is a folder; name a file to",
    ),
    "no GGUF file": (["export", "fake.gguf", "--to", "new"], "fake.gguf: no GGUF file: it does not begin with GGUF"),
    "GGUF into no folder": (["export", "fake.gguf", "--to", "no/new"], "no: there is no such folder to write into"),
    "unknown type": (
        ["export", "llama", "--to", "new.gguf", "--type", "q3"],
        "(choose from 'f32', 'f16', 'bf16', 'q8_0',",
    ),
    "nowhere to look": (["doctor", "--run", "nowhere"], "nowhere: there is no such folder; name one that runs can be"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_a_sentence_and_leaves_nothing(name: str, place: Path, capsys: pytest.CaptureFixture[str]):
    arguments, said = MISTAKES[name]
    before = sorted(place.iterdir())
    assert said in _told(arguments, capsys)
    assert sorted(place.iterdir()) == before and list((place / "empty").iterdir()) == []


def test_a_run_that_was_not_fine_tuned_names_the_model_it_has(place: Path, capsys: pytest.CaptureFixture[str]):
    (place / "llama").rename(place / "empty" / "04-pretrain")
    said = "empty holds no model to use here: `groundup sft --out empty` makes one, or name empty/04-pretrain"
    assert said in _told(["quantize", "empty", *W8, "--unmeasured"], capsys)


def test_a_script_of_other_bytes_than_text_is_refused(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    assert "the input is not UTF-8 text (byte 3)" in _told(["chat", "llama"], capsys)


def test_half_a_surrogate_pair_in_heldout_text_is_replaced(place: Path, capsys: pytest.CaptureFixture[str]):
    """JSON can spell it; `groundup corpus` and `documents` take such rows too."""
    (place / "rows.jsonl").write_text('{"text": "some \\ud800 words"}\n' * 9)
    assert main(["quantize", "llama", *W8, "--heldout", "rows.jsonl"]) == 0
    assert f"held-out text   {9 * len('some ? words')} bytes" in capsys.readouterr().out
