"""Which exceptions are a mistake or a misfortune of the user's, and the one sentence that says so."""

import errno
import os
from collections.abc import Iterator

from groundup.errors import UserError

# errno → what to say. A file size limit (`ulimit -f`) is told apart from a full disk, since its cure is another.
_OUT_OF_SPACE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would grow past this system's size limit (`ulimit -f`)",
}
# The same of a path that will not do.
_NO_PLACE = {errno.EROFS: "lies on a disk that is read-only", errno.ENAMETOOLONG: "is too long a name"}


def explain(error: BaseException) -> str | None:
    """One sentence for what the user can mend; None for a defect, which is shown with its traceback."""
    if isinstance(error, UserError):
        return str(error)
    for cause in _chain(error):
        for number, what in _OUT_OF_SPACE.items():
            if _says(cause, number):
                return (
                    f"{what}{_where(cause)}: nothing half-written was kept as whole; make room and run the same again"
                )
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("groundup"):
        return f"the Python package `{error.name}` is missing: `pip install groundup` brings all that a run needs"
    if isinstance(error, PermissionError):
        return f"no permission to use {error.filename}: choose another folder or change its permissions"
    if isinstance(error, OSError) and error.errno in _NO_PLACE:
        return f"{error.filename} {_NO_PLACE[error.errno]}: choose another"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, and so on."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _says(error: BaseException, number: int) -> bool:
    if isinstance(error, OSError):
        return error.errno == number
    # Libraries written in Rust (tokenizers, safetensors) pass the system's error on as text.
    return f"(os error {number})" in str(error) or os.strerror(number) in str(error)


def _where(error: BaseException) -> str:
    filename = error.filename if isinstance(error, OSError) else None
    return f" at {os.fsdecode(filename)}" if filename else ""
