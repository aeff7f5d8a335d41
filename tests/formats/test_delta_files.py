"""Folders of Qwen3-Next and LFM2: long texts, layouts and keys of published files, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from references import Float64Everywhere, reference
from safetensors.torch import load_file, save_file
from tiny import random_ids

from groundup.errors import UserError
from groundup.formats.huggingface import FAMILIES, load_language_model, load_model, save_model
from groundup.formats.keys import Keys
from groundup.model.cache import KeyValueCache
from groundup.model.presets import build_config
from groundup.model.specs import Experts

LONG = 150


def _change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("variant", ["qwen3_next", "qwen3_next one key head, wide values", "lfm2"])
@torch.no_grad()
def test_a_text_of_several_chunks_gives_the_references_logits(variant: str, tmp_path: Path):
    """Two whole chunks of 64 tokens and a rest; then the same text through a cache, cut anywhere."""
    reference(variant, hot=True).save_pretrained(tmp_path)
    ids = random_ids(2, LONG)
    with Float64Everywhere():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
        )
        expected = theirs(ids, use_cache=False).logits
    model = load_language_model(tmp_path, torch.float64)
    assert (model(ids) - expected).norm() <= 1e-9 * expected.norm()
    cache = KeyValueCache(model)
    parts = [model(part, cache=cache) for part in ids.split([1, 1, 70, 1, 64, 13], dim=1)]
    assert (torch.cat(parts, dim=1) - expected).norm() <= 1e-9 * expected.norm()


@pytest.mark.parametrize("variant", ["qwen3_next", "lfm2"])
@torch.no_grad()
def test_left_padding_and_a_cache_go_together(variant: str, tmp_path: Path):
    """The shorter text has fewer tokens than the convolution looks back: padding must not come in through the state."""
    reference(variant, hot=True).save_pretrained(tmp_path)
    model = load_language_model(tmp_path, torch.float64)
    ids, lengths = random_ids(3, 12), (12, 9, 1)
    prompts, mask = torch.full((3, 12), 3), torch.zeros(3, 12, dtype=torch.long)
    for row, length in enumerate(lengths):
        prompts[row, 12 - length :] = ids[row, :length]
        mask[row, 12 - length :] = 1
    cache, more, found = KeyValueCache(model), random_ids(3, 5, seed=1), []
    found.append(model(prompts, mask, cache)[:, -1:])
    for token in more.split([1, 2, 2], dim=1):
        mask = torch.cat((mask, torch.ones_like(token)), dim=1)
        found.append(model(token, mask, cache))
    for row, length in enumerate(lengths):
        alone = model(torch.cat((ids[row, :length], more[row]))[None])[0, length - 1 :]
        assert (torch.cat(found, dim=1)[row] - alone).norm() <= 1e-9 * alone.norm()


@pytest.mark.parametrize("variant", ["qwen3_next", "lfm2_moe"])
@torch.no_grad()
def test_fused_experts_are_read_too(variant: str, tmp_path: Path):
    separate, fused = tmp_path / "separate", tmp_path / "fused"
    model = reference(variant, hot=True)
    model.save_pretrained(separate)
    model.config.save_pretrained(fused)
    separately = load_file(separate / "model.safetensors")
    tensors = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if name in separately or ".experts." in name
    }
    save_file(tensors, fused / "model.safetensors")
    assert any(name.endswith("experts.gate_up_proj") for name in tensors)
    one, other = load_model(separate), load_model(fused)
    for (name, parameter), (_, same) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(parameter, same), name


@pytest.mark.parametrize("variant", ["qwen3_next", "qwen3_next biases, one kv head", "lfm2", "lfm2_moe"])
def test_our_files_hold_the_tensors_that_theirs_do(variant: str, tmp_path: Path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    reference(variant, hot=True).save_pretrained(theirs)
    ours.mkdir()
    save_model(load_model(theirs), ours, bos_id=1, eos_ids=[2], pad_id=0)
    expected, found = (load_file(folder / "model.safetensors") for folder in (theirs, ours))
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    _, report = transformers.AutoModelForCausalLM.from_pretrained(ours, output_loading_info=True)
    assert not any(report.values()), report


def test_layers_for_speculation_are_passed_over(tmp_path: Path):
    reference("qwen3_next", hot=False).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    more = {"mtp.fc.weight": torch.zeros(2, 2), "mtp.layers.0.mlp.gate.weight": torch.zeros(1)}
    save_file({name: tensor.clone() for name, tensor in tensors.items()} | more, path)
    load_model(tmp_path)
    save_file({name: tensor.clone() for name, tensor in tensors.items()} | {"odd.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"`odd\.weight` has no place"):
        load_model(tmp_path)


PUBLISHED: dict[str, dict[str, Any]] = {
    # Qwen/Qwen3-Next-80B-A3B-Instruct, but for the sizes and `layer_types`, which it has not.
    "qwen3_next": {
        "decoder_sparse_step": 1,
        "full_attention_interval": 4,
        "router_aux_loss_coef": 0.001,
        "use_sliding_window": False,
    },
    # LiquidAI/LFM2-1.2B, likewise.
    "lfm2": {
        "block_dim": 32,
        "block_mlp_init_scale": 1.0,
        "block_norm_eps": 1e-5,
        "block_out_init_scale": 1.0,
        "block_use_swiglu": True,
        "block_use_xavier_init": True,
        "conv_dim": 32,
        "conv_dim_out": 32,
        "conv_use_xavier_init": True,
        "num_heads": 4,
        "theta": 300.0,
        "tie_embedding": True,
        "use_pos_enc": True,
    },
}


@pytest.mark.parametrize("variant", PUBLISHED)
def test_keys_of_published_files_are_understood(variant: str, tmp_path: Path):
    reference(variant, hot=False).save_pretrained(tmp_path)
    expected = load_model(tmp_path).config
    _change_config(tmp_path, **PUBLISHED[variant])
    assert load_model(tmp_path).config == expected


def test_the_published_inner_width_of_lfm2_is_adjusted():
    """LFM2-1.2B: 12,288 · 2/3 = 8,192; LFM2-350M: 6,656 · 2/3, rounded up to 256s."""
    keys = {"hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 1, "vocab_size": 8}
    for given, expected in ((12_288, 8_192), (6_656, 4_608)):
        config = FAMILIES["lfm2"].read(Keys(keys | {"block_ff_dim": given, "intermediate_size": 1}))
        assert config.layers[0].network.width == expected


@pytest.mark.parametrize(
    ("variant", "changes", "named"),
    [
        ("qwen3_next", {"linear_num_value_heads": 5}, "`value_heads`"),
        ("qwen3_next", {"linear_conv_kernel_dim": 0}, "`linear_conv_kernel_dim`"),
        ("qwen3_next", {"layer_types": ["full_attention", "sliding_attention"]}, "`layer_types`"),
        ("qwen3_next", {"layer_types": ["full_attention"]}, "`layer_types`"),
        ("qwen3_next", {"use_sliding_window": True}, "`use_sliding_window`"),
        ("qwen3_next", {"num_experts_per_tok": 6}, "6 experts cannot be chosen from 5"),
        ("qwen3_next", {"attn_output_gate": False}, "`attn_output_gate`"),
        ("lfm2", {"layer_types": ["conv", "linear_attention"]}, "`layer_types`"),
        ("lfm2", {"layer_types": None, "full_attn_idxs": 1}, "`full_attn_idxs`"),
        ("lfm2", {"block_use_swiglu": False}, "`block_use_swiglu`"),
        ("lfm2", {"conv_dim": 64}, "`conv_dim`"),
        ("lfm2", {"hidden_act": "gelu"}, "`hidden_act`"),
        ("lfm2_moe", {"num_experts": 1}, "2 experts cannot be chosen from 1"),
    ],
)
def test_what_our_parts_cannot_express_is_refused_by_name(
    variant: str, changes: dict[str, Any], named: str, tmp_path: Path
):
    reference(variant, hot=False).save_pretrained(tmp_path)
    _change_config(tmp_path, **changes)
    with pytest.raises(UserError, match=named) as caught:
        load_model(tmp_path)
    assert "config.json" in str(caught.value)


OPTIONAL = (
    "attention_bias block_auto_adjust_ff_dim block_ffn_dim_multiplier block_multiple_of conv_L_cache conv_bias "
    "decoder_sparse_step full_attn_idxs head_dim hidden_act linear_conv_kernel_dim linear_key_head_dim "
    "linear_num_key_heads linear_num_value_heads linear_value_head_dim max_position_embeddings mlp_only_layers "
    "moe_intermediate_size norm_eps norm_topk_prob num_dense_layers num_experts num_experts_per_tok "
    "num_key_value_heads rms_norm_eps rope_parameters routed_scaling_factor shared_expert_intermediate_size "
    "tie_word_embeddings use_expert_bias"
).split()


@pytest.mark.parametrize("variant", ["qwen3_next", "lfm2", "lfm2_moe"])
def test_what_a_file_does_not_say_is_what_the_reference_takes(variant: str, tmp_path: Path):
    keys = reference(variant, hot=False).config.to_dict() | {"hidden_size": 64, "num_attention_heads": 16}
    left_out = OPTIONAL if variant == "lfm2_moe" else [*OPTIONAL, "layer_types"]
    keys = {key: value for key, value in keys.items() if key not in left_out} | {"num_hidden_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps(keys))
    full = transformers.AutoConfig.from_pretrained(tmp_path)
    family = FAMILIES[variant]
    ours, theirs = (family.read(Keys(one)) for one in (keys, full.to_dict()))
    assert ours == theirs
    experts = ours.layers[-1].feed_forward
    if isinstance(experts, Experts):
        sizes = {"qwen3_next": (512, 10), "lfm2_moe": (32, 4)}
        assert (experts.router.experts, experts.router.chosen) == sizes[variant]


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("preset", ["qwen3_next", "lfm2"])
def test_presets_of_any_depth_are_what_their_folder_says(preset: str, depth: int):
    config = build_config(preset, depth, vocab_size=64, context=32, width=64, head_dim=16)
    assert len(config.layers) == depth
    assert FAMILIES[preset].read(Keys(json.loads(json.dumps(FAMILIES[preset].write(config))))) == config
