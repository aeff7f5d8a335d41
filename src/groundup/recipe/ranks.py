"""Several processes, one recipe: under torchrun every rank runs the same command.

The first rank reads settings, keeps the ledger and decides what is to be done; the others wait for its calls, run the
same stage function on the same folders, and write nothing of their own.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundup.recipe.stages import load


@dataclass(frozen=True)
class Call:
    """One stage function with what it is called with."""

    function: str
    config: Any
    out: Path
    inputs: Mapping[str, Path]

    def run(self) -> None:
        load(self.function)(self.config, self.out, **self.inputs)


def follows() -> bool:
    """Whether this process is a rank other than the first."""
    return int(os.environ.get("RANK", "0")) > 0


def follow() -> None:
    """Run what the first rank calls for, until it dismisses the others."""
    while (call := _share(None)) is not None:
        call.run()
    _part()


def lead(call: Call) -> None:
    """Have all other ranks run `call` too."""
    _share(call)


def dismiss() -> None:
    """Let the other ranks end."""
    _share(None)
    _part()


def _part() -> None:
    """Leave the process group in order, so that no rank waits for one that is gone."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from groundup.train.parallel import leave_ranks

        leave_ranks()


def _share(call: Call | None) -> Call | None:
    """The first rank's call, on every rank; nothing happens where there is only one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return call
    from groundup.train.parallel import join_ranks

    shared: Call | None = join_ranks().share(call)
    return shared
