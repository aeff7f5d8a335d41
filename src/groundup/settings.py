"""One dataclass per stage gives its TOML keys, its command-line flags and its documentation.

    @dataclass(frozen=True)
    class TokenizerConfig:
        vocab_size: int = setting(4096, "number of tokens, control tokens included")

`read_table` turns a TOML table into such a dataclass, `add_flags` and `read_flags` do the same for argparse.
A type or a name that does not fit is a `UserError` which names the key and what would be accepted.
"""

import argparse
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from groundup.errors import UserError

Config = TypeVar("Config")


def setting(default: Any, help: str, one_of: str | None = None, choices: Sequence[str] = ()) -> Any:
    """A dataclass field with its default value and one line of documentation.

    one_of: name of a group of fields that exclude each other (`minutes` or `tokens`): whoever sets one of them unsets
        the others, be it over a default or, with a flag, over a recipe.
    choices: the texts that are accepted, where they are too many for a Literal and its list in the help.
    """
    return dataclasses.field(default=default, metadata={"help": help, "one_of": one_of, "choices": tuple(choices)})


def read_table(kind: type[Config], table: Mapping[str, Any], where: str) -> Config:
    """Build the dataclass `kind` from a TOML table.

    where: what to call the table in messages, such as `pocket.toml [pretrain]`.
    Raises UserError for an unknown key, a value of the wrong type, or one that the dataclass itself refuses.
    """
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in table:
        if key not in names:
            raise UserError(f"{where}: unknown key `{key}`{_suggestion(key, names)}; known keys: {', '.join(names)}")
    values = {key: _accept(value, hints[key], f"{where}: `{key}`") for key, value in table.items()}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        _check_choice(field, values.get(field.name), where)
    values.update({name: None for name in names if name not in table and _is_replaced(kind, name, table)})
    try:
        return kind(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def write_table(config: Any) -> dict[str, Any]:
    """The dataclass as plain JSON-able values: the inverse of `read_table`."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return value

    return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def add_flags(parser: argparse._ActionsContainer, kind: type, prefix: str = "") -> None:
    """Add one flag per field of `kind`: `--vocab-size`, or `--tokenizer.vocab-size` with prefix `tokenizer.`."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        options: dict[str, Any] = {
            "dest": f"{prefix}{field.name}",
            "default": argparse.SUPPRESS,
            "help": _help(field),
            "metavar": "NAME" if field.metadata.get("choices") else _describe(hints[field.name]),
        }
        if field.metadata.get("choices"):
            options["choices"] = field.metadata["choices"]
        if _is_tuple(hints[field.name]):
            options["nargs"] = "+"
        spelling = field.name.replace("_", "-")
        parser.add_argument(f"--{prefix}{spelling}", *_aliases(prefix, field.name), **options)


def read_flags(kind: type[Config], flags: argparse.Namespace, base: Mapping[str, Any], prefix: str = "") -> Config:
    """Build `kind` from the table `base` with the flags that were given laid over it."""
    hints = typing.get_type_hints(kind)
    given = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        raw = getattr(flags, f"{prefix}{field.name}", None)
        if raw is not None:
            flag = f"--{prefix}{field.name.replace('_', '-')}"
            given[field.name] = _parse(raw, hints[field.name], flag)
    table = {name: value for name, value in base.items() if not _is_replaced(kind, name, given)} | given
    return read_table(kind, table, prefix.rstrip(".") or "the command line")


def _check_choice(field: "dataclasses.Field[Any]", value: Any, where: str) -> None:
    choices = field.metadata.get("choices")
    if choices and value is not None and value not in choices:
        accepted = f"one of {', '.join(choices)}, not {value!r}"
        raise UserError(f"{where}: `{field.name}` must be {accepted}{_suggestion(value, choices)}")


def _is_replaced(kind: type, name: str, given: Mapping[str, Any]) -> bool:
    """Whether a value given for another field of its `one_of` group takes the place of `name`."""
    groups = {field.name: field.metadata.get("one_of") for field in dataclasses.fields(kind)}
    group = groups.get(name)
    return group is not None and group in (groups[other] for other in given)


def _aliases(prefix: str, name: str) -> list[str]:
    """The spelling with underscores, as in TOML, is accepted too."""
    return [f"--{prefix}{name}"] if "_" in name else []


def _help(field: "dataclasses.Field[Any]") -> str:
    default = field.default
    if default is None or default is dataclasses.MISSING or default == ():
        shown = ""
    elif isinstance(default, tuple):
        shown = f" (default: {' '.join(map(str, default))})"
    else:
        shown = f" (default: {default})"
    return f"{field.metadata['help']}{shown}".replace("%", "%%")


def _suggestion(key: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, names, n=1)
    return f", did you mean `{close[0]}`" if close else ""


def _is_tuple(hint: Any) -> bool:
    return typing.get_origin(hint) is tuple


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return typing.get_args(hint)
    return (hint,)


def _describe(hint: Any) -> str:
    """A type as a user would call it."""
    names = {int: "integer", float: "number", str: "text", bool: "true|false", Path: "path", type(None): "none"}
    if typing.get_origin(hint) is Literal:
        return "|".join(str(value) for value in typing.get_args(hint))
    if _is_tuple(hint):
        return f"{_describe(typing.get_args(hint)[0])}"
    kinds = [kind for kind in _alternatives(hint) if kind is not type(None)]
    return " or ".join(names[kind] if kind in names else _describe(kind) for kind in kinds)


def _accept(value: Any, hint: Any, where: str) -> Any:
    """`value` as type `hint`, or a UserError; integers pass as numbers, strings as paths, nothing else is converted."""
    for kind in _alternatives(hint):
        if typing.get_origin(kind) is Literal:
            if value in typing.get_args(kind):
                return value
        elif _is_tuple(kind):
            if isinstance(value, list | tuple):
                item = typing.get_args(kind)[0]
                return tuple(_accept(one, item, f"{where}[{index}]") for index, one in enumerate(value))
        elif kind is float:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
        elif kind is Path:
            if isinstance(value, str | Path):
                return Path(value)
        elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return value
    expected = f"a list of {_describe(hint)}" if _is_tuple(hint) else _describe(hint)
    raise UserError(f"{where} must be {expected}, not {value!r}")


def _parse(raw: str | list[str], hint: Any, flag: str) -> Any:
    """A command-line word as the value that TOML would have held."""
    if isinstance(raw, list):
        return [_parse(word, typing.get_args(hint)[0], flag) for word in raw]
    kinds = _alternatives(hint)
    if type(None) in kinds and raw.lower() == "none":
        return None
    for kind in kinds:
        if kind is bool and raw.lower() in ("true", "false"):
            return raw.lower() == "true"
        if kind in (int, float):
            try:
                # 3e6 is a fair way to write an integer of tokens.
                return kind(raw) if "e" not in raw.lower() or kind is float else _whole(float(raw))
            except ValueError:
                continue
        if typing.get_origin(kind) is Literal and raw in typing.get_args(kind):
            return raw
        if kind in (str, Path):
            return raw
    raise UserError(f"{flag} must be {_describe(hint)}, not {raw!r}")


def _whole(number: float) -> int:
    if number != int(number):
        raise ValueError(number)
    return int(number)
