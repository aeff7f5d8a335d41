"""PaLM (Chowdhery et al. 2022): parallel layers, one key and value head, SwiGLU, a tied head with scaled logits.

Section 2: y = x + MLP(LayerNorm(x)) + Attention(LayerNorm(x)), rotary positions, multi-query attention, no biases
anywhere; section 5: input and output embedding are shared, so the logits are scaled by width^-1/2. No class in
`transformers` has these parts together; the folder is laid out as one for groundup alone, with LLaMA's names.
"""

from typing import Any

from groundup.formats.families import cohere, llama
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.model.config import ModelConfig


def read(keys: Keys) -> ModelConfig:
    """The configuration that `write` wrote; absent keys mean what the paper says (of the epsilon it says nothing)."""
    width = keys.size("hidden_size")
    config = cohere.read_parallel(keys, "palm", logit_scale=width**-0.5, eps=1e-6, positions=2048)
    return llama.with_mixers(config, kv_heads=keys.size("num_key_value_heads", default=1))


def write(config: ModelConfig) -> dict[str, Any]:
    """The family's keys of config.json."""
    return cohere.write_parallel(config)


PALM = Family("palm", "PalmForCausalLM", read, write, llama.rules)
