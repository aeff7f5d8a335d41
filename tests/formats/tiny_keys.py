"""Config keys that the tiny models of `transformers` share; their values differ from the defaults of both libraries."""

from typing import Any

# A key that is read nowhere then shows in the logits.
DECODER: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
RMS: dict[str, Any] = DECODER | {"rms_norm_eps": 1e-3}


def rotary(kind: str = "default", theta: float = 300.0, **values: Any) -> dict[str, Any]:
    """`rope_parameters` of transformers 5."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **values}}
