"""The stage from shards to model folder, on real text."""

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny import DECODERS, ENCODER_DECODERS, ENCODERS, PRETRAINING

from groundup.errors import UserError
from groundup.formats.huggingface import load_model
from groundup.record.metrics import read_lines
from groundup.storage import hash_file, hash_folder
from groundup.tokens import shards
from groundup.tokens.config import SENTINEL_TOKENS, TokensConfig
from groundup.tokens.corruption import CorruptedSpans, MaskedTokens
from groundup.tokens.shards import Shards
from groundup.tokens.tokenizer import Tokenizer
from groundup.train import pretrain
from groundup.train.config import PretrainConfig
from groundup.train.heldout import heldout_loss
from groundup.train.objectives import HELDOUT_SEED

ALL_DECODERS = pytest.mark.parametrize("preset", DECODERS)
STEPS = PRETRAINING["tokens"] // PRETRAINING["batch_tokens"]
CONTEXT = PRETRAINING["context"]
Pretrained = Callable[[str], Path]


@ALL_DECODERS
def test_the_folder_holds_a_model_its_tokenizer_and_its_record(
    preset: str, pretrained: Pretrained, tokenizer_folder: Path
):
    folder = pretrained(preset)
    files = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "chat_template.jinja"} <= files
    assert {"metrics.jsonl", "timings.jsonl", "samples.jsonl", "summary.json"} <= files
    assert not any("checkpoint" in name or name.startswith(".") for name in files)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert hash_file(folder / name) == hash_file(tokenizer_folder / name)
    assert all(parameter.dtype == torch.float32 for parameter in load_model(folder).parameters())


@ALL_DECODERS
def test_the_summary_says_what_was_trained(preset: str, pretrained: Pretrained, tokens_folder: Path):
    summary = json.loads((pretrained(preset) / "summary.json").read_text())
    model = load_model(pretrained(preset))
    expected = {
        "preset": preset,
        "layers": 2,
        "width": 32,
        "vocab_size": 512,
        "context": CONTEXT,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": STEPS,
        "tokens": PRETRAINING["tokens"],
        "flops": PRETRAINING["tokens"] * model.config.training_flops_per_token(CONTEXT),
        "dtype": "float32",
        "compiled": False,
    }
    assert {key: summary[key] for key in expected} == expected
    total = Shards.open(tokens_folder / "train").total_tokens
    assert summary["epochs"] == pytest.approx(PRETRAINING["tokens"] / total, abs=1e-3)


@ALL_DECODERS
def test_the_bits_per_byte_are_those_of_the_saved_model_on_all_heldout_text(
    preset: str, pretrained: Pretrained, tokens_folder: Path, corpus_folder: Path
):
    folder = pretrained(preset)
    model, words = load_model(folder), Tokenizer.load(folder)
    texts = pq.read_table(corpus_folder / "heldout.parquet").column("text").to_pylist()
    stream = [token for text in texts for token in [*words.encode(text), words.eos_id]]
    nats = 0.0
    with torch.no_grad():
        for first in range(0, len(stream), CONTEXT):
            # A window that crosses into another document is scored in two parts, each from a beginning of its own.
            window, parts = stream[first : first + CONTEXT], [[]]
            for token in window:
                parts[-1].append(token)
                if token == words.eos_id:
                    parts.append([])
            for part in filter(None, parts):
                logits = model(torch.tensor([[words.bos_id, *part[:-1]]]))[0].double()
                nats -= logits.log_softmax(-1).gather(1, torch.tensor(part)[:, None]).sum().item()
    bits_per_byte = nats / math.log(2) / sum(len(text.encode()) for text in texts)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["heldout_bits_per_byte"] == pytest.approx(bits_per_byte, rel=1e-5)
    assert summary["heldout_loss"] == pytest.approx(nats / len(stream), rel=1e-5)
    assert (summary["objective"], summary["heldout_targets"]) == ("next token", len(stream))
    # A model that has learned nothing needs log2(512) bits for each of its tokens.
    assert bits_per_byte < 0.9 * len(stream) * 9 / sum(len(text.encode()) for text in texts)


@ALL_DECODERS
def test_metrics_and_samples_tell_the_way(preset: str, pretrained: Pretrained, tokens_folder: Path):
    folder = pretrained(preset)
    lines = read_lines(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["tokens"] for line in lines] == [512 * step for step in range(1, STEPS + 1)]
    train = Shards.open(tokens_folder / "train")
    for line in lines:
        bits = line["loss"] / math.log(2) * train.total_tokens / train.total_bytes
        assert line["bits_per_byte"] == pytest.approx(bits)
    assert lines[0]["loss"] == pytest.approx(math.log(512), rel=0.05)
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    looked_at = [line["step"] for line in lines if "heldout_bits_per_byte" in line]
    assert looked_at == [STEPS // 3, 2 * STEPS // 3, STEPS]
    samples = read_lines(folder / "samples.jsonl")
    assert [(sample["step"], sample["prompt"]) for sample in samples] == [
        (step, prompt) for step in looked_at for prompt in PretrainConfig().sample_prompts
    ]
    assert {line["step"] for line in read_lines(folder / "timings.jsonl")} == set(range(1, STEPS + 1))


def _run(out: Path, tokens: Path, tokenizer: Path, **changes: Any) -> dict[str, str]:
    out.mkdir()
    pretrain.run(PretrainConfig(**{**PRETRAINING, "tokens": 1024} | changes), out, tokens=tokens, tokenizer=tokenizer)
    return hash_folder(out)


def test_equal_runs_write_equal_folders_and_another_seed_another_model(
    tmp_path: Path, tokens_folder: Path, tokenizer_folder: Path
):
    first, again, other = (
        _run(tmp_path / name, tokens_folder, tokenizer_folder, seed=seed)
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert first == again
    assert first["model.safetensors"] != other["model.safetensors"]


def test_shards_of_another_tokenizer_are_refused(tmp_path: Path, tokens_folder: Path, tokenizer_folder: Path):
    tampered = tmp_path / "tokenizer"
    tampered.mkdir()
    (tampered / "tokenizer.json").write_text((tokenizer_folder / "tokenizer.json").read_text() + " ")
    with pytest.raises(UserError, match="not the tokenizer of the shards"):
        _run(tmp_path / "out", tokens_folder, tampered)


def test_text_for_less_than_two_rows_is_refused(tmp_path: Path, tokens_folder: Path, tokenizer_folder: Path):
    with pytest.raises(UserError, match=r"train: the training text has [\d,]+ tokens, fewer than two rows"):
        _run(tmp_path / "out", tokens_folder, tokenizer_folder, context=2**17, batch_tokens=2**17)


def test_no_heldout_text_is_refused(tmp_path: Path, corpus_folder: Path, tokenizer_folder: Path):
    corpus, tokens = tmp_path / "corpus", tmp_path / "tokens"
    corpus.mkdir()
    tokens.mkdir()
    train = pq.read_table(corpus_folder / "train.parquet")
    pq.write_table(train, corpus / "train.parquet")
    pq.write_table(train.slice(0, 0), corpus / "heldout.parquet")
    shards.run(TokensConfig(), tokens, corpus=corpus, tokenizer=tokenizer_folder)
    with pytest.raises(UserError, match="heldout: no text"):
        _run(tmp_path / "out", tokens, tokenizer_folder)


def test_sizes_that_do_not_fit_are_refused(tmp_path: Path, tokens_folder: Path, tokenizer_folder: Path):
    with pytest.raises(UserError, match=r"`width` \(40\) must be a multiple of `head_dim` \(16\)"):
        _run(tmp_path / "width", tokens_folder, tokenizer_folder, width=40)
    with pytest.raises(UserError, match="cannot be split evenly into micro-batches"):
        _run(tmp_path / "batch", tokens_folder, tokenizer_folder, micro_batch_tokens=192)


# Models that guess hidden text

LONGER = 80 * 512
HIDDEN = {name: ("masked tokens", "heldout_masked_loss", ["<|mask|>"]) for name in ENCODERS}
HIDDEN |= {name: ("corrupted spans", "heldout_span_loss", list(SENTINEL_TOKENS)) for name in ENCODER_DECODERS}


@pytest.fixture(scope="module")
def hidden_runs(tmp_path_factory: pytest.TempPathFactory, tokens_folder: Path, tokenizer_folder: Path) -> Pretrained:
    """Call it with such a preset: the folder of a run that is long enough to learn something."""

    @cache
    def folder(preset: str) -> Path:
        out = tmp_path_factory.mktemp(preset)
        settings = {**PRETRAINING, "preset": preset, "tokens": LONGER}
        pretrain.run(PretrainConfig(**settings), out, tokens=tokens_folder, tokenizer=tokenizer_folder)
        return out

    return folder


@pytest.mark.parametrize("preset", HIDDEN)
def test_a_figure_of_hidden_text_bears_its_own_name(preset: str, hidden_runs: Pretrained):
    out = hidden_runs(preset)
    objective, figure, _ = HIDDEN[preset]
    summary, lines = json.loads((out / "summary.json").read_text()), read_lines(out / "metrics.jsonl")
    assert summary["objective"] == objective
    assert summary["tokens"] == LONGER
    names = {name for line in (summary, *lines) for name in line}
    assert not any("bits_per_byte" in name and "pseudo" not in name for name in names)
    assert [figure in line for line in lines].count(True) == 3
    assert lines[-1]["tokens"] < 0.4 * LONGER  # those that were guessed
    assert not (out / "samples.jsonl").exists()


@pytest.mark.parametrize("preset", HIDDEN)
def test_hidden_text_is_learned_to_be_guessed(preset: str, hidden_runs: Pretrained):
    out = hidden_runs(preset)
    summary, lines = json.loads((out / "summary.json").read_text()), read_lines(out / "metrics.jsonl")
    knows_nothing = math.log(summary["vocab_size"])
    assert lines[0]["loss"] == pytest.approx(knows_nothing, rel=0.05)
    # In so few steps encoders, which have to learn first which places are neighbours, learn little but frequencies.
    encoder = HIDDEN[preset][0] == "masked tokens"
    assert summary[HIDDEN[preset][1]] < (0.9 * knows_nothing if encoder else summary["heldout_unigram_entropy"])


@pytest.mark.parametrize("preset", HIDDEN)
def test_the_final_figure_is_that_of_all_heldout_text(preset: str, hidden_runs: Pretrained, tokens_folder: Path):
    out = hidden_runs(preset)
    model, words = load_model(out), Tokenizer.load(out)
    objective, figure, control_tokens = HIDDEN[preset]
    assert list(words.control)[-len(control_tokens) :] == control_tokens
    summary = json.loads((out / "summary.json").read_text())
    if objective == "masked tokens":
        fraction = PretrainConfig(preset=preset).mask_fraction
        hide = MaskedTokens(fraction, words.mask_id, words.bos_id, np.flatnonzero(words.token_bytes()), HELDOUT_SEED)
        assert summary["mask_fraction"] == fraction
    else:
        hide = CorruptedSpans(words.sentinel_ids, words.bos_id, words.eos_id, words.pad_id, HELDOUT_SEED)
    loss = heldout_loss(model, Shards.open(tokens_folder / "heldout"), CONTEXT, words.bos_id, rows=1, corruption=hide)
    assert summary[figure] == pytest.approx(loss.per_target, rel=1e-5)
    assert summary["heldout_targets"] == loss.tokens
