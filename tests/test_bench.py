"""`groundup bench`: what it prints and writes, and how it ends where something is wrong."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from tiny import hot_model, tiny_config

import groundup
from groundup.cli import main

FEW = ["--prompt-tokens", "20", "--new-tokens", "5", "--streams", "1", "3", "--repeats", "2"]


def _saved(preset: str, folder: Path) -> Path:
    groundup.save(hot_model(tiny_config(preset), dtype=torch.float32), folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _saved("llama", tmp_path_factory.mktemp("models") / "tiny")


class _Page(HTMLParser):
    """Which elements a page has, and what it fetches."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.fetched += [
            value for name, value in attributes if name in ("src", "href") and value and not value.startswith("#")
        ]


def test_figures_are_printed_written_and_drawn(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "120")
    files = {"--json": tmp_path / "speed.json", "--plot": tmp_path / "speed.html"}
    flags = [word for flag, path in files.items() for word in (flag, str(path))]
    assert main(["bench", str(folder), *FEW, *flags]) == 0
    printed = capsys.readouterr()
    for word in ("first token", "gap p99", "decode tokens/s", "prefill", "peak memory", "loaded in"):
        assert word in printed.out
    assert "bench: 100 %" in printed.err

    written = json.loads(files["--json"].read_text())
    assert written["model"] == str(folder)
    assert written["plan"] == {"prompt_tokens": 20, "new_tokens": 5, "streams": [1, 3], "repeats": 2}
    assert written["peak_memory_bytes"] > 10**7 and written["load_seconds"] > 0
    assert written["speed"]["prefill_tokens_per_s"] > 0
    rows = written["speed"]["streams"]
    assert [row["streams"] for row in rows] == [1, 3]
    for row in rows:
        assert 0 < row["gap_s"]["p50"] <= row["gap_s"]["p95"] <= row["gap_s"]["p99"]
        assert row["first_token_s"]["p50"] > 0 and row["overall_tokens_per_s"] > 0

    page = _Page(files["--plot"].read_text())
    assert page.elements.count("svg") >= 6 and "table" in page.elements
    assert "script" not in page.elements and page.fetched == []


def test_quiet_leaves_the_result_alone(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setenv("GROUNDUP_QUIET", "")  # put back afterwards, as the flag sets it
    assert main(["bench", str(folder), *FEW, "--quiet"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and "prefill" in printed.out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--streams", "0"], "`streams` must be one or more numbers of at least 1"),
        (["--streams", "two"], "--streams must be integer, not 'two'"),
        (["--new-tokens", "1"], "`new_tokens` must be at least 2, not 1"),
        (["--device", "tpu"], "`device` must be cpu, cuda, or cuda:1 and so on, not 'tpu'"),
        (["--compile-layers"], "`compile_layers` is for models that a GPU runs"),
        (["--repeats", "0"], "`repeats` must be at least 1, not 0"),
        (["--prompt-tokens", "60"], "this model holds texts of 64 tokens"),
        (["--json", "nowhere/speed.json"], "nowhere: there is no such folder"),
        (["--plot", "nowhere/speed.html"], "nowhere: there is no such folder"),
        (["--stream", "1"], "did you mean --streams"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(flags, said: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    small = {"--new-tokens": "5", "--prompt-tokens": "20", "--streams": "1", "--repeats": "1"}
    rest = [word for flag, value in small.items() if flag != flags[0] for word in (flag, value)]
    assert main(["bench", str(folder), *rest, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("groundup: ") and said in line


def test_what_is_no_decoder_is_told_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["bench", str(tmp_path / "none"), *FEW]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert main(["bench", str(_saved("bert", tmp_path / "encoder")), *FEW]) == 2
    assert "a bert model, which cannot go on from a text" in capsys.readouterr().err


def test_ctrl_c_ends_it_with_nothing_half_written(folder: Path, tmp_path: Path):
    """Struck by the engine's thread in the middle of a text, while the main thread waits for tokens."""
    program = f"""
import os, signal, sys
from groundup.cli import main
from groundup.engine.loop import Loop
turn, steps = Loop.step, 0
def step(self):
    global steps
    steps += 1
    if steps == 12:
        os.kill(os.getpid(), signal.SIGINT)
    turn(self)
Loop.step = step
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(["bench", {str(folder)!r}, *{FEW!r}, "--json", {str(tmp_path / "speed.json")!r}]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr and "groundup: interrupted; the same command begins anew" in done.stderr
    assert done.stdout == "" and list(tmp_path.iterdir()) == []
