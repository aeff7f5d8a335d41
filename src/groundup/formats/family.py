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
    parameters = keys.get("rope_parameters") or keys.get("rope_scaling") or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        raise ValueError(f"`rope_parameters`: rope type {kind!r} is not supported, only 'default'")
    return float(parameters.get("rope_theta", keys.get("rope_theta", 10_000.0)))


def require(keys: Mapping[str, Any], **expected: Any) -> None:
    """Refuse a folder whose key has another value than the one our parts stand for; an absent key is fine."""
    for key, value in expected.items():
        if key in keys and keys[key] != value:
            raise ValueError(f"`{key}` is {keys[key]!r}, only {value!r} is supported")
