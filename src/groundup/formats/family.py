"""A family of published models, as data: what its config.json says and what its tensors are called."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from groundup.formats.config_map import Entry, Facts, model_of, read_facts, write_keys
from groundup.formats.keys import Keys
from groundup.formats.rules import Rule
from groundup.formats.tensor_files import TensorFiles
from groundup.model.build import AnyConfig
from groundup.model.config import ModelConfig

Config = TypeVar("Config", bound=AnyConfig)


@dataclass(frozen=True)
class Family(Generic[Config]):
    """How one family is laid out in a Hugging Face folder.

    name: its `model_type`, and the `family` of its configurations.
    architecture: class name that `transformers` loads the folder with.
    read / write: the family's keys of config.json ⇄ its configuration; `read` raises ValueError, naming the key, for a
        value that our parts cannot express.
    rules: the names and layout of its tensors, for a configuration.
    ignored: patterns of tensors that old files hold and nothing needs, such as stored masks.
    copies: names of tensors that some files hold though they are tied → the tensor on disk that they must equal; the
        head of a language model, tied to its embedding, needs no mention.
    other_rules: other layouts that files of the family come in; they are read, never written.
    settle: the configuration that the tensors of a folder call for, where keys leave it open (T5's head).
    """

    name: str
    architecture: str
    read: Callable[[Keys], Config]
    write: Callable[[Config], dict[str, Any]]
    rules: Callable[[Config], Sequence[Rule]]
    ignored: tuple[str, ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    other_rules: tuple[Callable[[Config], Sequence[Rule]], ...] = ()
    settle: Callable[[Config, TensorFiles], Config] = lambda config, files: config


def mapped(
    name: str,
    architecture: str,
    keys: Mapping[str, Entry],
    rules: Callable[[ModelConfig], Sequence[Rule]],
    *,
    always: Facts | None = None,
    **traits: Any,
) -> Family[ModelConfig]:
    """A family that a map of keys and a table of names say all of; always: what none of its files says."""

    def read(found: Keys) -> ModelConfig:
        return model_of(name, read_facts(keys, found, always))

    return Family(name, architecture, read, partial(write_keys, keys), rules, **traits)
