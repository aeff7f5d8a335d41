"""How far from exact numbers an engine of bfloat16 weights may be: not as far as the model itself in bfloat16.

The model rounds every result to 8 bits. The engine keeps activations in float32; its programs round what is multiplied,
keys and values, which is less; where there is no program nothing is. So the engine's errors are smaller, and the
two are apart by no more than independent errors of the model's size would be, √2 of it. Anything that the engine
rounded beside that (keys to fewer bits, say) would come on top.
"""

from copy import deepcopy

import pytest
import torch
from tiny import hot_decoder, random_ids, tiny_config
from torch import Tensor

import groundup as gu
from groundup.model.language_model import LanguageModel

TEXTS = [random_ids(length, seed=length).tolist() for length in (90, 7, 61, 34, 18, 77)]


@torch.no_grad()
def _log_probabilities(model: LanguageModel) -> Tensor:
    """Of all tokens of the texts but the first of each, each text alone in one call."""
    found = []
    for text in TEXTS:
        log_probs_tv = model(torch.tensor([text]))[0].double().log_softmax(-1)
        found.append(log_probs_tv[:-1].gather(1, torch.tensor(text)[1:, None])[:, 0])
    return torch.cat(found)


def _size(errors_n: Tensor) -> float:
    return float(errors_n.square().mean().sqrt())


@pytest.mark.parametrize("preset", ["llama", "gemma2", "deepseek_v3", "mixtral", "mamba2", "groundup"])
def test_an_engine_in_bfloat16_is_as_near_to_exact_numbers_as_the_model(preset: str):
    model = hot_decoder(tiny_config(preset, context=100), dtype=torch.bfloat16)
    exact_n = _log_probabilities(deepcopy(model).double())  # of the same weights
    plain_n = _log_probabilities(model)
    engine = gu.Engine(model, stop_ids=[], step_tokens=24, most_running=4)
    found_n = torch.cat([torch.tensor(one.logprobs, dtype=torch.float64) for one in engine.score(TEXTS)])
    rounding = _size(plain_n - exact_n)
    assert rounding > 1e-3  # it is bfloat16 indeed
    assert _size(found_n - exact_n) < rounding * (1e-3 if preset == "mamba2" else 1)
    assert _size(found_n - plain_n) < 1.3 * 2**0.5 * rounding
