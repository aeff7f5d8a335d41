"""The compiled kernels: where they lie, which instructions they use, and on how many threads.

Installing groundup compiles `kernels.cpp` beside this file where there is a C++ compiler. ctypes lets go of Python's
lock for the length of every call.
"""

import ctypes
import functools
import os
from collections.abc import Callable
from ctypes import POINTER, c_int
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

from groundup.engine.kernels.jobs import FUNCTIONS
from groundup.errors import UserError
from groundup.hardware import Finding

# Sets of instructions by the numbers that the library gives them, each larger than the one before.
LEVELS = ("portable", "avx2", "avx512", "avx512_bf16", "amx")
# Names one of them that is to be used instead of the largest.
LEVEL_VARIABLE = "GROUNDUP_KERNELS"


def path() -> Path | None:
    """Where the compiled kernels lie, or None if they were not compiled."""
    candidates = [Path(__file__).with_name(f"_kernels{suffix}") for suffix in EXTENSION_SUFFIXES]
    return next((each for each in candidates if each.exists()), None)


@functools.cache
def load() -> ctypes.CDLL:
    """The library, on as many threads as torch uses.

    Raises UserError if there is none, or if the environment asks for instructions that this machine does not have.
    """
    found = path()
    if found is None:
        raise UserError(
            "the engine's kernels were not compiled when groundup was installed: install a C++ compiler "
            "(`apt install g++` or likewise), then groundup again"
        )
    library = ctypes.CDLL(str(found))
    for name, job in FUNCTIONS.items():
        function = getattr(library, f"groundup_{name}")
        function.argtypes, function.restype = [POINTER(job)], None
    library.groundup_set_threads.argtypes, library.groundup_set_threads.restype = [c_int], None
    library.groundup_set_level.argtypes = [c_int]
    library.groundup_set_threads(torch.get_num_threads())
    wanted = os.environ.get(LEVEL_VARIABLE)
    if wanted is not None:
        _choose(library, wanted, f"{LEVEL_VARIABLE}={wanted}")
    return library


def call(name: str, job: ctypes.Structure) -> None:
    """Run one of the library's functions on its job."""
    _function(name)(job)


@functools.cache
def _function(name: str) -> Callable[[ctypes.Structure], None]:
    found: Callable[[ctypes.Structure], None] = getattr(load(), f"groundup_{name}")
    return found


def level() -> str:
    """The set of instructions in use, one of LEVELS."""
    return LEVELS[load().groundup_level()]


def set_level(name: str) -> None:
    """Use other instructions. Raises UserError if this machine does not have them. Not while other calls run."""
    _choose(load(), name, f"level {name!r}")


def _choose(library: ctypes.CDLL, name: str, asked: str) -> None:
    if name not in LEVELS:
        raise UserError(f"{asked} is no set of instructions that the kernels know: choose among {', '.join(LEVELS)}")
    if not library.groundup_set_level(LEVELS.index(name)):
        raise UserError(f"{asked} cannot run on this machine, which lacks its instructions")


def set_threads(count: int) -> None:
    """Use so many threads, the calling one included. No result depends on it. Not while other calls run."""
    if count < 1:
        raise ValueError(f"the kernels need at least 1 thread, not {count}")
    load().groundup_set_threads(count)


def finding() -> Finding:
    """What `groundup doctor` says about the kernels."""
    if path() is None:
        advice = "install a C++ compiler (`apt install g++` or likewise), then groundup again"
        return Finding("missing", "kernels", f"not compiled, so models run on PyTorch's operators: {advice}.")
    if LEVELS.index(level()) >= LEVELS.index("avx512"):
        return Finding("good", "kernels", f"compiled; they use {level()}.")
    return Finding("slow", "kernels", f"compiled; they use {level()}, a processor with AVX-512 VNNI is faster.")
