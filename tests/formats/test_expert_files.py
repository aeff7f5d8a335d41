"""Files that hold experts one by one or fused, and configurations of experts that cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from references import reference
from safetensors.torch import load_file, save_file
from tiny import random_ids

from groundup.errors import UserError
from groundup.formats.huggingface import FAMILIES, load_model, save_model
from groundup.formats.keys import Keys
from groundup.formats.rules import JoinedExperts, Stacked
from groundup.model.specs import Experts

SEPARATE = ("mixtral", "qwen2_moe some layers dense", "qwen3_moe", "olmoe")
VARIANT = pytest.mark.parametrize("variant", SEPARATE)


def _change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _change_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()} | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path, metadata={"format": "pt"})


@VARIANT
def test_files_hold_one_tensor_per_expert_and_so_do_ours(variant: str, tmp_path: Path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    reference(variant, hot=True).save_pretrained(theirs)
    ours.mkdir()
    save_model(load_model(theirs), ours, bos_id=1, eos_ids=[2], pad_id=0)
    expected, found = (load_file(folder / "model.safetensors") for folder in (theirs, ours))
    assert sum(".experts.4." in name for name in expected) in (3, 6)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@VARIANT
@torch.no_grad()
def test_fused_experts_are_read_too(variant: str, tmp_path: Path):
    separate, fused = tmp_path / "separate", tmp_path / "fused"
    model = reference(variant, hot=True)
    model.save_pretrained(separate)
    model.config.save_pretrained(fused)
    # What the reference holds in memory is the fused layout.
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, fused / "model.safetensors")
    assert any(name.endswith("experts.gate_up_proj") for name in load_file(fused / "model.safetensors"))
    one, other = load_model(separate), load_model(fused)
    for (name, parameter), (_, same) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(parameter, same), name
    torch.testing.assert_close(one(random_ids(1, 9)), other(random_ids(1, 9)))


def test_a_missing_or_additional_or_misshapen_expert_is_named(tmp_path: Path):
    reference("mixtral", hot=False).save_pretrained(tmp_path)
    name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    good = load_file(tmp_path / "model.safetensors")[name].clone()
    more = name.replace("experts.3", "experts.5")
    for changes, named in (
        ({name: None}, f"`{name}` is missing"),
        ({name: good.T.contiguous()}, rf"`{name}` has shape \(48, 32\)"),
        ({name: good, more: good.clone()}, f"`{more}` has no place"),
    ):
        _change_tensors(tmp_path, **changes)
        with pytest.raises(UserError, match=named):
            load_model(tmp_path)


@pytest.mark.parametrize(
    ("variant", "changes", "named"),
    [
        ("mixtral", {"num_experts_per_tok": 6}, "6 experts cannot be chosen from 5"),
        ("mixtral", {"num_local_experts": 0}, "`num_local_experts`"),
        ("qwen2_moe", {"mlp_only_layers": [0, 1]}, "`mlp_only_layers`"),
        ("qwen3_moe", {"decoder_sparse_step": 3}, "`decoder_sparse_step`"),
        ("qwen2_moe", {"layer_types": ["sliding_attention"] * 2}, "`layer_types`"),
        ("olmoe", {"clip_qkv": -1.0}, "`clip_qkv`"),
        ("gpt_oss", {"swiglu_limit": None}, "`swiglu_limit`"),
        ("gpt_oss", {"quantization_config": {"quant_method": "mxfp4"}}, "`quantization_config`"),
    ],
)
def test_what_our_parts_cannot_express_is_refused_by_name(
    variant: str, changes: dict[str, Any], named: str, tmp_path: Path
):
    reference(variant, hot=False).save_pretrained(tmp_path)
    _change_config(tmp_path, **changes)
    with pytest.raises(UserError, match=named):
        load_model(tmp_path)


def test_keys_of_published_files_are_understood(tmp_path: Path):
    published = {
        "mixtral": {"router_aux_loss_coef": 0.02, "router_jitter_noise": 0.1},
        "qwen2_moe": {"sliding_window": 0, "router_aux_loss_coef": 0.001},
        "qwen3_moe": {"max_window_layers": 48, "num_experts": 5},
        "gpt_oss": {"experts_per_token": 2, "initial_context_length": 4096, "router_aux_loss_coef": 0.9},
    }
    for variant, changes in published.items():
        folder = tmp_path / variant
        reference(variant, hot=False).save_pretrained(folder)
        expected = load_model(folder).config
        _change_config(folder, **changes)
        assert load_model(folder).config == expected


OPTIONAL = (
    "attention_bias clip_qkv decoder_sparse_step head_dim hidden_act layer_types max_position_embeddings "
    "max_window_layers mlp_only_layers moe_intermediate_size norm_topk_prob num_experts num_experts_per_tok "
    "num_key_value_heads num_local_experts qkv_bias rms_norm_eps rope_parameters shared_expert_intermediate_size "
    "sliding_window swiglu_alpha swiglu_limit tie_word_embeddings use_sliding_window"
).split()


@pytest.mark.parametrize("variant", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss"])
def test_what_a_file_does_not_say_is_what_the_reference_takes(variant: str, tmp_path: Path):
    keys = reference(variant, hot=False).config.to_dict() | {"hidden_size": 64, "num_attention_heads": 16}
    keys = {key: value for key, value in keys.items() if key not in OPTIONAL}
    (tmp_path / "config.json").write_text(json.dumps(keys))
    full = transformers.AutoConfig.from_pretrained(tmp_path)
    family = FAMILIES[variant]
    ours, theirs = (family.read(Keys(one)) for one in (keys, full.to_dict()))
    assert ours == theirs
    # Said and unsaid are not both wrong: the numbers are the published ones.
    experts = ours.layers[1].feed_forward
    assert isinstance(experts, Experts)
    assert (experts.router.experts, experts.router.chosen) == {
        "mixtral": (8, 2),
        "qwen2_moe": (60, 4),
        "qwen3_moe": (128, 8),
        "olmoe": (64, 8),
        "gpt_oss": (128, 4),
    }[variant]


@pytest.mark.parametrize("below", [3, 28])
def test_windows_of_a_file_without_layer_types_are_those_of_the_reference(below: int, tmp_path: Path):
    keys = reference("qwen2_moe windows", hot=False).config.to_dict() | {"num_hidden_layers": 5}
    keys = {key: value for key, value in keys.items() if key != "layer_types"} | {"max_window_layers": below}
    (tmp_path / "config.json").write_text(json.dumps(keys))
    kinds = transformers.AutoConfig.from_pretrained(tmp_path).layer_types
    assert set(kinds) == {"full_attention", "sliding_attention"}
    layers = FAMILIES["qwen2_moe"].read(Keys(keys)).layers
    assert [layer.attention.window for layer in layers] == [
        8 if kind == "sliding_attention" else None for kind in kinds
    ]


@pytest.mark.parametrize("operation", [JoinedExperts(a, t) for a in (False, True) for t in (False, True)], ids=str)
def test_joined_experts_come_apart_again(operation: JoinedExperts):
    ours = [torch.randn(3, 4, 5) for _ in range(2)]
    (disk,) = operation.to_disk(ours)
    assert disk.shape == ((3, 5, 8) if operation.transposed else (3, 8, 5))
    for one, other in zip(ours, operation.from_disk([disk], [(3, 4, 5)] * 2), strict=True):
        assert torch.equal(one, other)
    row = disk[1, :, 1] if operation.transposed else disk[1, 1]
    assert torch.equal(row, ours[1][1, 0] if operation.alternating else ours[0][1, 1])


def test_a_stack_is_one_tensor_each():
    ours = torch.randn(3, 4, 5)
    disk = Stacked().to_disk([ours])
    assert [tensor.shape for tensor in disk] == [(4, 5)] * 3
    assert torch.equal(Stacked().from_disk(disk, [(3, 4, 5)])[0], ours)
