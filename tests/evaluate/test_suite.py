"""The evaluation stage on a real chat model in small: every score has its rows, its bytes and its interval."""

import json
import lzma
import math
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from groundup.align.conversations import Conversation, write_conversations
from groundup.evaluate import suite
from groundup.evaluate.config import EvaluateConfig
from groundup.evaluate.likelihood import score_heldout
from groundup.formats.huggingface import load_model
from groundup.tokens.sample import sample_text
from groundup.tokens.shards import Shards
from groundup.tokens.tokenizer import Tokenizer
from groundup.train.heldout import heldout_loss
from groundup.train.objectives import objective_of
from groundup.train.pseudo_likelihood import heldout_pseudo_loss, mask_token


def _conversation(number: int, mode: str, documents: tuple[str, ...]) -> Conversation:
    shown = [{"role": "document", "content": text} for text in documents]
    question = {"role": "user", "content": f"What does f{number} do?"}
    answer = {"role": "assistant", "content": f"It does {number}."}
    return Conversation(
        f"{mode}{number}", "purpose", mode, "heldout", "m", (*shown, question, answer), answer["content"]
    )


@pytest.fixture
def chat_folder(tmp_path: Path, pretrained: Callable[[str], Path]) -> Path:
    """The base model with some held-out questions beside it: untrained for them, which is all that counting needs."""
    folder = tmp_path / "chat"
    folder.mkdir()
    for path in pretrained("nanochat").iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    asked = [_conversation(n, "with passage", (f"f{n}: It does {n}.",)) for n in range(3)]
    asked += [_conversation(n, "unanswerable", ("g: no.",)) for n in range(2)]
    write_conversations(folder / "conversations.parquet", asked)
    return folder


def test_every_score_stands_beside_its_baselines(
    tmp_path: Path, corpus_folder: Path, tokens_folder: Path, pretrained: Callable[[str], Path], chat_folder: Path
):
    out = tmp_path / "out"
    out.mkdir()
    config = EvaluateConfig(questions=2, answer_tokens=4, context=64, ngram_order=3)
    suite.run(config, out, corpus=corpus_folder, tokens=tokens_folder, pretrain=pretrained("nanochat"), sft=chat_folder)

    scores = json.loads((out / "scores.json").read_text())
    rows = {row["name"]: row for row in scores["bits_per_byte"]}
    assert rows["model"]["value"] == rows["chat model"]["value"]  # the same weights
    texts = pq.read_table(corpus_folder / "heldout.parquet").column("text").to_pylist()
    size = sum(len(text.encode()) for text in texts)
    assert all(row["bytes"] == size for row in rows.values())
    packed = lzma.compress("".join(texts).encode(), preset=9 | lzma.PRESET_EXTREME)
    assert 8 * len(packed) / size in [pytest.approx(row["value"], rel=1e-3) for row in rows.values()]
    answers = pq.read_table(out / "answers.parquet").to_pylist()
    assert [row["mode"] for row in answers].count("with passage") == 2
    assert [row["mode"] for row in answers].count("closed book") == 2
    assert all(row["low"] <= row["difference"] <= row["high"] for row in scores["comparisons"])


def test_models_and_baselines_are_scored_on_the_same_part_of_long_text(
    tmp_path: Path, corpus_folder: Path, tokens_folder: Path, pretrained: Callable[[str], Path]
):
    folder, shards = pretrained("nanochat"), Shards.open(tokens_folder / "heldout")
    megabytes = 0.7 * shards.total_bytes / 1e6
    config = EvaluateConfig(context=64, ngram_order=2, heldout_megabytes=megabytes)
    suite.run(config, tmp_path, corpus=corpus_folder, tokens=tokens_folder, pretrain=folder)

    words = Tokenizer.load(folder)
    sample = sample_text(shards, words, megabytes)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["heldout"] == {"bytes": sample.total_bytes, "of_bytes": shards.total_bytes}
    assert 0 < sample.total_bytes <= 0.7 * shards.total_bytes
    rows = {row["name"]: row for row in scores["bits_per_byte"]}
    assert {row["bytes"] for row in rows.values()} == {sample.total_bytes}
    drawn = b"".join(words.piece(token) for token in sample.tokens(0, sample.total_tokens).tolist())
    packed = lzma.compress(drawn, format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME)
    assert rows["xz -9e"]["value"] == pytest.approx(8 * len(packed) / len(drawn), rel=1e-3)
    expected = heldout_loss(load_model(folder), sample, 64, words.bos_id)
    assert rows["model"]["value"] == pytest.approx(expected.nats / math.log(2) / len(drawn), rel=1e-6)


def test_bits_per_byte_are_those_of_windows_scored_one_by_one(
    tokens_folder: Path, corpus_folder: Path, pretrained: Callable[[str], Path]
):
    folder = pretrained("nanochat")
    model, words = load_model(folder).double(), Tokenizer.load(folder)
    texts = pq.read_table(corpus_folder / "heldout.parquet").column("text").to_pylist()
    # Documents in the stream, each closed by its end token; a window starts anew at each document and each 64 tokens.
    stream, starts = [], set()
    for text in texts:
        starts.add(len(stream))
        stream += [*words.encode(text), words.eos_id]
    pieces, current = [], []
    for place, token in enumerate(stream):
        if current and (place % 64 == 0 or place in starts):
            pieces.append(current)
            current = []
        current.append(token)
    pieces.append(current)
    nats = 0.0
    with torch.no_grad():
        for piece in pieces:
            logits = model(torch.tensor([[words.bos_id, *piece[:-1]]]))
            nats += float(F.cross_entropy(logits[0], torch.tensor(piece), reduction="sum"))
    objective, found = score_heldout(folder, tokens_folder / "heldout", 64)
    assert objective is objective_of(model.config)
    assert found.tokens == len(stream)
    assert found.bits_per_byte == pytest.approx(
        nats / math.log(2) / sum(len(text.encode()) for text in texts), rel=1e-5
    )


def test_an_encoder_is_scored_by_a_sample_of_tokens_apart_from_the_baselines(
    tmp_path: Path, corpus_folder: Path, tokens_folder: Path, pretrained: Callable[[str], Path]
):
    encoder_folder, out = pretrained("bert"), tmp_path / "out"
    out.mkdir()
    config = EvaluateConfig(context=64, ngram_order=3, masked_tokens=20)
    suite.run(config, out, corpus=corpus_folder, tokens=tokens_folder, pretrain=encoder_folder)

    scores = json.loads((out / "scores.json").read_text())
    assert {row["name"] for row in scores["bits_per_byte"]} >= {"unigram", "3-gram"}
    assert not any("model" in row["name"] for row in scores["bits_per_byte"])
    (row,) = scores["pseudo_bits_per_byte"]
    assert row["name"] == "model, pseudo-likelihood of 20 sampled tokens"
    assert row["low"] < row["value"] < row["high"]
    assert not (out / "answers.parquet").exists()
    model, words = load_model(encoder_folder), Tokenizer.load(encoder_folder)
    stream = Shards.open(tokens_folder / "heldout")
    loss = heldout_pseudo_loss(model, stream, 64, words.bos_id, mask_token(words), sample=20)
    assert row["value"] == pytest.approx(loss.pseudo_bits_per_byte)
    assert row["high"] - row["value"] == pytest.approx(1.96 * loss.standard_error, rel=1e-3)


def test_without_a_chat_model_the_base_model_is_scored_alone(
    tmp_path: Path, corpus_folder: Path, tokens_folder: Path, pretrained: Callable[[str], Path]
):
    config = EvaluateConfig(context=64, ngram_order=2)
    suite.run(config, tmp_path, corpus=corpus_folder, tokens=tokens_folder, pretrain=pretrained("nanochat"))
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores.keys() == {"heldout", "bits_per_byte"}
    assert [row["name"] for row in scores["bits_per_byte"] if row["name"].endswith("model")] == ["model"]
    assert not (tmp_path / "answers.parquet").exists()
