"""The loss of a learner: the same whatever it leaves out."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import hot_model, tiny_config
from tiny_training import CONTEXT, UnevenRows, corruption_for
from torch import Tensor

import groundup
from groundup.model.language_model import LanguageModel
from groundup.tokens.batches import IGNORE, Rows
from groundup.train import learner as under_test
from groundup.train.balance import Balance
from groundup.train.learner import Learner, final_hidden, stacks, text_part


def _step(preset: str) -> tuple[float, list[Tensor]]:
    model = hot_model(tiny_config(preset, context=CONTEXT))
    loss = Learner(model).loss(UnevenRows(corruption=corruption_for(preset)).rows(np.arange(6))).total
    loss.backward()
    return loss.item(), [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("places", [1, 7, 256])
def test_an_encoders_head_may_leave_out_what_carries_no_loss(places: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(under_test, "HEAD_PLACES", places)
    model = hot_model(tiny_config("bert", context=CONTEXT))
    assert isinstance(model, LanguageModel)
    rows = UnevenRows(corruption=corruption_for("bert")).rows(np.arange(6))
    logits = model.logits(final_hidden(model, rows)).flatten(0, 1)
    expected = F.cross_entropy(logits, torch.from_numpy(rows.targets).flatten(), ignore_index=IGNORE, reduction="sum")
    expected.backward()
    loss, gradients = _step("bert")
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("preset", ["gpt2", "mamba"])
def test_weights_that_lie_transposed_in_a_file_are_trained_in_order(preset: str, tmp_path: Path):
    groundup.save(hot_model(tiny_config(preset, context=CONTEXT)), tmp_path / "model")
    model = groundup.load(tmp_path / "model")
    assert any(not parameter.is_contiguous() for parameter in model.parameters())
    Learner(model)
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_an_encoder_decoder_needs_rows_with_a_source():
    with pytest.raises(ValueError, match="rows with a source"):
        Learner(hot_model(tiny_config("t5", context=CONTEXT))).loss(UnevenRows().rows(np.arange(2)))


@pytest.mark.parametrize(("preset", "count"), [("llama", 1), ("bert", 1), ("t5", 2)])
def test_the_type_to_compute_in_is_that_of_every_stack(preset: str, count: int):
    model = hot_model(tiny_config(preset, context=CONTEXT), dtype=torch.float32)
    Learner(model).compute_in(torch.bfloat16)
    assert [stack.compute_dtype for stack in stacks(model)] == [torch.bfloat16] * count
    rows = UnevenRows(corruption=corruption_for(preset)).rows(np.arange(2))
    assert final_hidden(model, rows).dtype == torch.bfloat16
    assert text_part(model).head_matrix.weight.dtype == torch.float32


@pytest.mark.parametrize("preset", ["mixtral", "deepseek_v3"])
def test_padding_counts_in_no_balance(preset: str):
    """A row that ends in padding has the auxiliary loss and the load of its text alone."""
    model = hot_model(tiny_config(preset, context=CONTEXT))
    rows, used = UnevenRows().rows(np.arange(1)), 15
    learner = Learner(model, Balance(load=1.0, z=1.0, correction=0.0))
    short = Rows(*(array[:, :used] for array in rows.arrays()))
    padded = Rows(*(array.copy() for array in rows.arrays()))
    padded.segments[:, used:] = -1
    padded.targets[:, used:] = IGNORE
    ours, expected = learner.loss(padded), learner.loss(short)
    torch.testing.assert_close(ours.tally, expected.tally, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.auxiliary, expected.auxiliary, rtol=1e-10, atol=1e-10)
