"""A family of published models, as data: what its config.json says and what its tensors are called."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from groundup.formats.keys import Keys
from groundup.formats.rules import Rule
from groundup.model.config import ModelConfig


@dataclass(frozen=True)
class Family:
    """How one family is laid out in a Hugging Face folder.

    name: its `model_type`, and the `family` of its configurations.
    architecture: class name that `transformers` loads the folder with.
    read / write: the family's keys of config.json ⇄ `ModelConfig`; `read` raises ValueError, naming the key, for a
        value that our parts cannot express.
    rules: the names and layout of its tensors, for a configuration.
    ignored: patterns of tensors that old files hold and nothing needs, such as stored masks.
    other_rules: other layouts that files of the family come in; they are read, never written.
    """

    name: str
    architecture: str
    read: Callable[[Keys], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    rules: Callable[[ModelConfig], Sequence[Rule]]
    ignored: tuple[str, ...] = ()
    other_rules: tuple[Callable[[ModelConfig], Sequence[Rule]], ...] = ()
