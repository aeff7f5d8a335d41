"""What every benchmark ends with: a table on the terminal and, with `--json FILE`, the same figures as JSON."""

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from groundup.hardware import describe


def arguments(about: str) -> argparse.ArgumentParser:
    """A parser with the flag that every benchmark takes. about: the benchmark's docstring, shown as it stands."""
    parser = argparse.ArgumentParser(description=about.strip(), formatter_class=_Help)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    return parser


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Tells defaults, where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if isinstance(action.default, list | tuple):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What was asked for; where files lie says nothing to others."""
    return {name: value for name, value in vars(options).items() if not _names_files(value)}


def show(title: str, rows: Sequence[Mapping[str, Any]], json_path: Path | None, figures: Mapping[str, Any]) -> None:
    """Print `rows` as a table (keys of the first row are the columns), and write `figures` with the machine's name."""
    machine = describe()
    caption = f"{machine.processor}, {machine.cores} cores, Python {platform.python_version()}"
    table = Table(title=title, caption=caption)
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else _number(value) for value in row.values()))
    Console(width=120).print(table)
    if json_path is not None:
        write_figures(json_path, figures)


def write_figures(path: Path, figures: Mapping[str, Any]) -> None:
    """Write figures with the machine's name."""
    machine = describe()
    document = {"machine": {"processor": machine.processor, "cores": machine.cores}, **figures}
    path.write_text(json.dumps(document, indent=2, default=str) + "\n", encoding="utf-8")


def _names_files(value: Any) -> bool:
    return isinstance(value, Path) or (isinstance(value, list) and any(map(_names_files, value)))


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
