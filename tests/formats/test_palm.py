"""PaLM, which no class in `transformers` has, gives the logits that its paper describes, worked out token by token."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tiny import hot_decoder, random_ids, tiny_config

from groundup.errors import UserError
from groundup.formats.huggingface import load_model, save_model
from groundup.model.initialise import initialise
from groundup.model.language_model import LanguageModel

Array = NDArray[np.float64]
TIME = 24
WIDTH, HEADS, HEAD_DIM, INNER, LAYERS, VOCABULARY = 32, 3, 16, 40, 2, 64
KEYS: dict[str, Any] = {
    "model_type": "palm",
    "architectures": ["PalmForCausalLM"],
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 64,
}
CHOSEN = {"rope_theta": 300.0, "layer_norm_eps": 1e-3, "num_key_value_heads": 1, "tie_word_embeddings": True}
FOLDERS = pytest.mark.parametrize(
    "changes", [{}, CHOSEN, CHOSEN | {"logit_scale": 0.7}], ids=["the paper's defaults", "chosen values", "logit scale"]
)


def _layer_norm(x: Array, weight: Array, eps: float) -> Array:
    centred = x - sum(x) / len(x)
    return centred / math.sqrt(sum(centred**2) / len(x) + eps) * weight


def _rotated(head: Array, position: int, theta: float) -> Array:
    """Su et al. 2021, equation 15: pair (2i, 2i + 1) turned by position · theta^(-2i / d)."""
    turned = head.copy()
    for i in range(0, len(head), 2):
        angle = position * theta ** (-i / len(head))
        turned[i] = head[i] * math.cos(angle) - head[i + 1] * math.sin(angle)
        turned[i + 1] = head[i] * math.sin(angle) + head[i + 1] * math.cos(angle)
    return turned


def _attention(normed: list[Array], weights: dict[str, Array], heads: int, theta: float) -> list[Array]:
    """Multi-query attention (Shazeer 2019): each head has queries of its own, all share one key and one value."""
    query_matrices = np.split(weights["q_proj"], heads)
    keys = [_rotated(weights["k_proj"] @ x, position, theta) for position, x in enumerate(normed)]
    values = [weights["v_proj"] @ x for x in normed]
    outputs = []
    for position, x in enumerate(normed):
        mixed = []
        for matrix in query_matrices:
            query = _rotated(matrix @ x, position, theta)
            exponentials = [math.exp(query @ key / math.sqrt(len(query))) for key in keys[: position + 1]]
            mixed.append(sum(e * value for e, value in zip(exponentials, values, strict=False)) / sum(exponentials))
        outputs.append(weights["o_proj"] @ np.concatenate(mixed))
    return outputs


def _feed_forward(x: Array, weights: dict[str, Array]) -> Array:
    """SwiGLU (Shazeer 2020): down(swish(gate x) · up x), swish(z) = z / (1 + e^-z)."""
    gate = weights["gate_proj"] @ x
    return weights["down_proj"] @ (gate / (1 + np.exp(-gate)) * (weights["up_proj"] @ x))


def _palm_logits(folder: Path, input_ids: list[int]) -> Array:
    """(time, vocab), from the folder's own numbers; what config.json leaves open is as in the paper."""
    keys = json.loads((folder / "config.json").read_text())
    tensors = {name: tensor.double().numpy() for name, tensor in load_file(folder / "model.safetensors").items()}
    eps, theta = keys.get("layer_norm_eps", 1e-6), keys.get("rope_theta", 10_000.0)
    embedding = tensors["model.embed_tokens.weight"]
    stream = [embedding[token] for token in input_ids]
    for layer in range(keys["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        weights = {name.split(".")[-2]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        normed = [_layer_norm(x, weights["input_layernorm"], eps) for x in stream]
        attended = _attention(normed, weights, keys["num_attention_heads"], theta)
        stream = [x + a + _feed_forward(n, weights) for x, a, n in zip(stream, attended, normed, strict=True)]
    scale = keys.get("logit_scale", 1 / math.sqrt(embedding.shape[1]))
    return np.stack([scale * (embedding @ _layer_norm(x, tensors["model.norm.weight"], eps)) for x in stream])


def _write_folder(folder: Path, changes: dict[str, Any]) -> None:
    """A tiny PaLM with hot weights, written without any code of groundup."""
    shapes = {"model.embed_tokens": (VOCABULARY, WIDTH), "model.norm": (WIDTH,)}
    for layer in range(LAYERS):
        attention, network = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        shapes |= {
            f"model.layers.{layer}.input_layernorm": (WIDTH,),
            f"{attention}.q_proj": (HEADS * HEAD_DIM, WIDTH),
            f"{attention}.k_proj": (HEAD_DIM, WIDTH),
            f"{attention}.v_proj": (HEAD_DIM, WIDTH),
            f"{attention}.o_proj": (WIDTH, HEADS * HEAD_DIM),
            f"{network}.gate_proj": (INNER, WIDTH),
            f"{network}.up_proj": (INNER, WIDTH),
            f"{network}.down_proj": (WIDTH, INNER),
        }
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        matrix = noise if "embed" in name else 2 * noise / shape[-1] ** 0.5
        tensors[f"{name}.weight"] = matrix if len(shape) == 2 else 1 + 0.5 * noise
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(KEYS | changes))


def _assert_gives_the_papers_logits(folder: Path) -> None:
    ids = random_ids(1, TIME)
    with torch.no_grad():
        ours = load_model(folder, torch.float64)(ids)[0].numpy()
    theirs = _palm_logits(folder, ids[0].tolist())
    assert np.linalg.norm(ours - theirs) <= 1e-9 * np.linalg.norm(theirs)


@FOLDERS
def test_logits_are_those_of_the_paper(changes: dict[str, Any], tmp_path: Path):
    _write_folder(tmp_path, changes)
    _assert_gives_the_papers_logits(tmp_path)


@FOLDERS
def test_what_is_saved_comes_back_to_the_bit(changes: dict[str, Any], tmp_path: Path):
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    _write_folder(before, changes)
    model = load_model(before)
    save_model(model, after, bos_id=1, eos_ids=[2], pad_id=0)
    assert load_model(after).config == model.config
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    _assert_gives_the_papers_logits(after)


def test_the_preset_is_the_papers_model(tmp_path: Path):
    model = hot_decoder(tiny_config("palm"))
    save_model(model, tmp_path, bos_id=1, eos_ids=[2], pad_id=0)
    _assert_gives_the_papers_logits(tmp_path)
    keys = json.loads((tmp_path / "config.json").read_text())
    assert (keys["num_key_value_heads"], keys["tie_word_embeddings"]) == (1, True)
    assert keys["intermediate_size"] == 4 * keys["hidden_size"]
    assert keys["logit_scale"] == pytest.approx(keys["hidden_size"] ** -0.5, rel=1e-15)


@torch.no_grad()
def test_a_fresh_model_has_logits_as_large_as_those_of_other_tied_heads():
    """The factor on the logits is made up for by a larger embedding, as the paper pairs the two."""

    def size_of_logits(preset: str) -> float:
        model = LanguageModel(tiny_config(preset))
        initialise(model, seed=0)
        return model(random_ids(8, 16)).std().item()

    assert size_of_logits("palm") == pytest.approx(size_of_logits("llama"), rel=0.1)


@pytest.mark.parametrize("changes", [{"attention_bias": False}, {"partial_rotary_factor": 0.5}])
def test_keys_that_the_family_does_not_have_are_refused_by_name(changes: dict[str, Any], tmp_path: Path):
    _write_folder(tmp_path, changes)
    with pytest.raises(UserError, match=f"`{next(iter(changes))}`"):
        load_model(tmp_path)
