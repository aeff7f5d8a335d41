"""Encoders in GGUF: all but the head goes, and what llama.cpp does not compute is refused by name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from encoder_references import encoder
from gguf_models import ENCODERS, model_of
from tiny import random_ids

from groundup.cli import main
from groundup.errors import UserError
from groundup.formats.gguf.container import Entry, GgufFile, write_gguf
from groundup.formats.gguf.model_file import load_gguf, save_gguf
from groundup.formats.huggingface import load_model, save_model
from groundup.model.language_model import LanguageModel

HEAD = ("transform.", "head.", "head_bias")


def _written(model: Any, words: Path, out: Path, weights: str = "f32") -> Path:
    save_gguf(model, words, out / "model.gguf", weights)
    return out / "model.gguf"


def _without(path: Path, key: str, out: Path, **changes: Any) -> Path:
    """A copy of a file's metadata and tensors with one key left out or changed."""
    file = GgufFile(path)
    metadata = {name: value for name, value in file.metadata.items() if name != key} | changes
    entries = [(name, file.get(name), place.format) for name, place in file.tensors.items()]
    with open(out, "wb") as copy:
        write_gguf(
            copy,
            metadata,
            [Entry(name, tuple(tensor.shape), form) for name, tensor, form in entries],
            [(name, tensor) for name, tensor, _ in entries],
        )
    return out


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_an_encoder_comes_back_without_its_head(name: str, words: Path, models: Path, tmp_path: Path):
    model = model_of(name, models)
    again = load_gguf(_written(model, words, tmp_path))
    body = replace(model.config, tied_head=True, head_transform=None, head_bias=False)
    assert again.config == body
    after = dict(again.named_parameters())
    kept = {key: one for key, one in model.named_parameters() if not key.startswith(HEAD)}
    assert kept.keys() == after.keys()
    assert all(torch.equal(after[key], one) for key, one in kept.items())
    ids = random_ids(2, 24, vocabulary=512)
    assert torch.equal(again.encode(ids), model.encode(ids))
    assert not torch.allclose(again(ids), model(ids))


def test_tables_and_norms_stay_in_single_precision(words: Path, models: Path, tmp_path: Path):
    file = GgufFile(_written(model_of("bert", models), words, tmp_path, "q4_0"))
    formats = {name: place.format.name for name, place in file.tensors.items()}
    assert {formats.pop(name) for name in ("position_embd.weight", "token_types.weight")} == {"f32"}
    assert formats.pop("token_embd.weight") == "q8_0"
    assert {form for name, form in formats.items() if "norm" in name or name.endswith("bias")} == {"f32"}
    assert {form for name, form in formats.items() if "norm" not in name and name.endswith("weight")} == {"q4_0"}


def test_metadata_says_what_llama_cpp_asks_for(words: Path, models: Path, tmp_path: Path):
    found = GgufFile(_written(model_of("bert", models), words, tmp_path)).metadata
    expected = {
        "general.architecture": "bert",
        "bert.attention.causal": False,
        "bert.attention.layer_norm_epsilon": 1e-3,
        "bert.context_length": 40,
        "tokenizer.ggml.token_type_count": 3,
    }
    assert {key: found[key] for key in expected} == expected
    assert "bert.activation" not in found
    found = GgufFile(_written(model_of("distilbert", models), words, tmp_path)).metadata
    assert found["tokenizer.ggml.token_type_count"] == 1


@pytest.mark.parametrize(
    ("variant", "changes", "said"),
    [
        ("bert", {"hidden_act": "relu"}, "`activation` must be one of gelu, gelu_tanh, not 'relu'"),
        ("bert classifier", {}, "GGUF has no place for a bert classifier"),
        ("roberta", {}, "GGUF has no place for a roberta model: of our families llama.cpp runs llama,"),
        ("modernbert", {}, "GGUF has no place for a modernbert model"),
    ],
)
def test_an_encoder_that_llama_cpp_would_not_compute_is_named(
    variant: str, changes: dict[str, Any], said: str, words: Path, tmp_path: Path
):
    folder, out = tmp_path / "model", tmp_path / "out"
    out.mkdir()
    encoder(variant, hot=False, **{"vocab_size": 512} | changes).save_pretrained(folder)
    with pytest.raises(UserError) as refusal:
        _written(load_model(folder), words, out)
    assert said in str(refusal.value)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("told", [None, True])
def test_a_file_whose_tokens_look_back_alone_is_no_encoder(
    told: bool | None, words: Path, models: Path, tmp_path: Path
):
    """llama.cpp takes every model for a decoder that does not say otherwise."""
    path = _written(model_of("bert", models), words, tmp_path)
    changes = {} if told is None else {"bert.attention.causal": told}
    with pytest.raises(UserError, match=r"`attention\.causal` is True, only False is supported for a bert"):
        load_gguf(_without(path, "bert.attention.causal", tmp_path / "other.gguf", **changes))


@torch.no_grad()
def test_how_others_pool_vectors_changes_none_of_them(words: Path, models: Path, tmp_path: Path):
    path = _written(model_of("bert", models), words, tmp_path)
    pooled = load_gguf(_without(path, "", tmp_path / "pooled.gguf", **{"bert.pooling_type": 1}))
    ids = random_ids(1, 8, vocabulary=512)
    assert torch.equal(pooled.encode(ids), load_gguf(path).encode(ids))


def test_an_encoder_with_the_tokenizer_of_this_house_is_exported(words: Path, models: Path, tmp_path: Path):
    """What `groundup pretrain --preset bert` leaves: byte-level BPE beside the weights."""
    run, path = tmp_path / "run", tmp_path / "model.gguf"
    run.mkdir()
    save_model(model_of("bert", models), run, bos_id=0, eos_ids=[1], pad_id=2)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (run / name).write_bytes((words / name).read_bytes())
    assert main(["export", str(run), "--to", str(path), "--type", "q8_0"]) == 0
    assert GgufFile(path).metadata["tokenizer.ggml.model"] == "gpt2"
    assert load_gguf(path).config.family == "bert"


def test_a_classifier_is_refused_by_the_verb(words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    encoder("bert classifier", hot=False, vocab_size=512).save_pretrained(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), "--to", str(tmp_path / "model.gguf")]) == 2
    assert "GGUF has no place for a bert classifier" in capsys.readouterr().err


def test_an_exported_encoder_becomes_a_folder_without_a_head(words: Path, models: Path, tmp_path: Path):
    path = _written(model_of("bert", models), words, tmp_path)
    assert main(["export", str(path), "--to", str(tmp_path / "folder")]) == 0
    ids = torch.arange(3, 20)[None]
    found = load_model(tmp_path / "folder")
    assert isinstance(found, LanguageModel)
    theirs = transformers.BertModel.from_pretrained(tmp_path / "folder", add_pooling_layer=False)
    with torch.no_grad():
        expected = load_gguf(path).encode(ids)
        assert torch.equal(found.encode(ids), expected)
        assert (theirs(ids).last_hidden_state - expected).norm() <= 1e-5 * expected.norm()
