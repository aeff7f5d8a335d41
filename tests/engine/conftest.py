"""Every set of instructions that this machine has, for the tests of the kernels."""

import shutil
from collections.abc import Iterator

import pytest

from groundup.engine.kernels import library
from groundup.errors import UserError


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
