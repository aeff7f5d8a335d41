"""Gemma, Gemma 2 and the text decoder of Gemma 3.

LLaMA's shape with norms that multiply by 1 + weight, GELU for SiLU, an embedding multiplied by the root of its width,
and heads of any dimension. Gemma 2 norms what each sublayer gives as well, softcaps scores and logits, and gives every
other layer a window. Gemma 3 norms each head's queries and keys instead of capping their scores; five of six layers
have a window, and a base of their own for the rotation. Sources: Gemma team 2024a, 2024b, 2025.
"""

from dataclasses import replace

from groundup.formats import fields
from groundup.formats.config_map import OFF, Field, fixed, without_effect
from groundup.formats.families import llama
from groundup.formats.family import mapped
from groundup.formats.keys import Keys
from groundup.formats.rules import named

SANDWICH_NAMES = llama.NAMES | {
    "layers.*.mixer_output_norm.weight": "model.layers.*.post_attention_layernorm.weight",
    "layers.*.feed_forward_norm.weight": "model.layers.*.pre_feedforward_layernorm.weight",
    "layers.*.feed_forward_output_norm.weight": "model.layers.*.post_feedforward_layernorm.weight",
}
# Where version 4 keeps the base of each kind of layer in Gemma 3, and what it is where a file does not say.
THETAS = {"full_attention": ("rope_theta", 1_000_000.0), "sliding_attention": ("rope_local_base_freq", 10_000.0)}


# Published files give the activation under two keys, and the window too; each map takes the one that counts.
SHAPE = (
    llama.KEYS
    | llama.ATTENTION_BIAS
    | without_effect("cache_implementation hidden_act hidden_activation sliding_window_size")
    | {
        "use_bidirectional_attention": OFF,
        "head_dim": fields.HEAD_DIM.usually(256),
        "num_key_value_heads": fields.SAID_KV_HEADS.usually(4),
        "max_position_embeddings": fields.POSITIONS.usually(8192),
        "tie_word_embeddings": fields.TIED.usually(True),
    }
)
# The first files say `gelu`, and mean the approximation.
GEMMA_KEYS = SHAPE | {
    "hidden_act": replace(
        fields.ACTIVATION.usually("gelu_pytorch_tanh"), ours=lambda one: "gelu_tanh" if one == "gelu" else one
    ),
    "num_key_value_heads": fields.SAID_KV_HEADS.usually(16),
}
SANDWICH_KEYS = SHAPE | {
    "hidden_activation": fields.ACTIVATION.usually("gelu_pytorch_tanh"),
    "sliding_window": fields.Windows(4096, period=2),
    "query_pre_attn_scalar": Field(
        "mixer.scale", Keys.size, default=256, ours=lambda size: size**-0.5, theirs=lambda scale: round(scale**-2)
    ),
    "final_logit_softcapping": fields.LOGIT_SOFTCAP.usually(30.0),
}
GEMMA2_KEYS = SANDWICH_KEYS | {"attn_logit_softcapping": fields.SOFTCAP.usually(50.0)}
GEMMA3_KEYS = SANDWICH_KEYS | {
    **without_effect("_sliding_window_pattern"),  # beside the `layer_types` that were made from it
    "attn_logit_softcapping": fixed(None),
    "max_position_embeddings": fields.POSITIONS.usually(131_072),
    "sliding_window": fields.Windows(4096, period=6, period_key="sliding_window_pattern"),
    "rope_theta": fields.RotaryByKind(THETAS),
    "final_logit_softcapping": fields.LOGIT_SOFTCAP.usually(None),
}
PLUS_ONE = llama.GATED | {"norm.kind": "rms_plus_one", "embedding_scale": lambda facts: facts["width"] ** 0.5}
SANDWICH = PLUS_ONE | {"layer.placement": "sandwich"}

GEMMA = mapped("gemma", "GemmaForCausalLM", GEMMA_KEYS, llama.rules, always=PLUS_ONE)
GEMMA2 = mapped("gemma2", "Gemma2ForCausalLM", GEMMA2_KEYS, named(SANDWICH_NAMES), always=SANDWICH)
GEMMA3 = mapped(
    "gemma3_text",
    "Gemma3ForCausalLM",
    GEMMA3_KEYS,
    named(SANDWICH_NAMES),
    always=SANDWICH | {"mixer.query_key_norm": fields.normed_heads()},
)
