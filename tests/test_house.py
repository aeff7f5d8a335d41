"""The house: what a command loads before it works, and which code decides the outcome of a stage.

Floors, lint, format and types are checked by `make test` itself (lint-imports, ruff, mypy).
"""

import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

from groundup.recipe.stages import STAGES, Stage

# Rooms that report, measure or store what others compute. A change there runs no stage again.
BOOKKEEPING = {"errors", "settings", "storage", "hardware", "record", "groundup"}
HEAVY = (
    "torch",
    "numpy",
    "pyarrow",
    "rich",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "jinja2",
    "shtab",
)


@pytest.mark.parametrize("arguments", [None, ["--help"], ["run", "--help"], ["pretrain", "--help"], ["run"]])
def test_start_loads_no_heavy_library(arguments: list[str] | None):
    program = f"""
import atexit, sys
atexit.register(lambda: print("LOADED", *sorted(set({HEAVY!r}) & set(sys.modules))))
import groundup
if {arguments!r}:
    from groundup.cli import main
    main({arguments!r})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["LOADED"], done.stdout[-200:] + done.stderr[-2000:]


def test_an_engine_starts_without_what_only_others_need():
    """PyTorch takes most of a start; nothing of ours beside it that writes no text."""
    unneeded = {"pyarrow", "rich", "transformers", "huggingface_hub", "jinja2", "pydantic", "llguidance"}
    program = f"import sys, groundup; groundup.Engine; print(*sorted({unneeded!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def _rooms_reached(module: str, graph: grimp.ImportGraph) -> set[str]:
    """The rooms whose code runs when this module does, directly or not."""
    modules = {module} | graph.find_upstream_modules(module)
    return {[*name.split("."), "groundup"][1] for name in modules}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("groundup")


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_names_every_room_whose_code_decides_its_outcome(stage: Stage, graph: grimp.ImportGraph):
    reached = _rooms_reached(stage.function.partition(":")[0], graph)
    assert reached - BOOKKEEPING == set(stage.rooms)


def test_no_file_is_named_for_a_lack_of_ideas():
    source = Path(__file__).parents[1] / "src"
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
    assert not [path for path in source.rglob("*.py") if path.stem in vague]


def test_every_source_of_the_kernels_is_packed_and_compiled_anew_when_it_changes():
    """Where a file is missing, kernels that are installed from the source distribution are not compiled, silently."""
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    (kernels,) = project["tool"]["setuptools"]["ext-modules"]
    folder = root / "src/groundup/engine/kernels"
    files = {str(path.relative_to(root)) for pattern in ("*.cpp", "*.h") for path in folder.glob(pattern)}
    assert {*kernels["sources"], *kernels["depends"]} == files


def test_the_map_names_every_file_of_the_engine():
    root = Path(__file__).parents[1]
    text = (root / "docs/architecture.md").read_text(encoding="utf-8")
    files = [path.name for path in (root / "src/groundup/engine").glob("*.py") if path.name != "__init__.py"]
    assert [name for name in files if f"`{name}`" not in text] == []
