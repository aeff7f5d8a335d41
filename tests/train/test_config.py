"""Settings of pre-training that contradict each other are refused with the key at fault."""

import pytest

from groundup.model.config import ModelConfig
from groundup.train.config import PretrainConfig
from groundup.train.pretrain import build_model, loop_config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"minutes": 1.0, "tokens": 10}, "one budget, not minutes and tokens"),
        ({"batch_tokens": 1000, "context": 512}, r"`batch_tokens` \(1000\) must be a multiple of `context` \(512\)"),
        ({"warmup": 0.5, "cooldown": 0.6}, "`warmup` and `cooldown` together"),
        ({"depth": 0}, "`depth` must be positive, not 0"),
        ({"context": -512}, "`context` must be positive"),
        ({"minutes": 0.0}, "`minutes` must be positive"),
        ({"tokens": 0}, "`tokens` must be positive"),
        ({"flops": -1.0}, "`flops` must be positive"),
        ({"micro_batch_tokens": 0}, "`micro_batch_tokens` must be positive"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**settings)  # type: ignore[arg-type]


TEXT_TOKENS = 20 * 512


def _shape(config: PretrainConfig) -> ModelConfig:
    return build_model(config, vocab_size=64).config


def test_each_budget_becomes_steps_or_seconds():
    sizes = {"depth": 1, "width": 32, "head_dim": 16, "context": 64, "batch_tokens": 512, "precision": "float32"}

    def budget(**given: float) -> tuple[int | None, float | None]:
        config = PretrainConfig(**sizes, **given)  # type: ignore[arg-type]
        loop = loop_config(config, _shape(config), TEXT_TOKENS, bytes_per_token=2.0)
        return loop.steps, loop.seconds

    flops_per_step = 512 * _shape(PretrainConfig(**sizes)).training_flops_per_token(64)  # type: ignore[arg-type]
    assert budget(tokens=5120) == (10, None)
    assert budget(tokens=1) == (1, None)
    assert budget(epochs=1.5) == (30, None)
    assert budget(epochs=0.001) == (1, None)
    assert budget(flops=7.5 * flops_per_step) == (7, None)
    assert budget(minutes=2.0) == (None, 120.0)
    assert budget() == (None, 300.0)
