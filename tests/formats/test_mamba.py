"""State-space families: padding and caches there and here, published files, keys that are refused, layer patterns."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from references import Float64Everywhere, reference
from safetensors.torch import load_file, save_file
from tiny import random_ids
from torch import Tensor
from variants_mamba import JAMBA, MAMBA, MAMBA2, VARIANTS

from groundup.errors import UserError
from groundup.formats.families.jamba import read_pattern, write_pattern
from groundup.formats.huggingface import FAMILIES, load_language_model, save_model
from groundup.formats.keys import Keys
from groundup.model.cache import KeyValueCache
from groundup.model.recurrent_specs import Mamba, Mamba2

KINDS = {"mamba": MAMBA, "mamba2": MAMBA2, "jamba": JAMBA}
# With a bias in front of the convolution transformers lets padding in: it zeroes what comes before the projection.
BLIND_TO_PADDING = [variant for variant in VARIANTS if "biases" not in variant]


def _theirs(folder: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    )


def _assert_equal(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).norm() <= 1e-9 * theirs.norm()


@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_finds_every_weight_in_our_folder_and_no_other(variant: str, tmp_path: Path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    reference(variant, hot=True).save_pretrained(theirs)
    ours.mkdir()
    save_model(load_language_model(theirs), ours, bos_id=1, eos_ids=[2], pad_id=0)
    _, said = transformers.AutoModelForCausalLM.from_pretrained(ours, output_loading_info=True)
    assert not any(said.values()), said
    assert set(load_file(ours / "model.safetensors")) == set(load_file(theirs / "model.safetensors"))


@pytest.mark.parametrize("variant", BLIND_TO_PADDING)
@torch.no_grad()
def test_left_padding_is_what_it_is_there(variant: str, tmp_path: Path):
    reference(variant, hot=True).save_pretrained(tmp_path)
    ids = random_ids(2, 20)
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    mask[1, :1] = 0
    with Float64Everywhere():
        theirs = _theirs(tmp_path)(ids, attention_mask=mask, use_cache=False).logits
    ours = load_language_model(tmp_path, torch.float64)(ids, attention_mask=mask)
    _assert_equal(ours[mask.bool()], theirs[mask.bool()])


@pytest.mark.parametrize("variant", KINDS)
@torch.no_grad()
def test_a_cache_goes_on_as_it_does_there(variant: str, tmp_path: Path):
    reference(variant, hot=True).save_pretrained(tmp_path)
    model, ids = load_language_model(tmp_path, torch.float64), random_ids(2, 16)
    cache = KeyValueCache(model)
    ours = [model(part, cache=cache) for part in ids.split([9, 1, 1, 5], dim=1)]
    with Float64Everywhere():
        their_model, kept, theirs = _theirs(tmp_path), None, []
        name = "past_key_values" if variant == "jamba" else "cache_params"
        for part in ids.split([9, 1, 1, 1, 1, 1, 1, 1], dim=1):
            out = their_model(part, use_cache=True, **{name: kept})
            kept = out[name]
            theirs.append(out.logits)
    _assert_equal(torch.cat(ours, dim=1), torch.cat(theirs, dim=1))


@torch.no_grad()
def test_limits_of_the_steps_hold_for_single_tokens_too(tmp_path: Path):
    """In transformers 5 they do not: its cached tokens differ from its own uncached ones."""
    reference("mamba2 limited steps", hot=True).save_pretrained(tmp_path)
    model, ids = load_language_model(tmp_path, torch.float64), random_ids(2, 12)
    cache = KeyValueCache(model)
    _assert_equal(torch.cat([model(token, cache=cache) for token in ids.split(1, dim=1)], dim=1), model(ids))


PUBLISHED = {
    # state-spaces/mamba-130m-hf
    "mamba": {
        "d_inner": 64,
        "d_model": 32,
        "fused_add_norm": True,
        "intermediate_size": 64,
        "n_layer": 2,
        "pad_vocab_size_multiple": 8,
        "rms_norm": True,
        "ssm_cfg": {},
        "torch_dtype": "float32",
        "transformers_version": "4.39.0.dev0",
    },
    # mistralai/Mamba-Codestral-7B-v0.1
    "mamba2": {
        "intermediate_size": 64,
        "norm_before_gate": True,
        "rms_norm": True,
        "time_step_init_scheme": "random",
        "time_step_limit": [0.0, float("inf")],
        "time_step_rank": 2,
        "time_step_scale": 1.0,
    },
    # ai21labs/Jamba-v0.1
    "jamba": {
        "calc_logits_for_entire_prompt": False,
        "mamba_inner_layernorms": True,
        "n_ctx": 64,
        "num_logits_to_keep": 1,
        "sliding_window": None,
        "use_mamba_kernels": True,
    },
}


def _rewrite(folder: Path, **keys: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize("variant", KINDS)
@torch.no_grad()
def test_keys_of_published_files_are_read(variant: str, tmp_path: Path):
    reference(variant, hot=True).save_pretrained(tmp_path)
    before = load_language_model(tmp_path)
    _rewrite(tmp_path, **PUBLISHED[variant])
    after = load_language_model(tmp_path)
    assert after.config == before.config
    assert torch.equal(after(random_ids(1, 9)), before(random_ids(1, 9)))


@pytest.mark.parametrize(
    ("variant", "keys", "named"),
    [
        ("mamba", {"rms_norm": False}, "rms_norm"),
        ("mamba", {"ssm_cfg": {"layer": "Mamba2"}}, "ssm_cfg"),
        ("mamba", {"intermediate_size": 65}, "intermediate_size"),
        ("mamba", {"time_step_rank": "half"}, "time_step_rank"),
        ("mamba", {"hidden_act": "softplus"}, "hidden_act"),
        ("mamba", {"state_size": 0}, "state_size"),
        ("mamba", {"mixer_rms_eps": 1e-6}, "mixer_rms_eps"),
        ("mamba2", {"n_groups": 3}, "8 heads do not form 3 equal groups"),
        ("mamba2", {"num_heads": 4}, "num_heads"),
        ("mamba2", {"rms_norm": False}, "rms_norm"),
        ("mamba2", {"time_step_limit": [0.5, 0.1]}, "time_step_limit"),
        ("mamba2", {"time_step_limit": [0.1]}, "time_step_limit"),
        ("mamba2", {"time_step_limit": [-0.1, 1.0]}, "time_step_limit"),
        ("mamba2", {"time_step_limit": [0.0, {"__float__": "NaN"}]}, "time_step_limit"),
        ("jamba", {"attn_layer_offset": 3}, "attn_layer_offset"),
        ("jamba", {"mamba_inner_layernorms": False}, "mamba_inner_layernorms"),
        ("jamba", {"sliding_window": 8}, "sliding_window"),
        ("jamba", {"num_experts_per_tok": 6}, "6 experts cannot be chosen from 5"),
        ("jamba", {"mamba_dt_rank": 0}, "mamba_dt_rank"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(variant: str, keys: dict[str, Any], named: str, tmp_path: Path):
    reference(variant, hot=False).save_pretrained(tmp_path)
    _rewrite(tmp_path, **keys)
    with pytest.raises(UserError, match=named):
        load_language_model(tmp_path)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([0, {"__float__": "Infinity"}], (0.0, float("inf"))),
        ([0.5, float("inf")], (0.5, float("inf"))),
        ([0.0, 0.25], (0.0, 0.25)),
    ],
)
def test_limits_of_the_steps_in_both_spellings_of_infinity(value: list[Any], expected: tuple[float, float]):
    assert Keys({"time_step_limit": value}).limits("time_step_limit") == expected
    assert Keys({}).limits("time_step_limit") == (0.0, float("inf"))


@pytest.mark.parametrize("variant", ["mamba", "mamba2"])
@torch.no_grad()
def test_the_embedding_may_have_its_former_name(variant: str, tmp_path: Path):
    reference(variant, hot=True).save_pretrained(tmp_path)
    expected = load_language_model(tmp_path)(random_ids(1, 9))
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["backbone.embedding.weight"] = tensors.pop("backbone.embeddings.weight")
    save_file(tensors, path)
    assert torch.equal(load_language_model(tmp_path)(random_ids(1, 9)), expected)


@torch.no_grad()
def test_experts_of_jamba_may_lie_fused(tmp_path: Path):
    model = reference("jamba", hot=True)
    model.save_pretrained(tmp_path)
    expected = load_language_model(tmp_path)(random_ids(1, 9))
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, tmp_path / "model.safetensors"
    )
    assert any("gate_up_proj" in name for name in load_file(tmp_path / "model.safetensors"))
    assert torch.equal(load_language_model(tmp_path)(random_ids(1, 9)), expected)


def test_every_pattern_of_layers_that_can_be_read_can_be_written():
    for count in range(1, 7):
        for period in range(1, 9):
            for offset in range(period):
                given = {"attn_layer_period": period, "attn_layer_offset": offset}
                here = read_pattern(Keys(given), "attn_layer", 8, 4, count)
                assert here == [index % period == offset for index in range(count)]
                written = write_pattern("attn_layer", here)
                assert read_pattern(Keys(written), "attn_layer", 8, 4, count) == here


@pytest.mark.parametrize("here", [[True, True, False], [False, False, True, True], [True, False, True, False, False]])
def test_layers_without_a_pattern_are_refused(here: list[bool]):
    with pytest.raises(ValueError, match="attn_layer_period"):
        write_pattern("attn_layer", here)


def test_channels_that_are_no_multiple_of_the_width_cannot_be_written(tmp_path: Path):
    reference("mamba", hot=False).save_pretrained(tmp_path)
    config = load_language_model(tmp_path).config
    odd = replace(config, layers=(replace(config.layers[0], mixer=Mamba(40, 6, 5)),))
    with pytest.raises(ValueError, match="multiple of the width"):
        FAMILIES["mamba"].write(odd)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda spec: replace(spec, heads=9), "9 heads do not form 2 equal groups"),
        (lambda spec: replace(spec, step_limits=(1.0, 0.5)), "between 1.0 and 0.5"),
        (lambda spec: replace(spec, head_dim=0), "`head_dim`"),
        (lambda spec: replace(spec, norm=replace(spec.norm, kind="layer")), "'rms'"),
    ],
)
def test_mixers_that_cannot_be_are_refused(build: Callable[[Mamba2], Mamba2], named: str, tmp_path: Path):
    reference("mamba2", hot=False).save_pretrained(tmp_path)
    spec = load_language_model(tmp_path).config.layers[0].mixer
    assert isinstance(spec, Mamba2)
    with pytest.raises(ValueError, match=named):
        build(spec)
