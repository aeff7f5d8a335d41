"""Each deliberate mistake moves the logits far from the reference's: a comparison that cannot fail is worth nothing."""

from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from mutations_delta import MUTATIONS, PATCHES, Patch
from references import Float64Everywhere, reference
from tiny import random_ids
from torch import Tensor

from groundup.formats.huggingface import load_language_model
from groundup.model.language_model import LanguageModel

IDS = random_ids(2, 24)
# A hundred times what the comparison allows.
FAR = 1e-7


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("references")


@cache
@torch.no_grad()
def _reference(folders: Path, variant: str) -> tuple[Path, Tensor]:
    """A hot reference's folder and its logits."""
    folder = folders / variant
    reference(variant, hot=True).save_pretrained(folder)
    with Float64Everywhere():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
        )
        return folder, model(IDS, use_cache=False).logits


def _distance(logits: Tensor, expected: Tensor) -> float:
    return float((logits - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", MUTATIONS)
@torch.no_grad()
def test_a_wrong_configuration_is_seen(name: str, folders: Path):
    variant, change = MUTATIONS[name]
    folder, expected = _reference(folders, variant)
    right = load_language_model(folder, torch.float64)
    assert _distance(right(IDS), expected) <= 1e-9
    with torch.device("meta"):
        wrong = LanguageModel(change(right.config))
    missing = wrong.load_state_dict(right.state_dict(), strict=False, assign=True).missing_keys
    assert not missing
    assert wrong.config != right.config
    assert _distance(wrong(IDS), expected) > FAR


@pytest.mark.parametrize("name", PATCHES)
@torch.no_grad()
def test_wrong_code_is_seen(name: str, folders: Path, monkeypatch: pytest.MonkeyPatch):
    patch: Patch = PATCHES[name]
    folder, expected = _reference(folders, patch.variant)
    assert _distance(load_language_model(folder, torch.float64)(IDS), expected) <= 1e-9
    monkeypatch.setattr(patch.target, patch.name, patch.wrong)
    assert _distance(load_language_model(folder, torch.float64)(IDS), expected) > FAR
