"""nanochat (Karpathy 2025): norms without weight, rotation the other way round, relu² without a gate, softcap."""

from groundup.formats import fields
from groundup.formats.config_map import Facts, norm_of
from groundup.formats.families import llama
from groundup.formats.family import mapped
from groundup.formats.rules import named

NAMES = llama.NAMES | {
    "layers.*.feed_forward.up.weight": "model.layers.*.mlp.fc1.weight",
    "layers.*.feed_forward.down.weight": "model.layers.*.mlp.fc2.weight",
}
rules = named(NAMES)
KEYS = (
    llama.KEYS
    | llama.ATTENTION_BIAS
    | {
        "hidden_act": fields.ACTIVATION.usually("relu2"),
        "rope_theta": fields.Rotary(reversed=True),
        "final_logit_softcapping": fields.LOGIT_SOFTCAP.usually(15.0),
    }
)
ALWAYS: Facts = {
    "norm.kind": "rms_without_weight",
    "feed_forward.gated": False,
    "mixer.query_key_norm": fields.normed_heads(after_rope=True),
    "embedding_norm": norm_of,
}
NANOCHAT = mapped("nanochat", "NanoChatForCausalLM", KEYS, rules, always=ALWAYS)
