"""GPT-3, which no class in `transformers` is, gives the logits of a GPT-2 whose attention is banded by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from references import Float64Everywhere, reference
from safetensors.torch import load_file
from tiny import hot_decoder, random_ids, tiny_config
from torch import Tensor, nn

from groundup.formats.huggingface import load_model, save_model
from groundup.model.cache import KeyValueCache

TIME = 24
BANDED = ["full_attention", "sliding_attention", "full_attention"]
# The kinds of three layers, and the band's width.
KINDS = pytest.mark.parametrize(
    ("kinds", "window"),
    [(BANDED, 5), (BANDED, 1), (BANDED, TIME), (["sliding_attention"] * 3, 5), (["full_attention"] * 3, None)],
)


def _banded(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], window: int) -> tuple[Any, Any]:
    """The call of an attention module with a mask that forbids what lies `window` tokens back or further."""
    mask = torch.full((TIME, TIME), float("-inf"), dtype=torch.float64)
    for query in range(TIME):
        for key in range(max(0, query - window + 1), query + 1):
            mask[query, key] = 0
    assert named["attention_mask"] is not None
    return inputs, named | {"attention_mask": mask[None, None]}


@torch.no_grad()
def _banded_gpt2_logits(folder: Path, input_ids: Tensor) -> Tensor:
    """Logits of the GPT-2 with the folder's tensors, by `transformers`, its layers' masks replaced."""
    keys = json.loads((folder / "config.json").read_text())
    kinds, window = keys.pop("layer_types"), keys.pop("sliding_window")
    tensors = load_file(folder / "model.safetensors")
    with Float64Everywhere():
        config = transformers.GPT2Config(**keys | {"model_type": "gpt2"})
        config._attn_implementation = "eager"
        model = transformers.GPT2LMHeadModel(config).double().eval()
        odd = model.load_state_dict(tensors, strict=False)
        assert (odd.missing_keys, odd.unexpected_keys) == (["lm_head.weight"], [])  # tied
        for kind, block in zip(kinds, model.transformer.h, strict=True):
            if kind == "sliding_attention":
                block.attn.register_forward_pre_hook(
                    lambda module, inputs, named: _banded(module, inputs, named, window), with_kwargs=True
                )
        return model(input_ids).logits


def _write_folder(folder: Path, kinds: list[str], window: int | None) -> None:
    """A GPT-2 of `transformers`, its config.json made one of GPT-3."""
    reference("gpt2", hot=True).save_pretrained(folder)
    keys = json.loads((folder / "config.json").read_text())
    keys |= {"model_type": "gpt3", "layer_types": kinds, "sliding_window": window}
    (folder / "config.json").write_text(json.dumps(keys))


def _assert_equal(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == theirs.dtype == torch.float64
    assert (ours - theirs).norm() <= 1e-9 * theirs.norm()


@KINDS
@torch.no_grad()
def test_logits_are_those_of_banded_attention(kinds: list[str], window: int | None, tmp_path: Path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    _write_folder(theirs, kinds, window)
    ids = random_ids(2, TIME)
    model = load_model(theirs, torch.float64)
    logits = model(ids)
    _assert_equal(logits, _banded_gpt2_logits(theirs, ids))
    ours.mkdir()
    save_model(model, ours, bos_id=1, eos_ids=[2], pad_id=0)
    _assert_equal(logits, _banded_gpt2_logits(ours, ids))


@KINDS
@torch.no_grad()
def test_however_the_tokens_come_the_logits_are_the_same(kinds: list[str], window: int | None, tmp_path: Path):
    _write_folder(tmp_path, kinds, window)
    model, ids = load_model(tmp_path, torch.float64), random_ids(2, TIME)
    expected = model(ids)
    for chunks in ([1] * TIME, [7, 1, TIME - 8]):
        cache = KeyValueCache(model)
        _assert_equal(torch.cat([model(part, cache=cache) for part in ids.split(chunks, dim=1)], dim=1), expected)
    padded = torch.cat((random_ids(2, 5, seed=9), ids), dim=1)
    mask = torch.ones_like(padded)
    mask[:, :5] = 0
    _assert_equal(model(padded, mask)[:, 5:], expected)


@KINDS
def test_what_is_saved_comes_back_to_the_bit(kinds: list[str], window: int | None, tmp_path: Path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    _write_folder(theirs, kinds, window)
    model = load_model(theirs)
    ours.mkdir()
    save_model(model, ours, bos_id=1, eos_ids=[2], pad_id=0)
    assert load_model(ours).config == model.config
    old, new = (load_file(folder / "model.safetensors") for folder in (theirs, ours))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_the_preset_is_dense_and_banded_by_turns(tmp_path: Path):
    config = tiny_config("gpt3")
    assert [layer.attention.window for layer in config.layers] == [None, 8]
    model, ids = hot_decoder(config), random_ids(2, TIME)
    save_model(model, tmp_path, bos_id=1, eos_ids=[2], pad_id=0)
    with torch.no_grad():
        _assert_equal(model(ids), _banded_gpt2_logits(tmp_path, ids))
