"""Files that are either whole or absent: atomic writes, working folders, content hashes.

A stage writes into a *working folder* beside its final place; only a finished one is renamed there.
Nothing that reads artefacts ever looks into a working folder, so a kill, a full disk or Ctrl-C leaves no half artefact.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from groundup.errors import UserError

# Files that say how a run went rather than what it made: two equal runs differ in them, so they are no content.
MEASURED_FILES = frozenset({"cost.json", "measured.json", "timings.jsonl", "groundup.json"})


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write `data` so that `path` holds either its old content or all of the new one, also after a power cut."""
    with open_atomically(path) as file:
        file.write(data.encode("utf-8") if isinstance(data, str) else data)


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to write into that becomes `path` when all went well, and is gone otherwise."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def require_place(path: Path) -> None:
    """Raises UserError where no file or folder can come to be under this name: seen before hours of work, not after.

    It is tried, since rights do not tell it: some file systems (/proc) take nothing from anybody.
    """
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: there is no such folder to write into")
    try:
        # As long a name as that under which the result is written at first.
        with TemporaryDirectory(prefix=f".{path.name}", dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another place") from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with a final newline, atomically."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def working_folder(out: Path) -> Path:
    """The folder in which a stage writes before its result is renamed to `out`."""
    return out.with_name(f".{out.name}.partial")


def finish_folder(working: Path, out: Path) -> None:
    """Rename a finished working folder to `out`; an older result there is replaced as a whole."""
    replaced = out.with_name(f".{out.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if out.exists():
        os.replace(out, replaced)
    os.replace(working, out)
    shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def staged(folder: Path, replaces: Sequence[str] = ()) -> Iterator[Path]:
    """An empty folder to write into, on the same disk; at the end its files move to `folder`, beside what lies there.

    A folder that was not there appears as a whole. After an error nothing was moved, and the empty folder is gone.
    replaces: patterns of older files of `folder`, which go when their successors come.
    """
    existed = folder.exists()
    working = folder / ".groundup.partial" if existed else working_folder(folder)
    shutil.rmtree(working, ignore_errors=True)
    try:
        working.mkdir(parents=True)
        yield working
        flush_folder(working)
        if existed:
            for path in [path for pattern in replaces for path in folder.glob(pattern)]:
                path.unlink()
            for path in sorted(working.iterdir()):
                os.replace(path, folder / path.name)
            working.rmdir()
        else:
            os.replace(working, folder)
    except BaseException:
        shutil.rmtree(working, ignore_errors=True)
        raise


def flush_folder(folder: Path) -> None:
    """Wait until the disk has everything in the folder: what is said to be whole must be so after a power cut too."""
    for path in [folder, *folder.rglob("*")]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hex; the same as `sha256sum` prints."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that belongs to a folder's content: {relative path: hex}, sorted.

    Hidden entries (working files) and `MEASURED_FILES` are no content.
    """
    return {
        str(path.relative_to(folder)): hash_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name not in MEASURED_FILES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def hash_value(value: Mapping[str, Any] | list[Any] | str) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces), hex."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()
