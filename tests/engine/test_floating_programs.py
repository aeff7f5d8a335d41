"""Models of floating weights run as programs: what the model computes, to the bit whatever is computed beside it."""

from dataclasses import replace

import pytest
import torch
from programs import CONFIGS, differences
from tiny import hot_decoder, random_ids, tiny_config
from workloads import pool_of

import groundup as gu
from groundup.engine.blocks import BlockPool
from groundup.engine.compiled import CompiledRunner, cache_dtype, is_compilable
from groundup.engine.kernels.program import Product
from groundup.engine.scheduler import Scheduler
from groundup.engine.sight import reach
from groundup.model.language_model import LanguageModel
from groundup.quantize.training import rounded


def _prompts(model: LanguageModel) -> tuple[list[list[int]], int]:
    """And how long the texts become."""
    if model.config.residual_mix:  # with few words, which repeat
        return [random_ids(length, seed=length, vocabulary=4).tolist() for length in range(3, 15)], 15
    return [random_ids(length, seed=length).tolist() for length in (7, 1, 40, 33)], 48


@pytest.mark.parametrize("name", list(CONFIGS))
def test_logits_of_float32_are_those_of_the_model(name: str):
    model = hot_decoder(CONFIGS[name]()).float()
    assert is_compilable(model)
    off_n = differences(model, *_prompts(model))
    assert off_n.quantile(0.9) < 1e-5 and off_n.max() < 3e-5  # PyTorch's own are off by as much from float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_they_are_at_least_as_close_to_float64_as_those_of_pytorch(name: str, dtype: torch.dtype):
    """With the same weights, for the middle one of the tokens of three models: others may be sent to other experts.

    In the program activations are rounded where they are multiplied alone, in PyTorch wherever anything is computed.
    """
    ours, theirs = zip(*(_errors(name, dtype, seed) for seed in range(3)), strict=True)
    assert torch.cat(ours).median() <= 1.05 * torch.cat(theirs).median()


def _errors(name: str, dtype: torch.dtype, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the program and of PyTorch: for each token how far its logits are from those in float64."""
    model = hot_decoder(CONFIGS[name](), seed=seed).to(dtype)
    ids = random_ids(30, seed=seed, vocabulary=4 if model.config.residual_mix else 64).tolist()
    pool = pool_of(model, 8, len(ids), 1)
    windows = None if pool.windows is None else pool.windows.count
    runner = CompiledRunner(model, 8, len(ids), cache_dtype(model), windows)
    scheduler = Scheduler(pool, len(ids), 1, reach=reach(model))
    scheduler.add(ids, len(ids))
    ours_tv = runner.logits(runner.run(scheduler.schedule()), [None] * len(ids)).double()
    with torch.no_grad():
        theirs_tv = model(torch.tensor([ids]))[0].double()
        exact_tv = model.double()(torch.tensor([ids]))[0]
    return (ours_tv - exact_tv).norm(dim=-1), (theirs_tv - exact_tv).norm(dim=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name", ["gpt2", "gemma2", "groundup", "qwen2_moe", "deepseek_v3", "narrow embedding", "some windows"]
)
def test_a_text_is_the_same_to_the_bit_whatever_is_computed_beside_it(name: str, dtype: torch.dtype):
    _require_equal_texts(hot_decoder(CONFIGS[name]()).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_with_any_instructions(level: str, dtype: torch.dtype):
    _require_equal_texts(hot_decoder(CONFIGS["llama"]()).to(dtype))


def _require_equal_texts(model: LanguageModel) -> None:
    """With sampling, so that every last bit of the logits decides sooner or later, and their log-probabilities."""
    prompts = [random_ids(length, seed=length).tolist() for length in (7, 1, 40, 3, 33)]
    options = {"max_tokens": 30, "temperature": 0.8, "top_p": 0.95}
    alone = gu.Engine(model, stop_ids=[])
    expected = [alone.generate([prompt], **options)[0] for prompt in prompts]
    crowd = gu.Engine(model, stop_ids=[], cache_tokens=160, step_tokens=11, most_running=4)
    guessing = gu.Engine(model, stop_ids=[], speculate=gu.PromptLookup())
    for engine in (crowd, crowd, guessing):  # the second time beginnings come from the cache
        for one, other in zip(expected, engine.generate(prompts, **options), strict=True):
            assert one.tokens == other.tokens and one.logprobs == other.logprobs


def test_scores_are_the_same_whatever_is_scored_beside_them():
    """More tokens than the head is asked for at once."""
    model = hot_decoder(tiny_config("llama", context=300), dtype=torch.bfloat16)
    texts = [random_ids(length, seed=length).tolist() for length in (299, 60, 190, 3)]
    alone = [gu.Engine(model, stop_ids=[]).score([text])[0] for text in texts]
    assert gu.Engine(model, stop_ids=[]).score(texts) == alone


def test_scores_of_more_tokens_than_the_head_takes_at_once_are_those_of_fewer():
    model = hot_decoder(tiny_config("llama", context=300)).float()
    ids = random_ids(299, seed=1).tolist()
    with torch.no_grad():
        logprobs_tv = model(torch.tensor([ids]))[0].log_softmax(-1)
    expected_t = logprobs_tv[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0]
    found_t = torch.tensor(gu.Engine(model, stop_ids=[]).score([ids])[0].logprobs)
    torch.testing.assert_close(found_t, expected_t, rtol=1e-4, atol=1e-4)


def test_routers_see_what_is_not_rounded():
    """A score that is rounded would send a token to another expert (Switch, section 2.4)."""
    config = CONFIGS["qwen2_moe"]()
    model, experts = hot_decoder(config, dtype=torch.bfloat16), config.layers[0].feed_forward.router.experts
    runner = CompiledRunner(model, 8, 24, torch.bfloat16)
    kept = [each for _, things in runner._program._kept for each in things if isinstance(each, list)]
    matrices = [one.matrix for each in kept for one in each if isinstance(one, Product)]
    wide = [one for one in matrices if one.rows in (1, experts)]
    assert len(wide) == 4 and all(one.is_wide for one in wide)
    assert not any(one.is_wide for one in matrices if one.rows not in (1, experts))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_scale_of_an_embedding_is_rounded_as_the_family_does(dtype: torch.dtype):
    """Gemma rounds it to the type of the activations; layers that add nothing round nothing else."""
    config = replace(CONFIGS["gemma2"](), final_norm=None)
    model = hot_decoder(config, dtype=dtype)
    for layer in model.layers:
        layer.mixer.output.weight.data.zero_()
        layer.feed_forward.down.weight.data.zero_()
    runner, scheduler = CompiledRunner(model, 8, 24, torch.float32), Scheduler(BlockPool(8), 24, 1)
    ids = random_ids(20, seed=1)
    scheduler.add(ids.tolist(), 20)
    scale = torch.tensor(config.embedding_scale, dtype=dtype).float()
    assert torch.equal(runner.run(scheduler.schedule()), model.embedding.weight.detach()[ids].float() * scale)


def test_weights_that_are_cast_as_they_are_used_are_cast_once():
    """A model in training keeps float32 and computes in bfloat16: the same as if its weights were bfloat16."""
    prompts = [random_ids(length, seed=length).tolist() for length in (7, 40)]
    for name in ("qwen2_moe", "gpt2"):
        model = hot_decoder(CONFIGS[name]()).bfloat16()
        expected = gu.Engine(model, stop_ids=[]).generate(prompts, max_tokens=20)
        wide = model.float()
        wide.compute_dtype = torch.bfloat16
        found = gu.Engine(wide, stop_ids=[]).generate(prompts, max_tokens=20)
        assert [one.logprobs for one in found] == [one.logprobs for one in expected]


def test_weights_are_read_where_they_lie():
    """An engine that is made anew sees what training has changed, and none takes memory for weights."""
    model = hot_decoder(CONFIGS["llama"]()).float()
    before = gu.Engine(model, stop_ids=[]).generate([[1, 2, 3]], max_tokens=5)[0]
    runner = CompiledRunner(model, 8, 24, torch.float32)
    matrices = [runner._matrices.of(layer.feed_forward.up) for layer in model.layers]
    assert [one.weight_nk.data_ptr() for one in matrices] == [
        layer.feed_forward.up.weight.data_ptr() for layer in model.layers
    ]
    with torch.no_grad():
        model.layers[0].feed_forward.up.weight.mul_(-1)
    assert gu.Engine(model, stop_ids=[]).generate([[1, 2, 3]], max_tokens=5)[0].logprobs != before.logprobs


def test_what_the_kernels_do_not_read_is_left_to_the_model():
    model = hot_decoder(CONFIGS["llama"]())
    assert not is_compilable(model) and is_compilable(model.float())
    with rounded(model, "w4"):
        assert not is_compilable(model)
    assert is_compilable(model)


def test_keys_are_kept_in_the_type_of_the_weights():
    model = hot_decoder(CONFIGS["llama"]())
    kept = {dtype: cache_dtype(model.to(dtype)) for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    assert kept == {torch.float32: torch.float32, torch.bfloat16: torch.bfloat16, torch.float16: torch.float32}
    assert cache_dtype(model.bfloat16(), "int8") == torch.int8
