"""Settings of pre-training that contradict each other are refused with the key at fault."""

import numpy as np
import pytest
from tiny import ListStream
from torch.utils.flop_counter import FlopCounterMode

from groundup.errors import UserError
from groundup.settings import read_table
from groundup.tokens.batches import PackedDocuments
from groundup.tokens.corruption import CorruptedRows, CorruptedSpans, MaskedTokens
from groundup.train import config as settings
from groundup.train import learner as learner_module
from groundup.train.config import USUAL, PretrainConfig
from groundup.train.learner import Learner
from groundup.train.objectives import TextConfig
from groundup.train.plan import LoopConfig
from groundup.train.pretrain import balance, build_model, loop_config


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
        ({"context": 0}, "`context` must be positive"),
        ({"flops": -1.0}, "`flops` must be positive"),
        ({"micro_batch_tokens": 0}, "`micro_batch_tokens` must be positive"),
        ({"mask_fraction": 1.0}, "`mask_fraction` must lie between 0 and 1"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**settings)  # type: ignore[arg-type]


TEXT_TOKENS = 20 * 512
SIZES = {"depth": 2, "width": 32, "head_dim": 16, "context": 64, "batch_tokens": 512, "precision": "float32"}


def _shape(config: PretrainConfig) -> TextConfig:
    return build_model(config, vocab_size=64).config


def test_a_preset_may_bring_defaults_of_its_own_and_what_is_given_stands(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(settings, "OF_PRESET", {"bert": {"warmup": 0.1, "matrix_learning_rate": 0.01}})
    assert PretrainConfig(preset="llama").warmup == 0.0
    assert PretrainConfig(preset="bert").warmup == 0.1
    assert PretrainConfig(preset="bert", warmup=0.0).warmup == 0.0
    rates = _loop(PretrainConfig(preset="bert", head_learning_rate=0.5, **SIZES)).learning_rates
    assert (rates.matrices, rates.embedding, rates.head) == (0.01, USUAL["embedding_learning_rate"], 0.5)
    with pytest.raises(ValueError, match="`warmup` and `cooldown` together"):
        PretrainConfig(preset="bert", cooldown=0.95)


def test_settings_of_experts_stand_over_the_published_ones_and_need_experts():
    def factors(preset: str, **given: float) -> tuple[float, float, float]:
        config = PretrainConfig(preset=preset, **SIZES, **given)
        found = balance(config, build_model(config, vocab_size=64))
        assert found is not None
        return found.load, found.z, found.correction

    assert factors("mixtral") == (0.01, 0.001, 0.0)
    assert factors("mixtral", router_z_loss=0.5) == (0.01, 0.5, 0.0)
    assert factors("deepseek_v3") == (0.0001, 0.0, 0.001)
    assert factors("deepseek_v3", load_balance_loss=0.0, router_correction=0.01) == (0.0, 0.0, 0.01)
    assert balance(PretrainConfig(**SIZES), build_model(PretrainConfig(**SIZES), vocab_size=64)) is None
    with pytest.raises(UserError, match="preset llama has no experts"):
        factors("llama", load_balance_loss=0.1)


def test_a_preset_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(
        UserError, match=r"mine: `preset` must be one of groundup, .*, not 'lama', did you mean `llama`"
    ):
        read_table(PretrainConfig, {"preset": "lama"}, "mine")


def _loop(config: PretrainConfig) -> LoopConfig:
    return loop_config(config, _shape(config), TEXT_TOKENS, bytes_per_token=2.0)


@pytest.mark.parametrize("preset", ["llama", "bert", "t5"])
def test_flops_are_those_that_pytorch_counts_in_a_training_step(preset: str, monkeypatch: pytest.MonkeyPatch):
    """Multiply and add, forward and backward, of all that a row passes through; embeddings and norms count nothing."""
    monkeypatch.setattr(learner_module, "HEAD_PLACES", 1)
    config = PretrainConfig(preset=preset, **{**SIZES, "context": 128, "batch_tokens": 512})
    model = build_model(config, vocab_size=512)
    learner = Learner(model)
    words = np.arange(2, 400, dtype=np.int64)
    stream = ListStream([np.resize(words, 4000).tolist()])
    packed = PackedDocuments(stream, config.context, bos_id=1, seed=0)
    sentinels = tuple(range(412, 512))
    hide = {
        "llama": None,
        "bert": MaskedTokens(0.15, 401, 1, words, seed=0),
        "t5": CorruptedSpans(sentinels, 1, 402, 0, seed=0),
    }[preset]
    source = packed if hide is None else CorruptedRows(packed, hide)
    with FlopCounterMode(display=False) as counter:
        learner.loss(source.rows(np.arange(4))).total.backward()
    claimed = loop_config(config, model.config, TEXT_TOKENS, 2.0).flops_per_token * 512
    # A decoder's row has places to spare, and a share of tokens is rounded.
    assert counter.get_total_flops() == pytest.approx(claimed, rel=0.1)


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
