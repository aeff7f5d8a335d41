"""Where verbs write, looked at before anything is computed."""

from pathlib import Path

from groundup.errors import UserError


def require_place_for(path: Path) -> None:
    """Raises UserError where no file can have this name: its folder is missing, or it is a folder itself."""
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: there is no such folder to write into")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file to write")
