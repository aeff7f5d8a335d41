"""docs/engine.md: its examples run and hold, and its tables name every option with its default."""

import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import torch
from adapted import write_adapter
from tiny import hot_model

import groundup
from groundup.engine.sampling import Sampling
from groundup.model.presets import build_config
from groundup.tokens.config import CONTROL_TOKENS, PATTERNS
from groundup.tokens.tokenizer import Tokenizer, train

PAGE = (Path(__file__).parents[2] / "docs/engine.md").read_text()


@pytest.fixture
def model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`my-model`, `my-t5` and `my-adapter` in the current folder: they write bytes that nobody taught them."""
    tokenizer = Tokenizer(train(iter([["any text"]]), len(CONTROL_TOKENS) + 256, PATTERNS["code"]))
    for preset, name in (("llama", "my-model"), ("t5", "my-t5")):
        config = build_config(preset, depth=2, vocab_size=tokenizer.vocab_size, context=256, width=32, head_dim=16)
        model = hot_model(config, dtype=torch.float32)
        groundup.save(model, tmp_path / name)
        tokenizer.save(tmp_path / name)
        if preset == "llama":
            write_adapter(tmp_path / "my-adapter", model, "all")
    monkeypatch.chdir(tmp_path)


def test_the_examples_run_one_after_another(model_folder: None, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("llguidance")
    examples = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    for number, example in enumerate(examples, start=1):
        exec(compile(example, f"docs/engine.md, example {number}", "exec"), names)
    assert len(examples) == 10
    assert "prompts[1]: a prompt needs at least one token" in capsys.readouterr().out


def _table(heading: str) -> dict[str, str]:
    """The rows of the table whose first column is called this: name → default."""
    rows = PAGE.partition(f"| {heading} | default |")[2].partition("\n\n")[0]
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", rows, re.MULTILINE))


def test_every_option_of_sampling_is_in_the_table_with_its_default():
    expected = {}
    for field in fields(Sampling):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        expected[field.name] = f"`{default!r}`"
    assert list(_table("option").items()) == list(expected.items())


def test_every_option_of_the_engine_is_in_the_table():
    parameters = inspect.signature(groundup.Engine).parameters
    shown = _table("option of `Engine`")
    assert list(shown) == [name for name in parameters if name != "model"]
    numbers = {name: int(default) for name, default in shown.items() if default.isdigit()}
    assert numbers == {name: one.default for name, one in parameters.items() if type(one.default) is int}


def test_the_forms_are_those_of_the_compiler():
    from groundup.engine.constrain import GrammarCompiler

    rows = PAGE.partition("| form | what it takes |")[2].partition("\n\n")[0]
    offered = [name for name, one in vars(GrammarCompiler).items() if callable(one) and not name.startswith("_")]
    assert sorted(re.findall(r"^\| `(\w+)`", rows, re.MULTILINE)) == sorted(offered)
