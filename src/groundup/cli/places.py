"""Where verbs write, looked at before anything is computed."""

from pathlib import Path

from groundup.errors import UserError
from groundup.storage import require_place


def require_place_for(path: Path) -> None:
    """Raises UserError where no file can be written, and where it would replace what is none, such as /dev/null."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file to write")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is a device or a pipe, which the file would replace; name a file to write")
    require_place(path)
