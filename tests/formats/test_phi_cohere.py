"""Phi and Cohere folders as their publishers wrote them: other keys for the same model, some of them to be refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from references import Float64Everywhere, reference
from tiny import random_ids

from groundup.errors import UserError
from groundup.formats.huggingface import load_model, save_model
from groundup.model.rotary import LongRopeScaling

# What the published files say beside what `transformers` 5 writes, and in other words.
PHI2 = {"rope_theta": 300.0, "rope_scaling": None, "partial_rotary_factor": 0.75, "embd_pdrop": 0.1, "resid_pdrop": 0.1}
PHI4_MINI = {
    "attention_bias": False,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
    "embd_pdrop": 0.0,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "mlp_bias": False,
    "rope_theta": 300.0,
}
COMMAND_R = {"model_max_length": 131_072, "rope_theta": 300.0, "rope_scaling": None}
COMMAND_R7B = {
    "cache_implementation": "hybrid",
    "head_dim": 8,
    "layer_switch": 2,
    "order_of_interleaved_layers": "local_attn_first",
    "position_embedding_type": "rope_gptj",
    "rope_scaling": None,
    "rope_theta": 300.0,
    "rotary_pct": 1.0,
    "sliding_window_pattern": 2,
    "use_embedding_sharing": True,
    "use_gated_activation": True,
    "use_parallel_block": True,
    "use_parallel_embedding": True,
    "use_qk_norm": False,
}


def _longrope(kind: str, count: int = 4) -> dict[str, Any]:
    factors = {"short_factor": [1.1, 1.3, 1.7, 2.3][:count], "long_factor": [1.2, 2.5, 4.5, 7.5][:count]}
    return {"rope_scaling": {"type": kind, **factors}}


# Name: (variant with the weights, keys of the file in place of `rope_parameters` and `layer_types`).
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "Phi-2": ("phi", PHI2),
    "Phi-3 mini 4k": ("phi3 window", {"rope_theta": 300.0, "rope_scaling": None, "embd_pdrop": 0.0}),
    "Phi-3.5 mini": ("phi3 longrope", {"rope_theta": 300.0} | _longrope("longrope")),
    "Phi-3 medium, text beyond the original": (
        "phi3 longrope, text beyond the original length",
        {"rope_theta": 300.0} | _longrope("longrope"),
    ),
    "Phi-4 mini": (
        "phi3 longrope on half of each head",
        PHI4_MINI | _longrope("longrope", count=2) | {"partial_rotary_factor": 0.5},
    ),
    "Command R": ("cohere", COMMAND_R),
    "Command R+": ("cohere norm of heads", COMMAND_R | {"use_qk_norm": True}),
    "Command R7B": ("cohere2 every second layer global", COMMAND_R7B),
}


def _rewrite(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@torch.no_grad()
def _assert_equal_there_and_here(folder: Path) -> None:
    ids = random_ids(2, 24)
    with Float64Everywhere():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float64, attn_implementation="eager"
        )
        theirs = model(ids).logits
    assert (load_model(folder, torch.float64)(ids) - theirs).norm() <= 1e-9 * theirs.norm()


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_files_as_they_are_published_give_equal_logits(name: str, tmp_path: Path):
    variant, published = PUBLISHED[name]
    reference(variant, hot=True).save_pretrained(tmp_path)
    before = load_model(tmp_path, torch.float64)(random_ids(2, 24))
    newer = ("rope_parameters", "layer_types")
    _rewrite(tmp_path, lambda keys: {key: value for key, value in keys.items() if key not in newer} | published)
    assert torch.equal(load_model(tmp_path, torch.float64)(random_ids(2, 24)), before)
    _assert_equal_there_and_here(tmp_path)


@pytest.mark.parametrize("family", ["phi", "phi3", "cohere", "cohere2"])
def test_keys_that_a_file_leaves_out_mean_what_they_mean_in_transformers(family: str, tmp_path: Path):
    reference(family, hot=True, num_key_value_heads=None).save_pretrained(tmp_path)
    sizes = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}
    kept = sizes | {"architectures", "model_type", "pad_token_id"}
    _rewrite(tmp_path, lambda keys: {key: value for key, value in keys.items() if key in kept})
    _assert_equal_there_and_here(tmp_path)


@torch.no_grad()
def test_the_first_name_of_longrope_is_read(tmp_path: Path):
    """Phi-3 mini 128k as published in April 2024, which `transformers` 5 itself no longer reads."""
    reference("phi3 longrope", hot=True).save_pretrained(tmp_path)
    before = load_model(tmp_path, torch.float64)(random_ids(2, 24))
    older = {"rope_parameters": None, "rope_theta": 300.0} | _longrope("su")
    _rewrite(tmp_path, lambda keys: keys | older)
    assert torch.equal(load_model(tmp_path, torch.float64)(random_ids(2, 24)), before)


@pytest.mark.parametrize("inside", [8, None])
@pytest.mark.parametrize("beside", [16, 32, None])
def test_the_original_length_is_the_one_that_transformers_takes(beside: int | None, inside: int | None, tmp_path: Path):
    """Beside the table before inside it, and before both what the class has by default, which is 4096."""
    reference("phi3 longrope", hot=True).save_pretrained(tmp_path)

    def with_lengths(keys: dict[str, Any]) -> dict[str, Any]:
        for table, length in ((keys, beside), (keys["rope_parameters"], inside)):
            table["original_max_position_embeddings"] = length
            if length is None:
                del table["original_max_position_embeddings"]
        return keys

    _rewrite(tmp_path, with_lengths)
    scaling = load_model(tmp_path).config.layers[0].attention.rope.scaling
    assert isinstance(scaling, LongRopeScaling)
    assert scaling.original == beside or (beside is None and scaling.original == 4096)
    _assert_equal_there_and_here(tmp_path)


@pytest.mark.parametrize("variant", ["phi3 longrope", "phi3 longrope, an attention factor of its own"])
def test_longrope_is_written_as_version_4_demands_it(variant: str, tmp_path: Path):
    """Its Phi-3 refuses a table of other than these three keys; a factor of its own it could not express."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    reference(variant, hot=True).save_pretrained(theirs)
    ours.mkdir()
    save_model(load_model(theirs), ours, bos_id=1, eos_ids=[2], pad_id=0)
    keys = json.loads((ours / "config.json").read_text())
    own = "attention factor" in variant
    assert (set(keys["rope_scaling"]) == {"type", "short_factor", "long_factor"}) == (not own)
    assert keys["original_max_position_embeddings"] == 32
    assert keys["rope_scaling"].get("attention_factor") == (1.4 if own else None)


@pytest.mark.parametrize(
    ("variant", "key", "value"),
    [
        ("phi", "layer_norm_eps", 0),
        ("phi", "qk_layernorm", "yes"),
        ("phi3", "attention_bias", True),
        ("phi3", "lm_head_bias", True),
        ("phi3", "rope_scaling", {"type": "linear", "factor": 2.0}),
        ("phi3", "short_factor", {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0, 2.0, 3.0, 4.0]}),
        ("phi3", "long_factor", {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0] * 5}),
        ("phi3", "original_max_position_embeddings", 0),
        ("cohere", "logit_scale", None),
        ("cohere", "partial_rotary_factor", 0.5),
        ("cohere2", "use_qk_norm", True),
        ("cohere2", "layer_switch", 3),
        ("cohere2", "position_embedding_type", "rope_neox"),
        ("cohere2", "sliding_window", None),
        ("cohere2", "layer_types", ["sliding_attention"]),
    ],
)
def test_what_our_parts_cannot_express_is_refused_by_name(variant: str, key: str, value: Any, tmp_path: Path):
    reference(variant, hot=False).save_pretrained(tmp_path)
    place = "rope_scaling" if isinstance(value, dict) else key
    dropped = {"rope_parameters", place} if place in ("rope_scaling", "partial_rotary_factor") else {place}
    _rewrite(tmp_path, lambda keys: {k: v for k, v in keys.items() if k not in dropped} | {place: value})
    with pytest.raises(UserError, match=f"`{key}`"):
        load_model(tmp_path)
