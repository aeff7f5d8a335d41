"""The comparison with the reference notices mistakes: each of these, made on purpose, makes it fail.

A mistake is a changed configuration, tensors in the wrong place, or changed code; all else stays as it is loaded.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from mutations_decoders import CODE, CONFIGURATIONS, TENSORS, Change, Patch, Swap
from mutations_delta import MUTATIONS as DELTA
from mutations_mamba import MUTATIONS as MAMBA
from references import DECODERS, reference
from tiny import random_ids
from torch import Tensor

from groundup.formats.huggingface import load_model
from groundup.model.config import ModelConfig
from groundup.model.language_model import LanguageModel

IDS = random_ids(2, 24)
# The comparison of right models is to 1e-9; what is wrong has to be far beyond that.
FAR = 1e-6


def _each(table: list[tuple[str, str, object]]) -> Callable[..., object]:
    return pytest.mark.parametrize(
        "variant, mistake", [(one, how) for one, _, how in table], ids=[f"{one}: {what}" for one, what, _ in table]
    )


@cache
def _right(variant: str) -> tuple[ModelConfig, list[tuple[dict[str, Tensor], Tensor]]]:
    """A model's configuration, and with default and with hot weights its tensors and its logits."""
    found = []
    for hot in (False, True):
        with TemporaryDirectory() as folder:
            reference(variant, hot).save_pretrained(folder)
            model = load_model(Path(folder), torch.float64)
        assert isinstance(model, LanguageModel)
        tensors = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
        found.append((tensors, _logits(model.config, tensors)))
    return model.config, found


@torch.no_grad()
def _logits(config: ModelConfig, tensors: dict[str, Tensor]) -> Tensor:
    model = LanguageModel(config).double()
    missing = model.load_state_dict(tensors, strict=False).missing_keys
    assert not missing, f"a mistake may leave tensors out, not ask for others: {missing}"
    return model(IDS)


def _assert_noticed(variant: str, config: ModelConfig, change: Swap | None = None) -> None:
    """The logits are wrong with default weights or with hot ones."""
    distances = []
    for right_tensors, right in _right(variant)[1]:
        tensors = dict(right_tensors)
        if change is not None:
            change(tensors)
        wrong = _logits(config, tensors)
        distances.append(float((wrong - right).norm() / right.norm()))
    assert max(distances) > FAR, distances


@_each(CONFIGURATIONS)
def test_a_wrong_configuration_is_noticed(variant: str, mistake: Change):
    right = _right(variant)[0]
    wrong = mistake(right)
    assert wrong != right
    _assert_noticed(variant, wrong)


@_each(TENSORS)
def test_tensors_in_the_wrong_place_are_noticed(variant: str, mistake: Swap):
    _assert_noticed(variant, _right(variant)[0], mistake)


@_each(CODE)
def test_wrong_code_is_noticed(variant: str, mistake: Patch, monkeypatch: pytest.MonkeyPatch):
    config, _ = _right(variant)
    mistake(monkeypatch)
    _assert_noticed(variant, config)


def test_every_family_has_its_mistakes():
    """Those of recurrent layers stand in files of their own."""
    here = (CONFIGURATIONS, TENSORS, CODE)
    made = {variant.split()[0] for table in here for variant, _, _ in table}
    made |= {variant.split()[0] for table in (MAMBA, DELTA) for variant, _ in table.values()}
    assert made == {variant.split()[0] for variant in DECODERS}
