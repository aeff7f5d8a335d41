"""How far from exact numbers an engine in bfloat16 may be: hardly farther than the model itself in bfloat16.

The model in one call and the engine in chunks, side by side with other texts, round the results of the same operations
to 8 bits, only in other orders of summation. So both are off from exact numbers by errors of one size, about as much
apart as independent ones: by √2 of it; and neither is farther off than the other but for chance. Anything that the
engine rounded beside that (keys to fewer bits, say) would come on top.
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
    assert _size(found_n - exact_n) < 1.3 * rounding
    assert _size(found_n - plain_n) < 1.3 * 2**0.5 * rounding
