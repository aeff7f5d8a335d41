"""Folders that cannot be loaded: one sentence that names the file and what is wrong in it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import hot_decoder, tiny_config

from groundup.errors import UserError
from groundup.formats.huggingface import load_model, save_model

QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(params=["groundup", "llama", "nanochat"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A whole model folder of each family that is trained by default."""
    save_model(hot_decoder(tiny_config(request.param)), tmp_path, bos_id=1, eos_ids=[2], pad_id=0)
    return tmp_path


def _refusal(folder: Path) -> str:
    with pytest.raises(UserError) as refusal:
        load_model(folder)
    message = str(refusal.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def _edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    keys = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in keys.items() if value is not ABSENT}))


ABSENT = object()


def _edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_no_config(folder: Path):
    (folder / "config.json").unlink()
    assert "config.json" in _refusal(folder)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1, 2]", b""])
def test_a_config_that_is_no_json_object(folder: Path, content: bytes):
    (folder / "config.json").write_bytes(content)
    assert "config.json" in _refusal(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "unheard_of"),
        ("model_type", ABSENT),
        ("sliding_window", 8),
        ("hidden_size", ABSENT),
        ("hidden_size", "wide"),
        ("hidden_size", 0),
        ("num_attention_heads", 0),
        ("num_attention_heads", [2]),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", None),
        ("num_key_value_heads", 0),
        ("num_key_value_heads", 1.5),
        ("vocab_size", -1),
        ("vocab_size", True),
        ("rms_norm_eps", "small"),
        ("max_position_embeddings", 0),
        ("tie_word_embeddings", "no"),
        ("attention_bias", "yes"),
        ("hidden_act", "swish"),
        ("rope_theta", "big"),
        ("rope_parameters", "default"),
        ("rope_parameters", ["default"]),
        ("rope_parameters", {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}),
        ("rope_parameters", {"rope_type": "linear", "factor": -2.0}),
        ("rope_parameters", {"rope_type": "default", "frequency": 2.0}),
        ("rope_scaling", {"type": "mystery", "factor": 2.0}),
    ],
    ids=lambda value: "absent" if value is ABSENT else str(value),
)
def test_a_key_that_is_unknown_missing_or_out_of_place_is_named(folder: Path, key: str, value: object):
    _edit_config(folder, **{key: value})
    message = _refusal(folder)
    assert "config.json" in message
    assert f"`{key}`" in message or f"`{key}." in message


def test_heads_that_cannot_share_keys_are_named(folder: Path):
    _edit_config(folder, num_key_value_heads=3)
    assert "must be a multiple of `kv_heads` (3)" in _refusal(folder)


def test_a_rotary_base_that_is_no_number_is_named_inside_its_table_too(folder: Path):
    _edit_config(folder, rope_theta=ABSENT, rope_parameters={"rope_type": "default", "rope_theta": "big"})
    assert "`rope_parameters.rope_theta`" in _refusal(folder)


def test_a_missing_tensor_is_named(folder: Path):
    _edit_tensors(folder, lambda tensors: tensors.pop(QUERY))
    assert f"model.safetensors: tensor `{QUERY}` is missing" in _refusal(folder)


def test_an_extra_tensor_is_named(folder: Path):
    _edit_tensors(folder, lambda tensors: tensors.update({"model.layers.7.bias": torch.ones(3)}))
    assert "`model.layers.7.bias`" in _refusal(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder: Path):
    _edit_tensors(folder, lambda tensors: tensors.update({QUERY: torch.ones(32, 31)}))
    message = _refusal(folder)
    assert f"`{QUERY}`" in message
    assert "(32, 31)" in message
    assert "(32, 32)" in message


@pytest.mark.parametrize("kept", [0, 5, 200, -1], ids=lambda kept: f"{kept} bytes")
def test_truncated_weights(folder: Path, kept: int):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert "model.safetensors" in _refusal(folder)


def test_no_weights(folder: Path):
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in _refusal(folder)


def test_no_folder_at_all(tmp_path: Path):
    assert "config.json" in _refusal(tmp_path / "nothing")
