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

import groundup as gu
from groundup.engine.compiled import is_compilable
from groundup.engine.kernels import library
from groundup.formats.huggingface import load_model, save_model
from groundup.model.cache import KeyValueCache
from groundup.model.language_model import LanguageModel
from groundup.quantize.convert import quantize_model
from groundup.quantize.matrix import W8

TIME = 24
Published = Callable[..., Path]
VARIANTS = pytest.mark.parametrize("variant", DECODERS)
# One of each family, and those that the engine computes otherwise than their family.
FAMILIES = [*(name for name in DECODERS if " " not in name), "falcon alibi", "llama yarn", "phi3 longrope"]
# Whose layers remember in a state, or whose positions the kernels do not know (docs/architecture.md).
NOT_FOR_KERNELS = {"mamba", "mamba2", "jamba", "qwen3_next", "lfm2", "lfm2_moe", "falcon alibi", "phi3 longrope"}
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


@pytest.mark.parametrize("variant", FAMILIES)
@torch.no_grad()
def test_the_engine_writes_what_the_model_says(variant: str, published: Published):
    """Prompts in chunks and side by side: each token is the likeliest after all of the text so far, in one call."""
    model = load_model(published(reference, variant, True), torch.float64)
    assert isinstance(model, LanguageModel)
    prompts = [random_ids(length, seed=length).tolist() for length in (9, 1, 14)]
    for one in gu.Engine(model, stop_ids=[], step_tokens=8, most_running=2).generate(prompts, max_tokens=10):
        log_probs_tv = model(torch.tensor([one.prompt + one.tokens[:-1]]))[0, len(one.prompt) - 1 :].log_softmax(-1)
        expected_t, tokens_t = log_probs_tv.max(-1)
        assert one.tokens == tokens_t.tolist()
        torch.testing.assert_close(torch.tensor(one.logprobs).double(), expected_t, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", FAMILIES)
def test_kernels_run_the_families_that_the_map_says(variant: str, published: Published):
    if library.path() is None:
        pytest.skip("the kernels were not compiled")
    model = load_model(published(reference, variant, True))
    quantize_model(model, W8)
    assert is_compilable(model) == (variant not in NOT_FOR_KERNELS)
    (written,) = gu.Engine(model, stop_ids=[]).generate([[1, 2, 3]], max_tokens=5)
    assert len(written.tokens) == 5
