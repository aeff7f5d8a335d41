"""Adapters of a model's layers, row by row: against the same products added to its weights."""

import threading
from copy import deepcopy

import pytest
import torch
from tiny import hot_decoder, random_ids, tiny_config

from groundup.model.language_model import LanguageModel
from groundup.model.lora import Adapter, Adapters, LowRank


def _hooks(model: LanguageModel) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("preset", ["mixtral", "mamba", "qwen3_next", "deepseek_v3", "gpt2", "groundup"])
@torch.no_grad()
def test_any_layer_can_be_changed_for_some_rows_alone(preset: str):
    """Every linear layer of every kind of layer, against a copy with the products added to its weights."""
    model = hot_decoder(tiny_config(preset))
    changed, changes = deepcopy(model), {}
    generator = torch.Generator().manual_seed(5)
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear" and name != "head":
            outputs, inputs = module.weight.shape
            down, up = (
                torch.randn(shape, generator=generator, dtype=torch.float64) / shape[1] ** 0.5
                for shape in ((2, inputs), (outputs, 2))
            )
            changes[name] = LowRank(down, 0.5 * up)
            changed.get_submodule(name).weight += 0.5 * up @ down
    assert changes
    adapters, adapter = Adapters(model), Adapter("one", changes)
    ids = random_ids(3, 20)
    plain, other = model(ids), changed(ids)
    adapters.add(adapter)
    with adapters.applied([None, adapter, None], model.device):
        torch.testing.assert_close(model(ids), torch.stack((plain[0], other[1], plain[2])), rtol=1e-9, atol=1e-9)
    with adapters.applied([adapter] * 3, model.device):
        torch.testing.assert_close(model(ids), other, rtol=1e-9, atol=1e-9)
    assert torch.equal(model(ids), plain)
    adapters.remove(adapter)
    assert _hooks(model) == 0
    assert not torch.allclose(plain, other)


@torch.no_grad()
def test_what_one_thread_applies_no_other_thread_sees():
    model = hot_decoder(tiny_config("llama"))
    changes = {"layers.0.mixer.query": LowRank(torch.ones(1, 32).double(), torch.ones(32, 1).double())}
    adapters, adapter = Adapters(model), Adapter("one", changes)
    ids = random_ids(1, 9)
    plain, found = model(ids), []

    def run() -> None:
        with torch.no_grad():
            found.append(model(ids))

    adapters.add(adapter)
    with adapters.applied([adapter], model.device):
        other = threading.Thread(target=run)
        other.start()
        other.join()
        assert not torch.allclose(model(ids), plain)
    adapters.remove(adapter)
    assert torch.equal(found[0], plain)
