"""Models that guess hidden text: scored by what they learned, refused in one sentence where text is to go on."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from groundup.align import sft
from groundup.align.config import SftConfig
from groundup.cli import main
from groundup.errors import UserError
from groundup.evaluate import suite
from groundup.evaluate.config import EvaluateConfig
from groundup.evaluate.likelihood import score_heldout
from groundup.formats.huggingface import load_model
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.language_model import LanguageModel
from groundup.model.presets import build_config
from groundup.tokens.shards import Shards
from groundup.tokens.tokenizer import Tokenizer
from groundup.train.config import PretrainConfig
from groundup.train.heldout import heldout_loss
from groundup.train.objectives import objective_of

GUESSERS = pytest.mark.parametrize("preset", ["bert", "t5"])


@GUESSERS
@pytest.mark.parametrize("verb", ["sample", "chat"])
def test_they_cannot_be_talked_to(
    verb: str, preset: str, pretrained: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
):
    folder = pretrained(preset)
    capsys.readouterr()
    assert main([verb, str(folder)]) == 2
    told = capsys.readouterr().err
    assert f"holds a {preset} model, which cannot go on from a text" in told
    assert len(told.strip().splitlines()) == 1


@GUESSERS
def test_they_cannot_be_fine_tuned_to_chat(preset: str, pretrained: Callable[[str], Path], tmp_path: Path):
    folder = pretrained(preset)
    with pytest.raises(UserError, match=f"holds a {preset} model, which cannot go on from a text"):
        sft.run(SftConfig(), tmp_path, corpus=tmp_path, pretrain=folder)


@GUESSERS
def test_they_are_scored_by_what_is_hidden_of_heldout_text(
    preset: str, pretrained: Callable[[str], Path], corpus_folder: Path, tokens_folder: Path, tmp_path: Path
):
    folder = pretrained(preset)
    model, words = load_model(folder), Tokenizer.load(folder)
    assert isinstance(model, LanguageModel | EncoderDecoder)
    objective, loss = score_heldout(folder, tokens_folder / "heldout", context=512)
    hide = objective_of(model.config).heldout_corruption(words, PretrainConfig(preset=preset).mask_fraction)
    # The model holds no more than 64 tokens.
    expected = heldout_loss(model, Shards.open(tokens_folder / "heldout"), 64, words.bos_id, corruption=hide)
    assert (objective, loss) == (objective_of(model.config), expected)
    out = tmp_path / "out"
    out.mkdir()
    config = EvaluateConfig(context=512, ngram_order=2)
    suite.run(config, out, corpus=corpus_folder, tokens=tokens_folder, pretrain=folder)
    scores = json.loads((out / "scores.json").read_text())
    (row,) = scores["hidden_text"]
    assert (row["value"], row["unigram_entropy"], row["targets"]) == (
        loss.per_target,
        loss.unigram_entropy,
        loss.tokens,
    )
    assert objective.name in row["how"]
    assert "model" not in [one["name"] for one in scores["bits_per_byte"]]


def test_a_tokenizer_without_a_mask_is_named(tokenizer_folder: Path):
    config = build_config("bert", depth=1, vocab_size=512, context=64)
    with pytest.raises(UserError, match=r"no control token `<\|mask\|>`"):
        objective_of(config).heldout_corruption(Tokenizer.load(tokenizer_folder), 0.15)
