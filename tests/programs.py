"""Models whose layers are a program, and how far what the kernels compute of them is from what PyTorch does."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from tiny import tiny_config
from workloads import pool_of

from groundup.engine.compiled import CompiledRunner
from groundup.engine.scheduler import Scheduler
from groundup.engine.sight import reach
from groundup.model.config import ModelConfig
from groundup.model.language_model import LanguageModel
from groundup.model.lora import Adapter
from groundup.model.rotary import Rope
from groundup.model.specs import Norm, Placement, QueryKeyNorm


def with_attention(config: ModelConfig, **changes: object) -> ModelConfig:
    layers = tuple(replace(one, mixer=replace(one.mixer, **changes)) for one in config.layers)
    return replace(config, layers=layers)


def with_capacity() -> ModelConfig:
    config = tiny_config("mixtral")
    experts = config.layers[0].feed_forward
    router = replace(experts.router, chosen=1, normalised=False, capacity=3)
    return replace(config, layers=(replace(config.layers[0], feed_forward=replace(experts, router=router)),) * 2)


def _with_network(config: ModelConfig, **changes: object) -> ModelConfig:
    layers = tuple(replace(one, feed_forward=replace(one.network, **changes)) for one in config.layers)
    return replace(config, layers=layers)


def _with_a_shared_network() -> ModelConfig:
    config = tiny_config("mixtral", context=100)
    experts = config.layers[0].feed_forward
    experts = replace(experts, shared=replace(experts.expert, width=48), shared_gate=True)
    return replace(config, layers=(replace(config.layers[0], feed_forward=experts),) * 2)


def _with_direct_queries() -> ModelConfig:
    """And values that are longer than keys."""
    config = tiny_config("deepseek_v3", context=100)
    return with_attention(config, query_rank=None, value_dim=30)


def _with_two_rotations() -> ModelConfig:
    config = tiny_config("llama", context=100)
    first, second = config.layers
    return replace(config, layers=(first, replace(second, mixer=replace(second.attention, rope=Rope(theta=30.0)))))


def _placed(placement: Placement) -> ModelConfig:
    config = tiny_config("llama", context=100)
    return replace(config, layers=tuple(replace(layer, placement=placement) for layer in config.layers))


CONFIGS: dict[str, Callable[[], ModelConfig]] = {
    "llama": lambda: tiny_config("llama", kv_heads=1, context=100),
    "qwen3": lambda: tiny_config("qwen3", context=100),
    "olmo2": lambda: tiny_config("olmo2", context=100),
    "gemma2": lambda: tiny_config("gemma2", context=100),
    "gpt2": lambda: tiny_config("gpt2", context=100),
    "gpt_neox": lambda: tiny_config("gpt_neox", context=100),
    "nanochat": lambda: tiny_config("nanochat", context=100),
    "palm": lambda: tiny_config("palm", context=100),
    "mixtral": lambda: tiny_config("mixtral", context=100),
    "qwen2_moe": _with_a_shared_network,
    "gpt_oss": lambda: tiny_config("gpt_oss", context=100),
    "deepseek_v3": lambda: tiny_config("deepseek_v3", context=100),
    "latent attention without a rank of queries": _with_direct_queries,
    "scaled scores": lambda: with_attention(tiny_config("llama", context=100), scale=0.4),
    "weighted norms after rotation": lambda: with_attention(
        tiny_config("llama", context=100), query_key_norm=QueryKeyNorm(Norm(), after_rope=True)
    ),
    "norms of sums": lambda: _placed("post"),
    "two rotations": _with_two_rotations,
    "no last norm": lambda: replace(tiny_config("llama", context=100), final_norm=None),
    "groundup": lambda: tiny_config("groundup", kv_heads=1, context=100),
    "bigrams and trigrams": lambda: replace(tiny_config("groundup"), ngram_buckets=(50, 70), induction=None),
    "a norm for each head": lambda: with_attention(
        tiny_config("llama", kv_heads=1, context=100), query_key_norm=QueryKeyNorm(Norm("layer"), over="each_head")
    ),
    "norms after rotation": lambda: with_attention(
        tiny_config("qwen3", context=100), query_key_norm=QueryKeyNorm(Norm("rms"), after_rope=True)
    ),
    "a scale of its own": lambda: with_attention(tiny_config("llama", kv_heads=1, context=100), scale=0.4),
    "clamped values": lambda: with_attention(tiny_config("olmo2"), clip=0.8),
    "narrow embedding": lambda: replace(tiny_config("gpt2", context=100), embedding_width=24),
    "positions from the third row on": lambda: _with_offset(tiny_config("gpt2", context=100), 2),
    "scaled logits": lambda: replace(tiny_config("llama", context=100), logit_scale=0.3),
    "clamped heads": lambda: with_attention(tiny_config("qwen3"), clip=0.8),
    "bounded gates": lambda: _with_network(tiny_config("llama"), sharpness=1.7, limit=1.2, up_offset=0.7),
    "window": lambda: with_attention(tiny_config("llama", context=100), window=11, sinks=True),
    "some windows": lambda: _with_windows(11, None, 5),
}


def _with_offset(config: ModelConfig, offset: int) -> ModelConfig:
    return replace(config, learned_positions=replace(config.learned_positions, offset=offset))


def _with_windows(*windows: int | None) -> ModelConfig:
    config = tiny_config("llama", context=100)
    layer = config.layers[0]
    seeing = [replace(layer, mixer=replace(layer.attention, window=window)) for window in windows]
    return replace(config, layers=tuple(seeing))


def differences(
    model: LanguageModel, prompts: Sequence[Sequence[int]], longest: int, adapters: Sequence[Adapter | None] = ()
) -> torch.Tensor:
    """Of each token of each text: how far its logits are from those of the model in PyTorch, as a part of these.

    The texts are computed side by side in steps of 24 tokens, and are written on up to `longest` tokens.
    """
    pool = pool_of(model, 40, 24, len(prompts))
    runner = CompiledRunner(model, 40, 24, torch.float32, None if pool.windows is None else pool.windows.count)
    for adapter in dict.fromkeys(one for one in adapters if one is not None):
        runner.adapters.add(adapter)
    scheduler = Scheduler(pool, 24, len(prompts), reach=reach(model))
    wanted = adapters or [None] * len(prompts)
    texts = [scheduler.add(prompt, 60, adapter=adapter) for prompt, adapter in zip(prompts, wanted, strict=True)]
    seen: dict[int, list[torch.Tensor]] = {number: [] for number in range(len(texts))}
    while (step := scheduler.schedule()).chunks:
        adapters_m = [chunk.sequence.adapter for chunk in step.chunks for _ in range(chunk.length)]
        logits_mv = runner.logits(runner.run(step), adapters_m).clone()
        for chunk, logits_tv in zip(step.chunks, logits_mv.split([one.length for one in step.chunks]), strict=True):
            seen[texts.index(chunk.sequence)].append(logits_tv)
        scheduler.complete(step)
        for text in texts:
            if not text.pending and len(text.tokens) < longest:
                text.tokens.append(3 + len(text.tokens) % 5)
    off = []
    for number, text in enumerate(texts):
        with torch.no_grad(), runner.adapters.applied([text.adapter], model.device):
            expected_tv = model(torch.tensor([text.tokens]))[0]
        off.append((torch.cat(seen[number]) - expected_tv).norm(dim=-1) / expected_tv.norm(dim=-1))
    return torch.cat(off)
