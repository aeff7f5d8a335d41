"""Every decoder family gives the logits of its reference in float64, whoever wrote the folder."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from references import DECODERS, Float64Everywhere, reference
from tiny import random_ids
from torch import Tensor

from groundup.engine.cache import KeyValueCache
from groundup.formats.huggingface import load_model, save_model

TIME = 24
Published = Callable[..., Path]
VARIANTS = pytest.mark.parametrize("variant", DECODERS)
HEAT = pytest.mark.parametrize("hot", [False, True], ids=["default weights", "hot weights"])


@torch.no_grad()
def _their_logits(folder: Path, input_ids: Tensor) -> Tensor:
    # Falcon's eager attention adds ALiBi's distances twice: once to the scores, once more with the mask.
    attention = "sdpa" if json.loads((folder / "config.json").read_text()).get("alibi") else "eager"
    with Float64Everywhere():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float64, attn_implementation=attention, experts_implementation="eager"
        )
        return model(input_ids, use_cache=False).logits


def _assert_equal(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == theirs.dtype == torch.float64
    assert (ours - theirs).norm() <= 1e-9 * theirs.norm()


@HEAT
@VARIANTS
@torch.no_grad()
def test_a_folder_gives_equal_logits_in_both_directions(variant: str, hot: bool, published: Published, tmp_path: Path):
    theirs, ours = published(reference, variant, hot), tmp_path / "ours"
    ids = random_ids(2, TIME)
    model = load_model(theirs, torch.float64)
    logits = model(ids)
    _assert_equal(logits, _their_logits(theirs, ids))
    ours.mkdir()
    save_model(model, ours, bos_id=1, eos_ids=[2], pad_id=0)
    _assert_equal(logits, _their_logits(ours, ids))


@VARIANTS
def test_what_is_saved_comes_back_to_the_bit(variant: str, published: Published, tmp_path: Path):
    ours = tmp_path / "ours"
    model = load_model(published(reference, variant, True))
    ours.mkdir()
    save_model(model, ours, bos_id=1, eos_ids=[2], pad_id=0)
    again = load_model(ours)
    assert again.config == model.config
    for (name, one), (other_name, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)
    keys = json.loads((ours / "config.json").read_text())
    assert "rope_parameters" not in keys or "rope_theta" in keys, "v4 reads no v5 keys"


@VARIANTS
@torch.no_grad()
def test_however_the_tokens_come_the_logits_are_the_same(variant: str, published: Published):
    """Cached = uncached, in chunks = at once, left-padded = unpadded, a batch = each row alone."""
    model = load_model(published(reference, variant, True), torch.float64)
    ids = random_ids(2, TIME)
    expected = model(ids)
    # The frequencies of these depend on how much text there is already.
    if not any(word in variant for word in ("dynamic", "beyond the original")):
        for chunks in ([1] * TIME, [7, 1, TIME - 8]):
            cache = KeyValueCache(model)
            parts = [model(part, cache=cache) for part in ids.split(chunks, dim=1)]
            _assert_equal(torch.cat(parts, dim=1), expected)
    for row in range(2):
        _assert_equal(model(ids[row : row + 1]), expected[row : row + 1])
    padded = torch.cat((torch.full((2, 5), 3), ids), dim=1)
    mask = torch.ones_like(padded)
    mask[:, :5] = 0
    _assert_equal(model(padded, mask)[:, 5:], expected)
