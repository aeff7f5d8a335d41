"""The ledger: one line per finished artefact, saying by hash what it was made from, chained so that no line can change.

`runs/NAME/ledger.jsonl` is append-only. Each record holds the id of the one before it, and its own id is the SHA-256
of everything else in it: to alter a line unseen one would have to alter all later ones. Nothing in a record depends on
the clock, so two equal runs have equal ledgers, bit for bit. What a stage cost lies in its folder's `cost.json`.
"""

import fcntl
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

from groundup.errors import UserError
from groundup.storage import hash_file, hash_value

_PACKAGE = Path(__file__).parents[1]
_FIRST_PREVIOUS = ""


@dataclass(frozen=True)
class Record:
    """One finished artefact.

    index: position in the ledger, from 0. id: SHA-256 of all other fields. previous: id of the record before, or "".
    key: what `stage_key` says of stage, config, code and inputs; an equal key means the stage need not run again.
    inputs: {name: id of the record that made it}. content: {file within the artefact: SHA-256}.
    """

    index: int
    id: str
    previous: str
    stage: str
    key: str
    inputs: dict[str, str]
    config: dict[str, Any]
    code: str
    content: dict[str, str]

    @property
    def content_hash(self) -> str:
        """One SHA-256 for all files of the artefact: equal where two runs of a stage made the same."""
        return hash_value(self.content)

    def expected_id(self) -> str:
        """The id that the other fields give."""
        return hash_value({name: value for name, value in asdict(self).items() if name != "id"})


def stage_key(stage: str, config_table: Mapping[str, Any], code_hash: str, inputs: Mapping[str, str]) -> str:
    """What decides the outcome of a stage, as one SHA-256.

    inputs: {name: hash}. With the inputs' `content_hash`, an upstream stage that ran again and made the same bytes
    leaves this key, and so this stage, alone.
    """
    return hash_value({"stage": stage, "config": dict(config_table), "code": code_hash, "inputs": dict(inputs)})


def code_version(rooms: Sequence[str]) -> str:
    """SHA-256, hex, over the source files of rooms such as `corpus`. Raises ValueError for a room there is not."""
    hashes = {}
    for room in rooms:
        files = _source_files(room)
        if not files:
            raise ValueError(f"no room `{room}` in {_PACKAGE}")
        hashes.update({path.relative_to(_PACKAGE).as_posix(): hash_file(path) for path in files})
    return hash_value(hashes)


def _source_files(room: str) -> list[Path]:
    single = _PACKAGE / f"{room}.py"
    if single.is_file():
        return [single]
    return [path for path in sorted((_PACKAGE / room).rglob("*")) if path.is_file() and path.suffix != ".pyc"]


class Ledger:
    """The records of one run.

    Raises UserError, naming the line, if the file holds a line that is no record. A torn *last* line is no error: it is
    what a kill or a full disk leaves, it was never a record, and the next `append` drops it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records, _ = _parse(path, path.read_bytes() if path.exists() else b"")

    @property
    def records(self) -> tuple[Record, ...]:
        return tuple(self._records)

    def append(
        self,
        stage: str,
        key: str,
        inputs: Mapping[str, str],
        config: Mapping[str, Any],
        code: str,
        content: Mapping[str, str],
    ) -> Record:
        """Add a record and return it once it is on the disk.

        Raises UserError if the chain is broken already: nothing is built on a ledger that was tampered with.
        An OSError (a full disk) leaves the file as it was.
        """
        with _locked(self.path) as file:
            # Another process may have added lines since this one read them.
            self._records, whole_bytes = _parse(self.path, file.read())
            self.verify()
            unsigned = Record(
                index=len(self._records),
                id="",
                previous=self._records[-1].id if self._records else _FIRST_PREVIOUS,
                stage=stage,
                key=key,
                inputs=dict(inputs),
                config=dict(config),
                code=code,
                content=dict(content),
            )
            record = Record(**{**asdict(unsigned), "id": unsigned.expected_id()})
            _write_line(file, whole_bytes, record)
            self._records.append(record)
        return record

    def find(self, stage: str, key: str) -> Record | None:
        """The latest record of this stage with this key, or None if it never ran so."""
        return next((record for record in reversed(self._records) if (record.stage, record.key) == (stage, key)), None)

    def get(self, id_prefix: str) -> Record:
        """The record whose id starts so. Raises UserError if there is none or more than one."""
        matches = [record for record in self._records if record.id.startswith(id_prefix)]
        if len(matches) == 1:
            return matches[0]
        known = ", ".join(f"{record.id[:12]} ({record.stage})" for record in matches or self._records)
        if not matches:
            raise UserError(f"{self.path}: no record `{id_prefix}`; the ledger holds {known or 'nothing yet'}")
        raise UserError(f"{self.path}: `{id_prefix}` could mean {known}: give more of the id")

    def ancestry(self, id_prefix: str) -> list[Record]:
        """The record and all it was made from, directly or not, oldest first.

        Inputs that this ledger does not know (a model brought from elsewhere) end their branch.
        """
        by_id = {record.id: record for record in self._records}
        reached, frontier = set(), [self.get(id_prefix).id]
        while frontier:
            record = by_id.get(frontier.pop())
            if record is not None and record.id not in reached:
                reached.add(record.id)
                frontier.extend(record.inputs.values())
        return [record for record in self._records if record.id in reached]

    def verify(self) -> None:
        """Walk the chain. Raises UserError naming the first line that was altered, removed or moved."""
        previous = _FIRST_PREVIOUS
        for number, record in enumerate(self._records, start=1):
            where = f"{self.path}, line {number}"
            if record.id != record.expected_id():
                raise UserError(f"{where}: the record was altered, its id does not fit its content")
            if record.previous != previous or record.index != number - 1:
                raise UserError(f"{where}: the chain is broken, a record before this one was removed, added or moved")
            previous = record.id


def _parse(path: Path, data: bytes) -> tuple[list[Record], int]:
    """The records of a ledger file and the number of bytes they fill; what lies behind is a torn line."""
    records: list[Record] = []
    whole_bytes = 0
    for number, line in enumerate(io.BytesIO(data), start=1):
        try:
            record = _read_record(line)
        except ValueError as error:
            if not line.endswith(b"\n"):
                break
            raise UserError(f"{path}, line {number}: not a ledger record ({error})") from None
        if not line.endswith(b"\n") and record.id != record.expected_id():
            break
        records.append(record)
        whole_bytes += len(line)
    return records, whole_bytes


def _read_record(line: bytes) -> Record:
    """Raises ValueError for anything that is no record: json and unicode errors are ValueErrors too."""
    values = json.loads(line)
    names = [field.name for field in fields(Record)]
    if not isinstance(values, dict) or sorted(values) != sorted(names):
        raise ValueError(f"its keys must be {', '.join(names)}")
    return Record(**values)


def _write_line(file: IO[bytes], whole_bytes: int, record: Record) -> None:
    """Write the record behind the whole lines, over a torn one, and wait until the disk has it."""
    file.truncate(whole_bytes)
    file.seek(whole_bytes)
    # A last line that is whole but for its end (an editor took the newline) is completed, not lost.
    needs_newline = whole_bytes > 0 and os.pread(file.fileno(), 1, whole_bytes - 1) != b"\n"
    line = json.dumps(asdict(record), ensure_ascii=False) + "\n"
    left = memoryview(("\n" + line if needs_newline else line).encode("utf-8"))
    try:
        while left:
            # A disk that fills up takes a part first and refuses the rest at the next call.
            left = left[file.write(left) :]
        os.fsync(file.fileno())
    except OSError:
        file.truncate(whole_bytes)
        raise


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """The file open for reading and writing, made if absent, for this process alone."""
    path.touch()
    # Unbuffered: what a failed write left behind in a buffer must not follow when the file is closed.
    with open(path, "r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
