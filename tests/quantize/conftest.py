"""What tests of the quantized models share."""

import shutil

import pytest

from groundup.engine.kernels import library


@pytest.fixture
def compiled_kernels() -> None:
    """Skips where nothing could be compiled; with a compiler, missing kernels are a defect."""
    if library.path() is None and shutil.which("g++") is None:
        pytest.skip("the kernels were not compiled: there is no C++ compiler")
