"""What few bits cost a model that was really trained: the recipe `pocket`'s own preset and text, for fewer steps."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from groundup.cli import main
from groundup.evaluate.quantization import QuantizeConfig, quantize_folder

pytestmark = pytest.mark.slow

TOKENS = 100 * 4096
# Of the held-out text: some 30,000 tokens.
HELDOUT_CHARACTERS = 100_000


def _stage(*arguments: str) -> None:
    assert main([*arguments, "--quiet"]) == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain` and `rounded`: runs of equal text and seed, the second one trained for w4; heldout.jsonl."""
    place = tmp_path_factory.mktemp("quality")
    pretrain = ("--preset", "groundup", "--tokens", str(TOKENS), "--compile", "never")
    for name, more in (("plain", ()), ("rounded", ("--quantize", "w4"))):
        run = str(place / name)
        _stage("corpus", run, "--paths", "python:stdlib", "python:topics")
        _stage("tokenizer", run, "--vocab-size", "4096")
        _stage("tokens", run)
        _stage("pretrain", run, *pretrain, *more)
    texts, length = [], 0
    for text in pq.read_table(place / "plain" / "01-corpus" / "heldout.parquet")["text"].to_pylist():
        if length < HELDOUT_CHARACTERS:
            texts.append(text[:20_000])
            length += len(texts[-1])
    (place / "heldout.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return place


def _bits_per_byte(place: Path, run: str, format: str, calibrated: bool = False) -> tuple[float, float]:
    """Before and after."""
    config = QuantizeConfig(
        format,
        heldout=(str(place / "heldout.jsonl"),),
        calibration=(str(place / run / "01-corpus" / "train.parquet"),) if calibrated else (),
        calibration_windows=64,
    )
    record = quantize_folder(config, place / run / "04-pretrain", place / f"{run}-{format}-{calibrated}")
    return record["bits_per_byte_before"], record["bits_per_byte_after"]


@pytest.mark.parametrize(
    ("format", "calibrated", "most"), [("w8", False, 0.001), ("w4", False, 0.015), ("w4", True, 0.015)]
)
def test_a_trained_model_loses_no_more_than_it_may(place: Path, format: str, calibrated: bool, most: float):
    before, after = _bits_per_byte(place, "plain", format, calibrated)
    assert before < 2.2  # it has learned: bytes of this text are worth 4.4 bits by their frequency
    assert abs(after / before - 1) <= most


def test_one_that_was_trained_for_four_bits_is_as_good_as_one_that_nobody_rounded(place: Path):
    plain, _ = _bits_per_byte(place, "plain", "w4_g32")
    _, served = _bits_per_byte(place, "rounded", "w4")
    assert served <= 1.005 * plain
