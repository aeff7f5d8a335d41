"""Every set of instructions that this machine has, for the tests of the kernels; adapters of a test file's model."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from adapted import BOTH, merged_with, write_adapter

from groundup.engine.kernels import library
from groundup.errors import UserError
from groundup.model.language_model import LanguageModel


@pytest.fixture(scope="session")
def compiled() -> None:
    """Skips where nothing could be compiled; with a compiler, missing kernels are a defect."""
    if library.path() is None and shutil.which("g++") is None:
        pytest.skip("the kernels were not compiled: there is no C++ compiler")


@pytest.fixture(params=library.LEVELS)
def level(request: pytest.FixtureRequest, compiled: None) -> Iterator[str]:
    """The kernels use this set of instructions for one test."""
    before = library.level()
    try:
        library.set_level(request.param)
    except UserError as error:
        pytest.skip(str(error))
    yield request.param
    library.set_level(before)


@pytest.fixture
def threads(compiled: None) -> Iterator[None]:
    """A test may set the number of threads."""
    yield
    library.set_threads(1)


@pytest.fixture(scope="module")
def folders(model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters for `model`, which each file that asks for them defines."""
    root = tmp_path_factory.mktemp("adapters")
    return {kind: write_adapter(root / kind, model, kind) for kind in BOTH}


@pytest.fixture(scope="module")
def merged(model: LanguageModel, folders: dict[str, Path]) -> dict[str | None, LanguageModel]:
    """What each adapter should make of the model."""
    return {None: model} | {kind: merged_with(model, folders[kind], kind) for kind in BOTH}
