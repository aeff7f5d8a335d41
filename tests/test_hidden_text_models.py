"""Models that guess hidden text: scored by what they learned, refused in one sentence where text is to go on."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import hot_model

from groundup.align import sft
from groundup.align.config import SftConfig
from groundup.cli import main
from groundup.errors import UserError
from groundup.evaluate import likelihood, suite
from groundup.evaluate.config import EvaluateConfig
from groundup.evaluate.likelihood import score_heldout
from groundup.formats import huggingface
from groundup.model.build import AnyModel
from groundup.model.presets import build_config
from groundup.storage import write_json
from groundup.tokens.shards import Shards
from groundup.tokens.tokenizer import HIDDEN_TEXT_TOKENS, Tokenizer
from groundup.train.heldout import heldout_loss
from groundup.train.objectives import objective_of

GUESSERS = pytest.mark.parametrize("preset", ["bert", "t5"])
FolderMaker = Callable[[str], tuple[Path, AnyModel, Tokenizer]]


@pytest.fixture
def folder_of(tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> FolderMaker:
    """Call it with a preset: a folder as pre-training leaves it, whose model is loaded from memory."""

    def make(preset: str) -> tuple[Path, AnyModel, Tokenizer]:
        folder = tmp_path / preset
        folder.mkdir()
        words = Tokenizer.load(tokenizer_folder).with_control(HIDDEN_TEXT_TOKENS)
        words.save(folder)
        write_json(folder / "config.json", {})
        write_json(folder / "summary.json", {"mask_fraction": 0.3} if preset == "bert" else {})
        config = build_config(preset, depth=1, vocab_size=words.vocab_size, context=64, width=32, head_dim=16)
        model = hot_model(config)
        for module in (huggingface, likelihood):
            monkeypatch.setattr(module, "load_model", lambda *_: model)
        return folder, model, words

    return make


@GUESSERS
@pytest.mark.parametrize("verb", ["sample", "chat"])
def test_they_cannot_be_talked_to(verb: str, preset: str, folder_of: FolderMaker, capsys: pytest.CaptureFixture[str]):
    folder, _, _ = folder_of(preset)
    assert main([verb, str(folder)]) == 2
    told = capsys.readouterr().err
    assert f"holds a {preset} model, which cannot go on from a text" in told
    assert len(told.strip().splitlines()) == 1


@GUESSERS
def test_they_cannot_be_fine_tuned_to_chat(preset: str, folder_of: FolderMaker, tmp_path: Path):
    folder, _, _ = folder_of(preset)
    with pytest.raises(UserError, match=f"holds a {preset} model, which cannot go on from a text"):
        sft.run(SftConfig(), tmp_path, corpus=tmp_path, pretrain=folder)


@GUESSERS
def test_they_are_scored_by_what_is_hidden_of_heldout_text(
    preset: str, folder_of: FolderMaker, corpus_folder: Path, tokens_folder: Path, tmp_path: Path
):
    folder, model, words = folder_of(preset)
    objective, loss = score_heldout(folder, tokens_folder / "heldout", context=512)
    hide = objective_of(model.config).heldout_corruption(words, 0.3)
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
