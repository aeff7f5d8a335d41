"""A comparison that cannot fail is worth nothing: each deliberate mistake is seen."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from mutations_mamba import MUTATIONS
from references import Float64Everywhere, reference
from tiny import random_ids
from torch import Tensor

from groundup.formats.huggingface import load_language_model

IDS = random_ids(2, 24)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Tensor]]:
    """The folder of a hot reference and its logits in float64, made once for each variant."""
    made: dict[str, tuple[Path, Tensor]] = {}

    @torch.no_grad()
    def saved(variant: str) -> tuple[Path, Tensor]:
        if variant not in made:
            folder = tmp_path_factory.mktemp("reference")
            reference(variant, hot=True).save_pretrained(folder)
            with Float64Everywhere():
                model = transformers.AutoModelForCausalLM.from_pretrained(
                    folder, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
                )
                made[variant] = folder, model(IDS).logits
        return made[variant]

    return saved


@pytest.mark.parametrize("mistake", MUTATIONS)
@torch.no_grad()
def test_a_mistake_shows(mistake: str, saved: Callable[[str], tuple[Path, Tensor]]):
    variant, mutate = MUTATIONS[mistake]
    folder, theirs = saved(variant)
    model = load_language_model(folder, torch.float64)
    assert (model(IDS) - theirs).norm() <= 1e-9 * theirs.norm()
    assert (mutate(model)(IDS) - theirs).norm() >= 1e-5 * theirs.norm()
