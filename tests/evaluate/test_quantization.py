"""The verb `quantize`: what it measures against brute force, what it writes, and what it refuses."""

import inspect
import json
import math
import re
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tiny import hot_decoder, tiny_config

import groundup
from groundup.cli import main, quantizing
from groundup.errors import UserError
from groundup.evaluate import quantization
from groundup.evaluate.likelihood import score_heldout
from groundup.evaluate.quantization import Method, QuantizeConfig, TextStream, compare, quantize_folder
from groundup.formats.huggingface import load_language_model
from groundup.model.language_model import LanguageModel
from groundup.quantize.convert import places, quantize_model, quantized_format
from groundup.quantize.matrix import W4, W8, WEIGHT_FORMATS, dequantize
from groundup.quantize.training import rounded
from groundup.record.metrics import VALUES_FILE, read_lines
from groundup.storage import hash_file
from groundup.tokens.tokenizer import Tokenizer
from groundup.train.config import Format
from groundup.train.heldout import heldout_loss


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short documents."""
    path = tmp_path_factory.mktemp("texts") / "heldout.jsonl"
    documents = (inspect.getsource(textwrap)[:700], "A short one: ä ö ü.")
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return path


@torch.no_grad()
def _by_hand(before: LanguageModel, after: LanguageModel, text: TextStream, bos: int, context: int) -> list[float]:
    """Nats of each model and divergence, one token after the other, each from its document's part of its window."""
    sums = [0.0, 0.0, 0.0]
    for place in range(text.total_tokens):
        document = max(int(offset) for offset in text.offsets if offset <= place)
        start = max(document, place // context * context)
        past = torch.tensor([[bos, *text.tokens(start, place).tolist()]])
        one, other = (model(past)[0, -1].double().log_softmax(-1) for model in (before, after))
        token = int(text.tokens(place, place + 1)[0])
        sums[0] -= float(one[token])
        sums[1] -= float(other[token])
        sums[2] += sum(math.exp(p) * (p - q) for p, q in zip(one.tolist(), other.tolist(), strict=True))
    return sums


def test_a_tokenizer_of_another_model_is_refused(pretrained: Callable[[str], Path], texts: Path):
    words = Tokenizer.load(pretrained("llama"))
    with pytest.raises(UserError, match=r"the tokenizer makes token \d+ of .*, but the model's vocabulary ends at 29"):
        TextStream([str(texts)], words, 30)


def test_figures_are_those_of_one_token_after_the_other(
    pretrained: Callable[[str], Path], texts: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(quantization, "HEAD_TOKENS", 7)
    folder = pretrained("llama")
    words, before, after = Tokenizer.load(folder), load_language_model(folder), load_language_model(folder)
    quantize_model(after, W4)
    text = TextStream([str(texts)], words, words.vocab_size)
    found = compare(before, after, text, 24)
    expected = _by_hand(before, after, text, words.bos_id, 24)
    assert [found.before_nats, found.after_nats, found.divergence_nats] == pytest.approx(expected, rel=1e-3)
    read = [json.loads(line)["text"] for line in texts.read_text(encoding="utf-8").splitlines()]
    assert (found.tokens, found.bytes) == (text.total_tokens, sum(len(one.encode()) for one in read))
    figures = found.figures()
    assert figures["bits_per_byte_before"] == pytest.approx(expected[0] / math.log(2) / found.bytes, rel=1e-4)
    loss = heldout_loss(before, text, 24, words.bos_id)
    assert figures["bits_per_byte_before"] == pytest.approx(loss.bits_per_byte, rel=1e-6)
    assert figures["change_percent"] == pytest.approx(100 * (expected[1] - expected[0]) / expected[0], rel=0.02)
    assert figures["kl_divergence_nats"] == pytest.approx(expected[2] / text.total_tokens, rel=1e-3)


def test_a_folder_is_written_with_its_record(
    pretrained: Callable[[str], Path], texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder, out = pretrained("llama"), tmp_path / "out"
    command = ["quantize", str(folder), "--out", str(out), "--format", "w8", "--heldout", str(texts), "--context", "32"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    record = json.loads((out / "quantization.json").read_text())
    assert f"({record['change_percent']:+.2f} %)" in shown and "KL divergence" in shown and str(out) in shown
    assert record["trained_for"] is None and "trained for" not in shown
    assert (record["format"], record["method"], record["measured"], record["context"]) == ("w8", "nearest", True, 32)
    assert record["made_from"]["model.safetensors"] == hash_file(folder / "model.safetensors")
    assert record["good"] is None and f"not judged: {record['texts']['heldout']['tokens']} tokens of" in shown
    loaded = groundup.load(out)
    assert quantized_format(loaded) == W8
    assert Tokenizer.load(out).encode("def f():") == Tokenizer.load(folder).encode("def f():")
    assert main(["sample", str(out), "--prompt", "def ", "--max-tokens", "4", "--temperature", "0"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("limit", [100.0, -100.0])
def test_a_model_is_judged_by_as_much_text_as_it_takes(
    limit: float,
    pretrained: Callable[[str], Path],
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setitem(quantization.LIMITS, "w8", limit)
    words = Tokenizer.load(pretrained("llama"))
    total = TextStream([str(texts)], words, words.vocab_size).total_tokens
    command = ["quantize", str(pretrained("llama")), "--format", "w8", "--heldout", str(texts), "--context", "32"]
    for least, good in ((total, limit > 0), (total + 1, None)):
        monkeypatch.setattr(quantization, "LEAST_TOKENS", least)
        assert main([*command, "--out", str(tmp_path / str(least))]) == 0
        record = json.loads((tmp_path / str(least) / "quantization.json").read_text())
        assert (record["good"], record["least_heldout_tokens"]) == (good, least)
        shown = capsys.readouterr().out
        assert ("not judged" in shown) == (good is None) and ("more than the format" in shown) == (good is False)


@pytest.mark.parametrize(
    ("calibration", "heldout", "said"),
    [
        (["all.jsonl"], ["all.jsonl"], "2 of 2, such as all.jsonl, row 1 (calibrated on as all.jsonl, row 1)"),
        (["texts"], ["texts/one.txt"], "1 of 1, such as texts/one.txt (calibrated on as texts, one.txt)"),
        (["texts/*.md"], ["texts"], "1 of 2, such as texts, other.md (calibrated on as texts/*.md, other.md)"),
        (["copy.jsonl"], ["texts", "all.jsonl"], "2 of 4, such as texts, one.txt (calibrated on as copy.jsonl, row 1)"),
    ],
)
def test_held_out_text_that_is_calibrated_on_is_refused_whatever_it_is_called(
    calibration: list[str],
    heldout: list[str],
    said: str,
    pretrained: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    folder = pretrained("llama")
    monkeypatch.chdir(tmp_path)
    one, other = "The sea is blue.", "Rivers are long."
    Path("texts").mkdir()
    Path("texts/one.txt").write_text(one + "\n")
    Path("texts/other.md").write_text(other + "\n")
    Path("all.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in (one, other)))
    Path("copy.jsonl").write_text(json.dumps({"text": one}) + "\n")
    config = QuantizeConfig("w4", calibration=tuple(calibration), heldout=tuple(heldout))
    with pytest.raises(UserError, match=re.escape(f"held-out documents that are calibrated on as well: {said}; ")):
        quantize_folder(config, folder, Path("out"))
    assert not Path("out").exists()


def test_calibration_is_used_and_recorded(pretrained: Callable[[str], Path], texts: Path, tmp_path: Path):
    # The same words in one document, so that so little of it does not decide between two ways to round.
    words = [json.loads(line)["text"] for line in texts.read_text(encoding="utf-8").splitlines()]
    calibration = str(tmp_path / "calibration.txt")
    Path(calibration).write_text("\n".join(words), encoding="utf-8")
    config = QuantizeConfig("w4", calibration=(calibration,), heldout=(str(texts),), context=32, calibration_windows=4)
    record = quantize_folder(config, pretrained("llama"), tmp_path / "out")
    plain = QuantizeConfig("w4", heldout=(str(texts),), context=32)
    nearest_record = quantize_folder(plain, pretrained("llama"), tmp_path / "nearest")
    assert (record["method"], nearest_record["method"]) == ("calibrated", "nearest")
    assert record["kl_divergence_nats"] < nearest_record["kl_divergence_nats"]
    assert set(record["texts"]) == {"calibration", "heldout"}


def test_what_nobody_measured_is_not_called_good(
    pretrained: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = ["quantize", str(pretrained("bert")), "--out", str(tmp_path / "out"), "--format", "w4"]
    assert main(command) == 2
    assert "whose loss was not measured cannot be called good" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*command, "--unmeasured"]) == 0
    assert "not measured: nobody knows what this model has lost" in capsys.readouterr().out
    record = json.loads((tmp_path / "out/quantization.json").read_text())
    assert record["measured"] is False and "good" not in record


def test_a_folder_without_a_tokenizer_is_quantized_unmeasured(pretrained: Callable[[str], Path], tmp_path: Path):
    folder = tmp_path / "wordless"
    shutil.copytree(pretrained("llama"), folder)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    quantize_folder(QuantizeConfig("w4", unmeasured=True), folder, tmp_path / "out")
    assert quantized_format(groundup.load(tmp_path / "out")) == W4
    with pytest.raises(UserError, match=r"tokenizer\.json: no such file"):
        quantize_folder(QuantizeConfig("w4", heldout=("x",)), folder, tmp_path / "measured")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "both": ({"heldout": ("x",), "unmeasured": True}, "cannot be called good"),
    "no text": ({"unmeasured": True, "method": "calibrated"}, "`calibrated` needs --calibration texts"),
    "text": ({"unmeasured": True, "method": "nearest", "calibration": ("x",)}, "`nearest` looks at no text"),
    "format": ({"unmeasured": True, "format": "w3"}, "`format` must be one of w8, w4, w4_g32, not 'w3'"),
    "context": ({"unmeasured": True, "context": 0}, "`context` must be positive"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_do_not_go_together_are_refused(name: str):
    settings, said = REFUSED[name]
    with pytest.raises(UserError, match=said):
        QuantizeConfig(**{"format": "w4"} | settings)


def test_folders_that_cannot_be_quantized_are_refused(pretrained: Callable[[str], Path], texts: Path, tmp_path: Path):
    measured, unmeasured = QuantizeConfig("w4", heldout=(str(texts),)), QuantizeConfig("w4", unmeasured=True)
    with pytest.raises(UserError, match="holds a bert model, which has no bits per byte to measure"):
        quantize_folder(measured, pretrained("bert"), tmp_path / "out")
    with pytest.raises(UserError, match="holds a t5 model; this needs one of text alone"):
        quantize_folder(unmeasured, pretrained("t5"), tmp_path / "out")
    with pytest.raises(UserError, match="is there already"):
        quantize_folder(unmeasured, pretrained("llama"), tmp_path)
    with pytest.raises(UserError, match="there is no such folder to write into"):
        quantize_folder(unmeasured, pretrained("llama"), tmp_path / "no" / "out")
    quantize_folder(unmeasured, pretrained("llama"), tmp_path / "once")
    with pytest.raises(UserError, match="a model of w4 weights cannot be quantized again"):
        quantize_folder(unmeasured, tmp_path / "once", tmp_path / "twice")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match="there is no text in it"):
        quantize_folder(
            QuantizeConfig("w4", heldout=(str(tmp_path / "empty.txt"),)), pretrained("llama"), tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_an_interruption_leaves_nothing(
    pretrained: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(quantization, "save_folder", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantize_folder(QuantizeConfig("w4", unmeasured=True), pretrained("llama"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_names_are_spelled_alike_everywhere():
    assert tuple(WEIGHT_FORMATS) == quantizing.FORMATS == get_args(Format)
    assert get_args(Method) == quantizing.METHODS


def test_what_was_trained_for_a_format_is_served_as_it_was_trained(
    tokens_folder: Path,
    tokenizer_folder: Path,
    pretrained: Callable[[str], Path],
    texts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """The whole way: pre-training with `quantize`, then `quantize`; the trainer's loss is that of the served model.

    Up to the last fifth of its steps it is the training of a model that nobody will quantize.
    """
    from tiny import PRETRAINING

    from groundup.train import pretrain
    from groundup.train.config import PretrainConfig

    folder = tmp_path / "trained"
    folder.mkdir()
    settings = {**PRETRAINING, "preset": "groundup", "quantize": "w4"}
    pretrain.run(PretrainConfig(**settings), folder, tokens=tokens_folder, tokenizer=tokenizer_folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["quantize"] == "w4"
    plain, trained = (
        [line["loss"] for line in read_lines(one / VALUES_FILE)] for one in (pretrained("groundup"), folder)
    )
    first = math.floor(0.8 * len(plain)) + 1
    assert [one == other for one, other in zip(plain, trained, strict=True)] == [
        step < first for step in range(len(plain))
    ]
    assert summary["rounded_steps"] == len(plain) - first
    out = tmp_path / "served"
    assert main(["quantize", str(folder), "--out", str(out), "--format", "w4", "--heldout", str(texts)]) == 0
    assert "trained for w4: before are its own weights, unrounded" in capsys.readouterr().out
    record = json.loads((out / "quantization.json").read_text())
    assert (record["method"], record["trained_for"]) == ("nearest", "w4")
    _, loss = score_heldout(out, tokens_folder / "heldout", 64)
    assert loss.bits_per_byte == pytest.approx(summary["heldout_bits_per_byte"], rel=1e-4)
    served, model = load_language_model(out), load_language_model(folder)
    with rounded(model, "w4"):
        for place in places(model):
            matrix = served.get_submodule(place.name).matrix
            assert torch.equal(place.module.used_weight(), dequantize(matrix)), place.name


@pytest.mark.parametrize(("steps", "rounded_steps"), [(5, 0), (6, 1)])
def test_a_run_in_which_nothing_was_rounded_was_trained_for_no_format(
    steps: int,
    rounded_steps: int,
    tokens_folder: Path,
    tokenizer_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """Four fifths of five steps are four, at the end of which the share is 0; of six, the last begins behind them."""
    from tiny import PRETRAINING

    from groundup.train import pretrain
    from groundup.train.config import PretrainConfig

    folder = tmp_path / "trained"
    folder.mkdir()
    settings = {**PRETRAINING, "preset": "llama", "quantize": "w4", "tokens": steps * PRETRAINING["batch_tokens"]}
    pretrain.run(PretrainConfig(**settings), folder, tokens=tokens_folder, tokenizer=tokenizer_folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["steps"], summary["quantize"], summary["rounded_steps"]) == (steps, "w4", rounded_steps)
    told = "pretrain: nothing was rounded in any of these 5 steps, so that this model has not learned for w4; give it"
    assert (told in capsys.readouterr().err) == (rounded_steps == 0)
    assert main(["quantize", str(folder), "--out", str(tmp_path / "new"), "--format", "w4", "--unmeasured"]) == 0
    record = json.loads((tmp_path / "new" / "quantization.json").read_text())
    assert record["trained_for"] == ("w4" if rounded_steps else None)


@pytest.mark.parametrize("flags", [["--format", "w8"], ["--format", "w4", "--calibration", "calibration.jsonl"]])
def test_a_folder_that_is_rounded_in_another_way_than_it_was_trained_for_is_told_so(
    flags: list[str],
    pretrained: Callable[[str], Path],
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pretrained("llama"), "trained")
    shutil.copy(texts, "calibration.jsonl")
    summary = json.loads(Path("trained/summary.json").read_text()) | {"quantize": "w4"}
    Path("trained/summary.json").write_text(json.dumps(summary))
    said = "these are not the numbers that it learned with, which --format w4 without --calibration writes"
    assert main(["quantize", "trained", "--out", "one", *flags, "--unmeasured", "--context", "32"]) == 0
    assert said in capsys.readouterr().out
    assert json.loads(Path("one/quantization.json").read_text())["trained_for"] == "w4"
    assert main(["quantize", "trained", "--out", "other", "--format", "w4", "--unmeasured"]) == 0
    assert said not in capsys.readouterr().out


def test_tiny_models_keep_their_names():
    """`places` of a model and of what was made of it agree: nothing is quantized under another name."""
    model = hot_decoder(tiny_config("groundup"), dtype=torch.float32)
    before = {name.rpartition(".")[0] for name in model.state_dict()}
    quantize_model(model, W4)
    assert {name.rpartition(".")[0] for name in model.state_dict()} == before
