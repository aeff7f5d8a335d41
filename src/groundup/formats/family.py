"""A family of published models, as data: one table of names and two config maps, used in both directions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from groundup.model.config import ModelConfig


@dataclass(frozen=True)
class Family:
    """How one family is laid out in a Hugging Face folder.

    architecture: class name that `transformers` loads the folder with.
    tensors: our parameter name → name on disk, with `*` for the layer number; parameters that a configuration does not
        have (a tied head, a norm without weight) are absent on both sides.
    to_keys / from_keys: `ModelConfig` ⇄ the family's own keys of config.json; `from_keys` raises ValueError, naming the
        key, for a value that this family's parts cannot express.
    known_keys: every key `from_keys` understands; any other is refused.
    """

    name: str
    architecture: str
    tensors: Mapping[str, str]
    to_keys: Callable[[ModelConfig], dict[str, Any]]
    from_keys: Callable[[Mapping[str, Any]], ModelConfig]
    known_keys: frozenset[str]


def rope_theta(keys: Mapping[str, Any]) -> float:
    """The rotary base from v4 (`rope_theta`) or v5 (`rope_parameters`) keys; scaled rotary positions are refused."""
    table = "rope_parameters" if keys.get("rope_parameters") else "rope_scaling"
    parameters = keys.get(table) or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        raise ValueError(f"`{table}`: rope type {kind!r} is not supported, only 'default'")
    check_values(parameters)
    return float(parameters.get("rope_theta", keys.get("rope_theta", 10_000.0)))


def check_values(keys: Mapping[str, Any]) -> None:
    """Refuse a value of the wrong type or sign, by the name of its key; an absent key is fine.

    Raises ValueError. A config.json is a stranger's: nothing of it may reach the model's arithmetic unchecked.
    """
    for accepted, accepts, names in _KINDS:
        for key in names.split():
            if key in keys and not accepts(keys[key]):
                raise ValueError(f"`{key}` must be {accepted}, not {keys[key]!r}")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


# What a value must be, how to tell, and the keys it holds for.
_KINDS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "a positive integer",
        _is_size,
        "hidden_size induction_places intermediate_size max_position_embeddings num_attention_heads num_hidden_layers "
        "vocab_size",
    ),
    ("a positive integer or null", lambda value: value is None or _is_size(value), "head_dim num_key_value_heads"),
    ("a positive number", _is_positive, "rms_norm_eps rope_theta"),
    ("a positive number or null", lambda value: value is None or _is_positive(value), "final_logit_softcapping"),
    ("true or false", lambda value: isinstance(value, bool), "residual_mix tie_word_embeddings"),
    (
        "a list of layer numbers",
        lambda value: isinstance(value, list) and all(one == 0 or _is_size(one) for one in value),
        "head_gate_layers value_embedding_layers",
    ),
    (
        "a list of positive integers",
        lambda value: isinstance(value, list) and all(map(_is_size, value)),
        "induction_lengths ngram_buckets",
    ),
    ("an object or null", lambda value: value is None or isinstance(value, dict), "rope_parameters rope_scaling"),
)


def require(keys: Mapping[str, Any], **expected: Any) -> None:
    """Refuse a folder whose key has another value than the one our parts stand for; an absent key is fine."""
    for key, value in expected.items():
        if key in keys and keys[key] != value:
            raise ValueError(f"`{key}` is {keys[key]!r}, only {value!r} is supported")
