"""`benchmarks/engine_perplexity.py`: its table is what the models say, counted in another way."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from groundup.evaluate.quantization import TextStream
from groundup.formats.huggingface import load_language_model
from groundup.quantize.convert import quantize_model
from groundup.quantize.matrix import WEIGHT_FORMATS
from groundup.tokens.tokenizer import Tokenizer
from groundup.train.heldout import heldout_loss

BENCHMARK = Path(__file__).parents[1] / "benchmarks/engine_perplexity.py"
WINDOW = 24


@pytest.mark.slow
def test_rows_are_the_held_out_losses_of_the_models(pretrained: Callable[[str], Path], tmp_path: Path):
    if find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    folder, text = pretrained("llama"), tmp_path / "text.jsonl"
    documents = ["def one():\n    return 1\n" * 9, "A short one.", "import json\n" * 20]
    text.write_text("".join(json.dumps({"text": each}) + "\n" for each in documents), encoding="utf-8")
    words = ["--heldout", str(text), "--calibration", str(text), "--window", str(WINDOW), "--threads", "1"]
    command = [sys.executable, str(BENCHMARK), str(folder), *words, "--json", str(tmp_path / "figures.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures["left_out"]) == {"llama.cpp", "OpenVINO"}
    rows = {(row["side"], row["weights"]): row for row in figures["rows"]}

    def loss(format: str | None = None) -> float:
        """Nats a token."""
        model, tokenizer = load_language_model(folder), Tokenizer.load(folder)
        if format is not None:
            quantize_model(model, WEIGHT_FORMATS[format])
        return heldout_loss(
            model, TextStream([str(text)], tokenizer, tokenizer.vocab_size), WINDOW - 1, tokenizer.bos_id
        ).per_target

    # A window more or fewer tokens, or a document's begin left out, would be further away than keys in bfloat16.
    plain = loss()
    assert rows["groundup", "as trained"]["perplexity"] == pytest.approx(math.exp(plain), rel=1e-5)
    assert rows["transformers", "as trained"]["perplexity"] == pytest.approx(math.exp(plain), rel=1e-2)
    for format in WEIGHT_FORMATS:
        row = rows["groundup", f"{format}, nearest"]
        assert row["perplexity"] == pytest.approx(math.exp(loss(format)), rel=2e-3)
        assert row["increase %"] == pytest.approx(
            100 * (row["perplexity"] / rows["groundup", "as trained"]["perplexity"] - 1)
        )
        assert rows["groundup", f"{format}, calibrated"]["MB"] == row["MB"]
