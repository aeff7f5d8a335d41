"""From a recipe file and flags to the typed settings of its stages.

A recipe is a TOML file; each of its tables is a stage with that stage's settings. Shipped recipes go by their name.
"""

import argparse
import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from groundup.errors import UserError
from groundup.recipe.stages import STAGES, Stage
from groundup.settings import read_flags, read_table

_SHIPPED = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True)
class Recipe:
    """configs: {stage: its typed settings}, in the order of the street. name: also that of its run folder."""

    name: str
    description: str
    configs: Mapping[str, Any]


def shipped_recipes() -> list[Path]:
    """The recipes that come with the package."""
    return sorted(_SHIPPED.glob("*.toml"))


def read_recipe(name: str, flags: argparse.Namespace | None = None, stages: Sequence[Stage] = STAGES) -> Recipe:
    """The recipe called `name`: a shipped one, or the path of a TOML file.

    flags: values that stand over those of the file, as `settings.add_flags` names them with prefix `STAGE.`.
    Raises UserError, naming file and key, for anything that is no recipe.
    """
    path = find_recipe(name)
    tables = read_toml(path)
    description = tables.pop("description", "")
    known = [stage.name for stage in stages]
    for key, table in tables.items():
        if key not in known or not isinstance(table, dict):
            close = difflib.get_close_matches(key, known, n=1)
            hint = f", did you mean [{close[0]}]" if close else ""
            kind = "table" if isinstance(table, dict) else "key"
            tables_known = ", ".join(f"[{stage}]" for stage in known)
            raise UserError(f"{path}: unknown {kind} `{key}`{hint}; a recipe has `description` and {tables_known}")
    if not tables:
        raise UserError(f"{path}: a recipe needs at least one table, such as [corpus]")
    configs = {}
    for stage in stages:
        if stage.name in tables:
            read_table(stage.config_kind, tables[stage.name], f"{path} [{stage.name}]")
            configs[stage.name] = _with_flags(stage, flags, tables[stage.name])
        elif flags is not None and _given(stage, flags):
            raise UserError(f"--{_given(stage, flags)}: {path} has no table [{stage.name}] that it could change")
    return Recipe(path.stem, str(description), configs)


def find_recipe(name: str) -> Path:
    """The file of a recipe. Raises UserError where there is none."""
    shipped = {path.stem: path for path in shipped_recipes()}
    if name in shipped:
        return shipped[name]
    if Path(name).is_file():
        return Path(name)
    close = difflib.get_close_matches(name, shipped, n=1)
    hint = f"did you mean `{close[0]}`" if close else f"shipped recipes are {', '.join(shipped)}"
    raise UserError(f"no recipe `{name}`: {hint}; any other name must be the path of a TOML file")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises UserError, with line and column, for what is no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}): save the recipe as UTF-8") from None


def _with_flags(stage: Stage, flags: argparse.Namespace | None, table: Mapping[str, Any]) -> Any:
    kind = stage.config_kind
    return read_flags(kind, flags or argparse.Namespace(), table, prefix=f"{stage.name}.")


def _given(stage: Stage, flags: argparse.Namespace) -> str | None:
    """The first flag of this stage that the user gave."""
    names = (f"{stage.name}.{field.name}" for field in fields(stage.config_kind))
    return next((name.replace("_", "-") for name in names if hasattr(flags, name)), None)
