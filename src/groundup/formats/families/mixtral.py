"""Mixtral and other decoders of LLaMA's shape with experts: Qwen2-MoE, Qwen3-MoE, OLMoE.

Softmax over all experts, the best few, their weights renormalised or not. Sources: Jiang et al. 2024; Qwen team 2024 (a
gated network beside the experts) and 2025; Muennighoff et al. 2024 (queries and keys normed over the whole width).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from groundup.formats.families import llama
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.rules import JoinedExperts, Rule, Stacked, same, with_biases
from groundup.model.config import ModelConfig
from groundup.model.specs import Experts, QueryKeyNorm, Router

BLOCK = "layers.*.feed_forward."
# Within a layer's block of experts: our matrices, and what they are called on disk.
MIXTRAL_MATRICES = {"gate": "w1", "up": "w3", "down": "w2"}
MATRICES = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
# Keys that say how the experts are balanced while training.
TRAINING_KEYS = ("router_aux_loss_coef", "router_jitter_noise")


def expert_rules(config: ModelConfig, block: str, matrices: dict[str, str], router: str = "gate") -> list[Rule]:
    """Rules for the router and for experts that lie on disk one by one.

    block: the name on disk of what holds the router and `experts`; matrices: ours → their names there.
    """
    experts = range(experts_of(config).router.experts)
    return [
        Rule((f"{BLOCK}router.weight",), (f"{block}{router}.weight",)),
        *(
            Rule(
                (f"{BLOCK}experts.{ours}.weight",),
                tuple(f"{block}experts.{index}.{theirs}.weight" for index in experts),
                Stacked(),
            )
            for ours, theirs in matrices.items()
        ),
    ]


def fused_expert_rules(block: str, router: str = "gate") -> list[Rule]:
    """Rules for the router and for experts as transformers 5 holds them in memory, which some files repeat."""
    names = (f"{BLOCK}experts.gate.weight", f"{BLOCK}experts.up.weight")
    return [
        Rule((f"{BLOCK}router.weight",), (f"{block}{router}.weight",)),
        Rule(names, (f"{block}experts.gate_up_proj",), JoinedExperts()),
        Rule((f"{BLOCK}experts.down.weight",), (f"{block}experts.down_proj",)),
    ]


def with_experts(config: ModelConfig, experts: Experts, sparse: Sequence[bool]) -> ModelConfig:
    """The configuration with experts in the layers where `sparse` says so."""
    layers = zip(config.layers, sparse, strict=True)
    return replace(
        config, layers=tuple(replace(layer, feed_forward=experts) if here else layer for layer, here in layers)
    )


def experts_of(config: ModelConfig) -> Experts:
    """Those of a model whose experts are alike in every layer that has any."""
    return next(layer.feed_forward for layer in config.layers if isinstance(layer.feed_forward, Experts))


def _mixtral_rules(config: ModelConfig) -> Sequence[Rule]:
    experts = expert_rules(config, "model.layers.*.block_sparse_moe.", MIXTRAL_MATRICES)
    return [*with_biases(same(llama.NAMES)), *experts]


SHARED = "model.layers.*.mlp.shared_expert"
SHARED_NAMES = {
    f"{BLOCK}shared.gate.weight": f"{SHARED}.gate_proj.weight",
    f"{BLOCK}shared.up.weight": f"{SHARED}.up_proj.weight",
    f"{BLOCK}shared.down.weight": f"{SHARED}.down_proj.weight",
    f"{BLOCK}shared_gate.weight": f"{SHARED}_gate.weight",
}


def _rules(config: ModelConfig) -> Sequence[Rule]:
    experts = expert_rules(config, "model.layers.*.mlp.", MATRICES)
    return [*with_biases(same(llama.NAMES)), *same(SHARED_NAMES), *experts]


def _fused_rules(config: ModelConfig) -> Sequence[Rule]:
    return [*with_biases(same(llama.NAMES)), *same(SHARED_NAMES), *fused_expert_rules("model.layers.*.mlp.")]


def _read_mixtral(keys: Keys) -> ModelConfig:
    keys.without_effect(*TRAINING_KEYS)
    config = llama.read_base(
        keys, "mixtral", eps=("rms_norm_eps", 1e-5), theta=1_000_000.0, fraction=None, positions=131_072, kv_heads=8
    )
    config = llama.with_mixers(config, window=keys.optional_size("sliding_window"))
    count = keys.size("num_local_experts", "num_experts", default=8)
    router = Router(count, keys.size("num_experts_per_tok", default=2))
    return llama.with_layers(config, feed_forward=Experts(config.layers[0].network, router))


def _write_mixtral(config: ModelConfig) -> dict[str, Any]:
    layer, router = config.layers[0], experts_of(config).router
    return llama.write_base(config) | {
        "num_experts_per_tok": router.chosen,
        "num_local_experts": router.experts,
        "rms_norm_eps": layer.norm.eps,
        "sliding_window": layer.attention.window,
    }


def _read_router(keys: Keys, experts: int, chosen: int) -> Router:
    """experts, chosen: the family's defaults."""
    keys.without_effect(*TRAINING_KEYS)
    return Router(
        keys.size("num_experts", "num_local_experts", default=experts),
        keys.size("num_experts_per_tok", default=chosen),
        normalised=keys.flag("norm_topk_prob", default=False),
    )


def _write_router(router: Router) -> dict[str, Any]:
    return {
        "norm_topk_prob": router.normalised,
        "num_experts": router.experts,
        "num_experts_per_tok": router.chosen,
    }


def read_sparse_layers(keys: Keys, config: ModelConfig) -> list[bool]:
    """Every n-th layer has experts (`decoder_sparse_step`), but for those of `mlp_only_layers`."""
    step, dense = keys.size("decoder_sparse_step", default=1), keys.numbers("mlp_only_layers", default=[])
    return [index not in dense and (index + 1) % step == 0 for index in range(len(config.layers))]


def _read_sparse_layers(keys: Keys, config: ModelConfig) -> list[bool]:
    sparse = read_sparse_layers(keys, config)
    if not any(sparse):
        raise ValueError("`decoder_sparse_step` and `mlp_only_layers` leave no layer with experts")
    return sparse


def _read_qwen2(keys: Keys) -> ModelConfig:
    config = llama.read_base(keys, "qwen2_moe", fraction=None, positions=32_768, kv_heads=16)
    bias = keys.flag("qkv_bias", default=True)
    config = llama.with_mixers(config, bias=("query", "key", "value") if bias else ())
    dense = config.layers[0].network
    experts = Experts(
        replace(dense, width=keys.size("moe_intermediate_size", default=1408)),
        _read_router(keys, experts=60, chosen=4),
        shared=replace(dense, width=keys.size("shared_expert_intermediate_size", default=5632)),
        shared_gate=True,
    )
    return _read_qwen2_windows(keys, with_experts(config, experts, _read_sparse_layers(keys, config)))


def _read_qwen2_windows(keys: Keys, config: ModelConfig) -> ModelConfig:
    """Windows in every other layer of the first `max_window_layers`, or where `layer_types` says."""
    uses, below = keys.flag("use_sliding_window", default=False), keys.size("max_window_layers", default=28)
    kinds = keys.texts("layer_types") or [
        "sliding_attention" if uses and index % 2 == 0 and index < below else "full_attention"
        for index in range(len(config.layers))
    ]
    keys.without_effect("sliding_window")  # a file that uses no windows may say 0
    return llama.with_windows(config, keys.optional_size("sliding_window", default=4096) if uses else None, kinds)


def write_sparse(config: ModelConfig) -> dict[str, Any]:
    """The keys of a model in which some layers may have no experts."""
    experts = experts_of(config)
    dense = {index: one.network.width for index, one in enumerate(config.layers) if one.feed_forward != experts}
    return {
        **llama.write_base(config),
        **_write_router(experts.router),
        "decoder_sparse_step": 1,
        # Where every layer has experts, nothing in the model is of this width.
        "intermediate_size": next(iter(dense.values()), experts.expert.width),
        "mlp_only_layers": list(dense),
        "moe_intermediate_size": experts.expert.width,
        "rms_norm_eps": config.layers[0].norm.eps,
    }


def _write_qwen2(config: ModelConfig) -> dict[str, Any]:
    shared, windows = experts_of(config).shared, llama.write_windows(config)
    assert shared is not None
    return {
        **write_sparse(config),
        **windows,
        "qkv_bias": bool(config.layers[0].attention.bias),
        "shared_expert_intermediate_size": shared.width,
        "use_sliding_window": windows["sliding_window"] is not None,
    }


def _read_qwen3(keys: Keys) -> ModelConfig:
    keys.without_effect("max_window_layers")
    config = llama.read_base(keys, "qwen3_moe", fraction=None, positions=32_768, kv_heads=4)
    window = keys.optional_size("sliding_window", default=4096)
    config = llama.with_mixers(
        config,
        bias=llama.ALL if keys.flag("attention_bias", default=False) else (),
        query_key_norm=QueryKeyNorm(config.layers[0].norm),
        window=window if keys.flag("use_sliding_window", default=False) else None,
    )
    expert = replace(config.layers[0].network, width=keys.size("moe_intermediate_size", default=768))
    experts = Experts(expert, _read_router(keys, experts=128, chosen=8))
    return with_experts(config, experts, _read_sparse_layers(keys, config))


def _write_qwen3(config: ModelConfig) -> dict[str, Any]:
    mixer = config.layers[0].attention
    return write_sparse(config) | {
        "attention_bias": bool(mixer.bias),
        "sliding_window": mixer.window,
        "use_sliding_window": mixer.window is not None,
    }


def _read_olmoe(keys: Keys) -> ModelConfig:
    config = llama.read_base(keys, "olmoe", eps=("rms_norm_eps", 1e-5), fraction=None, positions=4096)
    config = llama.with_mixers(
        config,
        bias=llama.ALL if keys.flag("attention_bias", default=False) else (),
        clip=keys.optional_positive("clip_qkv"),
        query_key_norm=QueryKeyNorm(config.layers[0].norm, over="width"),
    )
    router = _read_router(keys, experts=64, chosen=8)
    return llama.with_layers(config, feed_forward=Experts(config.layers[0].network, router))


def _write_olmoe(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    return {
        **llama.write_base(config),
        **_write_router(experts_of(config).router),
        "attention_bias": bool(layer.attention.bias),
        "clip_qkv": layer.attention.clip,
        "rms_norm_eps": layer.norm.eps,
    }


MIXTRAL = Family(
    "mixtral", "MixtralForCausalLM", _read_mixtral, _write_mixtral, _mixtral_rules, other_rules=(_fused_rules,)
)
QWEN2_MOE = Family("qwen2_moe", "Qwen2MoeForCausalLM", _read_qwen2, _write_qwen2, _rules, other_rules=(_fused_rules,))
QWEN3_MOE = Family("qwen3_moe", "Qwen3MoeForCausalLM", _read_qwen3, _write_qwen3, _rules, other_rules=(_fused_rules,))
OLMOE = Family("olmoe", "OlmoeForCausalLM", _read_olmoe, _write_olmoe, _rules, other_rules=(_fused_rules,))
