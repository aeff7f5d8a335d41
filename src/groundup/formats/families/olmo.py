"""OLMo 2 and OLMo 3.

LLaMA's shape, but what is normed is what each sublayer gives, not what it takes, and the queries and keys of all heads
together. In OLMo 3 three of four layers have a window, and rotary positions are stretched in the others alone.
Sources: OLMo team 2024, 2025.
"""

from groundup.formats import fields
from groundup.formats.families import llama
from groundup.formats.family import mapped
from groundup.formats.rules import named

NAMES = llama.NAMES | {
    "layers.*.mixer_output_norm.weight": "model.layers.*.post_attention_layernorm.weight",
    "layers.*.feed_forward_output_norm.weight": "model.layers.*.post_feedforward_layernorm.weight",
}
# In version 4 both kinds of layers have one base.
THETAS = {"full_attention": ("rope_theta", 500_000.0), "sliding_attention": ("rope_theta", 500_000.0)}


OLMO2_KEYS = llama.KEYS | llama.ATTENTION_BIAS | {"rms_norm_eps": fields.EPS.usually(1e-5)}
OLMO3_KEYS = OLMO2_KEYS | {"rope_theta": fields.RotaryByKind(THETAS), "sliding_window": fields.Windows(4096, period=4)}
ALWAYS = llama.GATED | {"layer.placement": "output", "mixer.query_key_norm": fields.normed_heads(over="width")}

OLMO2 = mapped("olmo2", "Olmo2ForCausalLM", OLMO2_KEYS, named(NAMES), always=ALWAYS)
OLMO3 = mapped("olmo3", "Olmo3ForCausalLM", OLMO3_KEYS, named(NAMES), always=ALWAYS)
