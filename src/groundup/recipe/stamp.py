"""The stamp in a stage's folder: what the folder was made from, and what a whole one holds.

A working folder is stamped when work begins and once more, with its content, when work is done. So after a kill at any
moment one look tells what is there: nothing, work to go on with, or a finished result to move in place and record.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from groundup.storage import flush_folder, hash_folder, hash_value, write_json

# Hidden, so it is no part of the content that it describes.
_FILE = ".stage.json"


@dataclass(frozen=True)
class Stamp:
    """All that the ledger will say of a folder, and the sizes of its files.

    key, stage, inputs, config, code, content: as in `record.ledger.Record`.
    content: {file: SHA-256} and sizes: {file: bytes}, None until the work is done.
    """

    key: str
    stage: str
    inputs: Mapping[str, str]
    config: Mapping[str, Any]
    code: str
    content: dict[str, str] | None = None
    sizes: dict[str, int] | None = None

    @property
    def content_hash(self) -> str:
        """One hash for all files; equal where two runs of a stage made the same."""
        return hash_value(self.content or {})

    def is_whole(self, folder: Path) -> bool:
        """Whether the work is done and every file is there in its size.

        That is cheap, and enough to notice what was deleted or cut short. Bytes changed in place are found by
        `groundup ledger verify`, which hashes everything anew.
        """
        if self.sizes is None:
            return False
        paths = ((folder / name, size) for name, size in self.sizes.items())
        return all(path.is_file() and path.stat().st_size == size for path, size in paths)


def read_stamp(folder: Path) -> Stamp | None:
    """The stamp of a folder; None where there is no folder or no stage made it."""
    path = folder / _FILE
    return Stamp(**json.loads(path.read_bytes())) if path.exists() else None


def write_stamp(folder: Path, stamp: Stamp) -> None:
    """As JSON, whole or not at all."""
    write_json(folder / _FILE, asdict(stamp))


def finish_stamp(folder: Path, stamp: Stamp) -> Stamp:
    """Say that the work is done, and what it made. Reads every file once, after the disk has it."""
    flush_folder(folder)
    content = hash_folder(folder)
    finished = replace(stamp, content=content, sizes={name: (folder / name).stat().st_size for name in content})
    write_stamp(folder, finished)
    return finished
