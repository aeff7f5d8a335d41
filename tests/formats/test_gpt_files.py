"""Files of GPT-2, GPT-J, GPT-NeoX, OPT and Falcon as they were published: old keys, old names, copies, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from references import reference
from safetensors.torch import load_file, save_file
from test_decoder_families import _assert_equal, _their_logits
from tiny import random_ids
from torch import Tensor

from groundup.errors import UserError
from groundup.formats.huggingface import COMMON_KEYS, FAMILIES, load_model
from groundup.formats.keys import Keys
from groundup.model.config import ModelConfig

GPT: dict[str, Any] = {"n_embd": 96, "n_head": 4, "n_layer": 3, "vocab_size": 50}
SIZES: dict[str, Any] = {"hidden_size": 96, "num_attention_heads": 4, "num_hidden_layers": 3, "vocab_size": 50}
SUMMARY = {
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}
# By family: what a file must say, and then files with the keys that published ones hold, sizes aside.
MINIMAL: dict[str, dict[str, Any]] = {
    "gpt2": GPT,
    "gptj": GPT | {"rotary_dim": 24},
    "gpt_neox": SIZES | {"intermediate_size": 64},
    "opt": SIZES | {"ffn_dim": 64},
    "falcon": SIZES,
}
PUBLISHED: list[tuple[str, dict[str, Any]]] = [
    *MINIMAL.items(),
    ("gpt2", GPT | SUMMARY | {"activation_function": "gelu_new", "n_ctx": 64, "n_positions": 64, "resid_pdrop": 0.1}),
    (
        "gptj",
        GPT
        | SUMMARY
        | {
            "gradient_checkpointing": False,
            "n_inner": None,
            "rotary": True,
            "rotary_dim": 8,
            "scale_attn_weights": True,
        },
    ),
    (
        "gpt_neox",
        SIZES
        | {
            "attention_probs_dropout_prob": 0,
            "hidden_act": "gelu_fast",
            "hidden_dropout_prob": 0,
            "intermediate_size": 64,
            "layer_norm_eps": 1e-4,
            "rotary_emb_base": 2000,
            "rotary_pct": 0.5,
            "use_parallel_residual": False,
        },
    ),
    (
        "gpt_neox",
        SIZES | {"intermediate_size": 64, "rope_scaling": {"type": "linear", "factor": 2.0}, "rotary_emb_base": 2000},
    ),
    (
        "opt",
        SIZES
        | {
            "_remove_final_layer_norm": False,
            "activation_dropout": 0.0,
            "do_layer_norm_before": False,
            "ffn_dim": 64,
            "init_std": 0.02,
            "layerdrop": 0.0,
            "prefix": "</s>",
            "word_embed_proj_dim": 20,
        },
    ),
    (
        "falcon",
        SIZES
        | {
            "apply_residual_connection_post_layernorm": False,
            "multi_query": True,
            "rope_theta": 2000.0,
            "alibi": False,
        },
    ),
    ("falcon", SIZES | {"new_decoder_architecture": True, "num_kv_heads": 2, "parallel_attn": True}),
    (
        "falcon",
        SIZES
        | {
            "ff_factor": 4,
            "ffn_hidden_size": 64,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 1,
            "rope_scaling": None,
            "rope_theta": 2000.0,
        },
    ),
    (
        "falcon",
        SIZES
        | {
            "alibi": True,
            "bias": True,
            "max_position_embeddings": 64,
            "multi_query": False,
            "num_kv_heads": 4,
            "parallel_attn": False,
        },
    ),
]
# Family, keys, and what the refusal names.
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    ("gpt2", {"activation_function": "swish"}, "activation_function"),
    ("gpt2", {"n_head": 5}, "n_embd"),
    ("gpt2", {"n_inner": 0}, "n_inner"),
    ("gpt3", {"layer_types": ["sliding_attention"] * 3}, "layer_types"),
    ("gpt3", {"layer_types": ["full_attention"] * 2, "sliding_window": 8}, "layer_types"),
    ("gpt3", {"layer_types": ["chunked_attention"] * 3, "sliding_window": 8}, "layer_types"),
    ("gptj", {"rotary_dim": None}, "rotary_dim"),
    ("gptj", {"rotary": False}, "rotary"),
    ("gptj", {"rotary_dim": 26}, "head_dim"),
    ("gptj", {"scale_attn_weights": False}, "scale_attn_weights"),
    ("gpt_neox", {"rotary_pct": 0.0}, "rotary_pct"),
    ("gpt_neox", {"rotary_emb_base": 2000, "rope_theta": 3000}, "rope_theta"),
    ("gpt_neox", {"partial_rotary_factor": 0.5, "rotary_pct": 0.25}, "partial_rotary_factor"),
    ("gpt_neox", {"num_key_value_heads": 2}, "num_key_value_heads"),
    ("opt", {"word_embed_proj_dim": -1}, "word_embed_proj_dim"),
    ("opt", {"hidden_size": 97}, "hidden_size"),
    ("falcon", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
    ("falcon", {"new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn"),
    ("falcon", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn"),
    ("falcon", {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 3}, "num_ln_in_parallel_attn"),
    ("falcon", {"multi_query": False, "num_kv_heads": 2}, "num_kv_heads"),
    ("falcon", {"rope_parameters": {"rope_theta": 2.0, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
]


def _read(family: str, values: dict[str, Any]) -> ModelConfig:
    keys = Keys(values)
    keys.without_effect(*COMMON_KEYS)
    config = FAMILIES[family].read(keys)
    if unread := keys.unread():
        raise ValueError(f"`{unread[0]}` was not read")
    return config


@pytest.mark.parametrize(("family", "values"), PUBLISHED)
def test_published_keys_and_absent_ones_mean_what_transformers_takes_them_for(
    family: str, values: dict[str, Any], tmp_path: Path
):
    (tmp_path / "config.json").write_text(json.dumps(values | {"model_type": family}))
    transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    new = json.loads((tmp_path / "config.json").read_text())
    assert len(new) > len(values)
    assert _read(family, values) == _read(family, new)


@pytest.mark.parametrize(("family", "keys", "named"), REFUSED)
def test_what_our_parts_cannot_express_is_refused_by_its_name(family: str, keys: dict[str, Any], named: str):
    with pytest.raises(ValueError, match=f"`{named}`"):
        _read(family, MINIMAL[family.replace("gpt3", "gpt2")] | keys)


def _rewrite(folder: Path, change: dict[str, Tensor] | None = None, prefix: str = "") -> dict[str, Tensor]:
    """Leave `prefix` out of all names in a folder and add tensors to it."""
    path = folder / "model.safetensors"
    tensors = {name.removeprefix(prefix): tensor for name, tensor in load_file(path).items()}
    save_file(tensors | (change or {}), path)
    return tensors


def test_openais_own_layout_of_gpt2_is_read(tmp_path: Path):
    """Names without `transformer.`, and the causal mask of every layer."""
    reference("gpt2", hot=True).save_pretrained(tmp_path)
    expected = _their_logits(tmp_path, random_ids(2, 24))
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 40, 40).tril() for layer in range(3)}
    _rewrite(tmp_path, masks, prefix="transformer.")
    with torch.no_grad():
        _assert_equal(load_model(tmp_path, torch.float64)(random_ids(2, 24)), expected)


@pytest.mark.parametrize(
    ("variant", "names"),
    [
        ("gpt2", ["transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"]),
        ("gptj", ["transformer.h.1.attn.bias", "transformer.h.1.attn.masked_bias"]),
        (
            "gpt_neox",
            [f"gpt_neox.layers.1.attention.{name}" for name in ("bias", "masked_bias", "rotary_emb.inv_freq")],
        ),
        ("falcon", ["transformer.h.1.self_attention.rotary_emb.inv_freq"]),
    ],
)
def test_tensors_that_nothing_needs_are_passed_over(variant: str, names: list[str], tmp_path: Path):
    reference(variant, hot=True).save_pretrained(tmp_path)
    before = dict(load_model(tmp_path).named_parameters())
    _rewrite(tmp_path, {name: torch.ones(4) for name in names})
    after = dict(load_model(tmp_path).named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("variant", "prefix", "embedding", "head"),
    [
        ("falcon", "", "transformer.word_embeddings.weight", "lm_head.weight"),
        ("gpt2", "transformer.", "wte.weight", "lm_head.weight"),
        ("gpt_neox tied, fewer biases", "", "gpt_neox.embed_in.weight", "embed_out.weight"),
    ],
)
def test_a_tied_head_may_lie_in_the_file_as_long_as_it_is_the_embedding(
    variant: str, prefix: str, embedding: str, head: str, tmp_path: Path
):
    reference(variant, hot=True).save_pretrained(tmp_path)
    table = _rewrite(tmp_path, prefix=prefix)[embedding]
    _rewrite(tmp_path, {head: table.clone()})
    assert load_model(tmp_path).head is None
    table[3, 5] += 1
    _rewrite(tmp_path, {head: table})
    with pytest.raises(UserError, match=f"`{head}`"):
        load_model(tmp_path)
