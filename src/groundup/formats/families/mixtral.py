"""Mixtral and other decoders of LLaMA's shape with experts: Qwen2-MoE, Qwen3-MoE, OLMoE.

Softmax over all experts, the best few, their weights renormalised or not. Sources: Jiang et al. 2024; Qwen team 2024 (a
gated network beside the experts) and 2025; Muennighoff et al. 2024 (queries and keys normed over the whole width).
"""

from collections.abc import Sequence
from typing import Any

from groundup.formats import fields
from groundup.formats.config_map import Facts, Field, PerLayer, Several, experts_of, without_effect
from groundup.formats.families import llama
from groundup.formats.family import mapped
from groundup.formats.keys import Keys
from groundup.formats.rules import JoinedExperts, Rule, Stacked, same, with_biases
from groundup.model.config import ModelConfig
from groundup.model.specs import Experts

BLOCK = "layers.*.feed_forward."
# Within a layer's block of experts: our matrices, and what they are called on disk.
MIXTRAL_MATRICES = {"gate": "w1", "up": "w3", "down": "w2"}
MATRICES = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
# Keys that say how the experts are balanced while training.
TRAINING_KEYS = without_effect("router_aux_loss_coef router_jitter_noise")


def expert_rules(config: ModelConfig, block: str, matrices: dict[str, str], router: str = "gate") -> list[Rule]:
    """Rules for the router and for experts that lie on disk one by one.

    block: the name on disk of what holds the router and `experts`; matrices: ours → their names there.
    """
    experts = experts_of(config)
    return [
        Rule((f"{BLOCK}router.weight",), (f"{block}{router}.weight",)),
        *(
            Rule(
                (f"{BLOCK}experts.{ours}.weight",),
                tuple(f"{block}experts.{index}.{theirs}.weight" for index in range(experts.router.experts)),
                Stacked(),
            )
            for ours, theirs in matrices.items()
            if experts is not None
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


def _read_sparse_layers(keys: Keys, facts: Facts) -> None:
    read_sparse_layers(keys, facts)
    if not any(facts["layer.sparse"].values):
        raise ValueError("`decoder_sparse_step` and `mlp_only_layers` leave no layer with experts")


def read_sparse_layers(keys: Keys, facts: Facts) -> None:
    """Every n-th layer has experts (`decoder_sparse_step`), but for those of `mlp_only_layers`."""
    step, dense = keys.size("decoder_sparse_step", default=1), keys.numbers("mlp_only_layers", default=[])
    sparse = [index not in dense and (index + 1) % step == 0 for index in range(facts["layers"])]
    facts["layer.sparse"] = PerLayer(tuple(sparse))


def write_sparse_layers(config: ModelConfig) -> dict[str, Any]:
    """The keys that `read_sparse_layers` reads."""
    dense = [index for index, layer in enumerate(config.layers) if not isinstance(layer.feed_forward, Experts)]
    written = {"decoder_sparse_step": 1, "mlp_only_layers": dense}
    return written if len(dense) < len(config.layers) else written | {"num_experts": 0}


def _read_qwen2_windows(keys: Keys, facts: Facts) -> None:
    """Windows in every other layer of the first `max_window_layers`, or where `layer_types` says."""
    uses, below = keys.flag("use_sliding_window", default=False), keys.size("max_window_layers", default=28)
    keys.without_effect("sliding_window")  # a file that uses no windows may say 0
    window = keys.optional_size("sliding_window", default=4096) if uses else None
    windowed = [uses and index % 2 == 0 and index < below for index in range(facts["layers"])]
    fields.read_windows(keys, facts, window, windowed)


def _read_qwen3_window(keys: Keys, facts: Facts) -> None:
    window = keys.optional_size("sliding_window", default=4096)
    facts["mixer.window"] = window if keys.flag("use_sliding_window", default=False) else None


def _write_qwen3_window(config: ModelConfig) -> dict[str, Any]:
    window = config.layers[0].attention.window
    return {"sliding_window": window, "use_sliding_window": window is not None}


NAMED_EXPERTS = fields.EXPERTS.also("num_local_experts")
MIXTRAL_KEYS = (
    llama.KEYS
    | TRAINING_KEYS
    | {
        "rms_norm_eps": fields.EPS.usually(1e-5),
        "num_key_value_heads": fields.KV_HEADS.usually(8),
        "max_position_embeddings": fields.POSITIONS.usually(131_072),
        "rope_theta": fields.Rotary(1_000_000.0),
        "sliding_window": fields.WINDOW.usually(None),
        "num_local_experts": fields.EXPERTS.also("num_experts").usually(8),
        "num_experts_per_tok": fields.CHOSEN.usually(2),
    }
)
SPARSE_KEYS = llama.QWEN_KEYS | {
    **TRAINING_KEYS,
    "norm_topk_prob": fields.NORMALISED.usually(False),
    "decoder_sparse_step": Several(_read_sparse_layers, write_sparse_layers),
}
QWEN2_KEYS = SPARSE_KEYS | {
    "num_key_value_heads": fields.KV_HEADS.usually(16),
    "qkv_bias": fields.biases("query", "key", "value").usually(True),
    "sliding_window": Several(_read_qwen2_windows, llama.write_used_windows),
    "num_experts": NAMED_EXPERTS.usually(60),
    "num_experts_per_tok": fields.CHOSEN.usually(4),
    "moe_intermediate_size": fields.EXPERT_WIDTH.usually(1408),
    "shared_expert_intermediate_size": fields.SHARED_WIDTH.usually(5632),
}
QWEN3_KEYS = (
    SPARSE_KEYS
    | llama.ATTENTION_BIAS
    | {
        **without_effect("max_window_layers"),
        "num_key_value_heads": fields.KV_HEADS.usually(4),
        "sliding_window": Several(_read_qwen3_window, _write_qwen3_window),
        "num_experts": NAMED_EXPERTS.usually(128),
        "num_experts_per_tok": fields.CHOSEN.usually(8),
        "moe_intermediate_size": fields.EXPERT_WIDTH.usually(768),
    }
)
OLMOE_KEYS = (
    llama.KEYS
    | TRAINING_KEYS
    | llama.ATTENTION_BIAS
    | {
        "rms_norm_eps": fields.EPS.usually(1e-5),
        "max_position_embeddings": fields.POSITIONS.usually(4096),
        "clip_qkv": Field("mixer.clip", Keys.optional_positive, default=None),
        "num_experts": NAMED_EXPERTS.usually(64),
        "num_experts_per_tok": fields.CHOSEN.usually(8),
        "norm_topk_prob": fields.NORMALISED.usually(False),
    }
)
OLMOE_FACTS = llama.GATED | {"mixer.query_key_norm": fields.normed_heads(over="width")}

MIXTRAL = mapped(
    "mixtral", "MixtralForCausalLM", MIXTRAL_KEYS, _mixtral_rules, always=llama.GATED, other_rules=(_fused_rules,)
)
QWEN2_MOE = mapped(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    QWEN2_KEYS,
    _rules,
    always=llama.GATED | {"experts.shared_gate": True},
    other_rules=(_fused_rules,),
)
QWEN3_MOE = mapped(
    "qwen3_moe", "Qwen3MoeForCausalLM", QWEN3_KEYS, _rules, always=llama.NORMED_HEADS, other_rules=(_fused_rules,)
)
OLMOE = mapped("olmoe", "OlmoeForCausalLM", OLMOE_KEYS, _rules, always=OLMOE_FACTS, other_rules=(_fused_rules,))
