"""The fine-tuning and evaluation stages end to end, on a real corpus in small."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from groundup.align import sft
from groundup.align.config import SftConfig
from groundup.align.conversations import read_conversations
from groundup.assist.chat import load_assistant
from groundup.corpus import pipeline
from groundup.corpus.config import CorpusConfig
from groundup.errors import UserError
from groundup.formats.huggingface import load_decoder, save_folder
from groundup.quantize.convert import quantize_model
from groundup.quantize.matrix import W4
from groundup.record.metrics import read_lines
from groundup.tokens.chat import render
from groundup.tokens.conversations import PackedConversations
from groundup.tokens.tokenizer import Tokenizer
from groundup.train.heldout import mean_target_loss

SETTINGS = SftConfig(epochs=2.0, context=128, batch_tokens=1024, document_characters=500, compile="never")


@pytest.fixture(scope="module")
def passages_folder(tmp_path_factory: pytest.TempPathFactory, corpus_folder: Path) -> Path:
    """The same modules through the real corpus stage, which finds their passages."""
    texts, out = tmp_path_factory.mktemp("texts"), tmp_path_factory.mktemp("passages")
    for name in ("train", "heldout"):
        for row in pq.read_table(corpus_folder / f"{name}.parquet").to_pylist():
            (texts / row["path"]).write_text(row["text"], encoding="utf-8")
    pipeline.run(CorpusConfig((str(texts),), heldout_fraction=0.2), out)
    return out


@pytest.fixture(scope="module")
def chat_folder(
    tmp_path_factory: pytest.TempPathFactory, passages_folder: Path, pretrained: Callable[[str], Path]
) -> Path:
    out = tmp_path_factory.mktemp("sft")
    sft.run(SETTINGS, out, corpus=passages_folder, pretrain=pretrained("nanochat"))
    return out


def test_fine_tuning_leaves_a_chat_model_that_has_learned(chat_folder: Path):
    summary = json.loads((chat_folder / "summary.json").read_text())
    rows = read_lines(chat_folder / "metrics.jsonl")
    assert rows[-1]["heldout_loss"] < rows[0]["loss"] - 0.5
    assert summary["epochs"] == pytest.approx(2.0, abs=0.1)
    assert set(summary["kinds"]) >= {"with passage", "closed book", "calculator"}
    assert not (chat_folder / "checkpoint.safetensors").exists()
    engine = load_assistant(chat_folder)
    assert engine.model.config.family == "nanochat"
    assert engine.tokenizer.end_id in engine.stop_ids


def test_only_what_the_assistant_says_is_trained_on(chat_folder: Path):
    words = Tokenizer.load(chat_folder)
    summary = json.loads((chat_folder / "summary.json").read_text())
    ours = [one for one in read_conversations(chat_folder / "conversations.parquet") if one.split == "train"]
    said = 0
    for conversation in ours:
        for message in conversation.messages:
            if message["role"] == "assistant":
                call = message.get("tool_call")
                said += len(words.encode(message["content"])) + 1  # and the token that ends the turn
                said += len(words.encode(call)) + 1 if call is not None else 0
    assert summary["trained_tokens"] == said
    assert summary["conversation_tokens"] == sum(len(render(words, one.messages).ids) for one in ours)


def test_samples_are_answers_to_held_out_questions(chat_folder: Path):
    asked = {
        message["content"]
        for one in read_conversations(chat_folder / "conversations.parquet")
        if one.split == "heldout"
        for message in one.messages
    }
    samples = read_lines(chat_folder / "samples.jsonl")
    assert samples and {sample["prompt"] for sample in samples} <= asked


def test_fine_tuning_for_a_format_measures_what_is_served(
    tmp_path: Path, passages_folder: Path, pretrained: Callable[[str], Path]
):
    """The summary's loss is that of the model once it is quantized, and that model cannot be fine-tuned again."""
    settings = replace(SETTINGS, epochs=0.2, quantize="w4", precision="float32")
    out, served = tmp_path / "sft", tmp_path / "served"
    out.mkdir()
    sft.run(settings, out, corpus=passages_folder, pretrain=pretrained("nanochat"))
    summary, words, model = json.loads((out / "summary.json").read_text()), Tokenizer.load(out), load_decoder(out)
    heldout = sft.gather_conversations(settings, passages_folder, words)["heldout"]
    source = PackedConversations([one.tokens for one in heldout], settings.context, words.pad_id, settings.seed)
    plain = mean_target_loss(model, source, sft.WATCHED_ROWS)
    quantize_model(model, W4)
    assert summary["quantize"] == "w4"
    assert summary["heldout_loss"] == pytest.approx(mean_target_loss(model, source, sft.WATCHED_ROWS), rel=1e-5)
    assert summary["heldout_loss"] != pytest.approx(plain, rel=1e-5)
    save_folder(model, served, like=out)
    with pytest.raises(UserError, match="a model of w4 weights cannot be trained; name the one"):
        sft.run(settings, tmp_path, corpus=passages_folder, pretrain=served)


def test_a_corpus_without_passages_is_refused(tmp_path: Path, pretrained: Callable[[str], Path]):
    with pytest.raises(UserError, match=r"passages\.parquet"):
        sft.run(SETTINGS, tmp_path, corpus=tmp_path, pretrain=pretrained("nanochat"))
