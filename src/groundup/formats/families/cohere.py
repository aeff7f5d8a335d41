"""Cohere's Command R (2024) and, with windows, Command R7B and Command A (2024, 2025; `cohere2`).

Attention and feed-forward network side by side behind one layer norm without bias, rotary positions in neighbouring
pairs, SwiGLU, a tied head whose logits are scaled. Command R+ norms each query and key head with a weight of its own;
Cohere 2 has windows in three of four layers and no positions in the fourth.
"""

from groundup.formats import fields
from groundup.formats.config_map import Facts, PerLayer, Several, fixed, without_effect
from groundup.formats.families import llama
from groundup.formats.family import mapped
from groundup.formats.keys import Keys

# Parallel, gated layers without biases, rotary positions in neighbouring pairs, a tied head with scaled logits.
PARALLEL_KEYS = llama.SHAPE | {
    "layer_norm_eps": fields.EPS.usually(1e-5),
    "max_position_embeddings": fields.POSITIONS.usually(8192),
    "tie_word_embeddings": fields.TIED.usually(True),
    "rope_theta": fields.Rotary(interleaved=True),
    "logit_scale": fields.LOGIT_SCALE.usually(0.0625),
}
PARALLEL = llama.GATED | {"norm.kind": "layer", "layer.placement": "parallel"}
COHERE_KEYS = (
    PARALLEL_KEYS
    | llama.ATTENTION_BIAS
    | without_effect("model_max_length")
    | {
        "rope_theta": fields.Rotary(500_000.0, interleaved=True),
        "use_qk_norm": fields.query_key_norm(over="each_head").usually(False),
    }
)


def _read_layers(keys: Keys, facts: Facts) -> None:
    """Layers that see everything have no positions."""
    # Written by Cohere's own code, never other than this.
    keys.fixed(layer_switch=keys.size("sliding_window_pattern", default=4), use_embedding_sharing=facts["tied_head"])
    rope, windows = facts["mixer.rope"], facts["mixer.window"].values
    facts["mixer.rope"] = PerLayer(tuple(None if window is None else rope for window in windows))


COHERE2_KEYS = (
    PARALLEL_KEYS
    | llama.ATTENTION_BIAS
    | without_effect("model_max_length cache_implementation use_parallel_embedding")
    | {
        "sliding_window": fields.Windows(4096, period=4, period_key="sliding_window_pattern"),
        "layer_switch": Several(_read_layers),
        "order_of_interleaved_layers": fixed("local_attn_first"),
        "position_embedding_type": fixed("rope_gptj"),
        "rotary_pct": fixed(1.0),
        "use_gated_activation": fixed(True),
        "use_parallel_block": fixed(True),
        "use_qk_norm": fixed(False),
    }
)

COHERE = mapped("cohere", "CohereForCausalLM", COHERE_KEYS, llama.rules, always=PARALLEL)
COHERE2 = mapped("cohere2", "Cohere2ForCausalLM", COHERE2_KEYS, llama.rules, always=PARALLEL)
