"""PaLM (Chowdhery et al. 2022): parallel layers, one key and value head, SwiGLU, a tied head with scaled logits.

Section 2: y = x + MLP(LayerNorm(x)) + Attention(LayerNorm(x)), rotary positions, multi-query attention, no biases
anywhere; section 5: input and output embedding are shared, so the logits are scaled by width^-1/2. No class in
`transformers` has these parts together; the folder is laid out as one for groundup alone, with LLaMA's names.
"""

from groundup.formats import fields
from groundup.formats.families import llama
from groundup.formats.families.cohere import PARALLEL, PARALLEL_KEYS
from groundup.formats.family import mapped

# Absent keys mean what the paper says (of the epsilon it says nothing).
KEYS = PARALLEL_KEYS | {
    "num_key_value_heads": fields.SAID_KV_HEADS.usually(1),
    "max_position_embeddings": fields.POSITIONS.usually(2048),
    "layer_norm_eps": fields.EPS.usually(1e-6),
    "logit_scale": fields.LOGIT_SCALE.usually(lambda facts: facts["width"] ** -0.5),
}
PALM = mapped("palm", "PalmForCausalLM", KEYS, llama.rules, always=PARALLEL)
