"""Raw documents, streamed from files, folders, globs and the running Python itself, always in the same order.

A file that the user named and that cannot be read as what its name says is a `UserError` with file and line:
a silent gap in a corpus is found months later, if ever.
"""

import glob
import gzip
import io
import itertools
import json
import lzma
import os
import sysconfig
import tokenize
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from groundup.corpus.config import CorpusConfig
from groundup.errors import UserError

Kind = Literal["python", "text"]

# Longer plain text files are cut into parts, at a blank line: one book is many documents to shuffle and to hold out.
PART_CHARS = 50_000

_OPENERS: dict[str, Callable[..., Any]] = {"": open, ".gz": gzip.open, ".xz": lzma.open}
_FORMATS = (".txt", ".md", ".py", ".jsonl", ".parquet")
_ACCEPTED = ".txt, .md, .py, .jsonl (each plain, .gz or .xz) or .parquet"

_STDLIB_LICENSE = "PSF-2.0"
# Tests are no example of good style; the topics are a source of their own.
_STDLIB_OMITTED = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data"})


@dataclass(frozen=True)
class Document:
    """One raw text and where it came from.

    source: the entry of `paths` it was found through. path: below that entry.
    group: documents of one group (a module, a file, a row) never part between train and held-out.
    read_bytes: bytes of the source file that were consumed to get it, compressed if the file is.
    problem: why the text could not be read, where that is no mistake of the user's; the text is then empty.
    """

    text: str
    source: str
    path: str
    group: str
    kind: Kind
    license: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    read_bytes: int = 0
    problem: str = ""


def read_documents(config: CorpusConfig) -> Iterator[Document]:
    """Every raw document of `config.paths`, entry by entry, files sorted by path.

    Raises UserError for an entry without text and for a file that is not what its name says.
    """
    for entry in config.paths:
        if entry == "python:stdlib":
            yield from _read_stdlib(_stdlib_folder())
        elif entry == "python:topics":
            yield from _read_topics()
        else:
            for path, relative in _find_files(entry):
                yield from _read_file(path, relative, entry, config.text_columns)


def source_bytes(config: CorpusConfig) -> int:
    """The size of all source files together: the total of every document's `read_bytes`, up to rounding."""
    return sum(path.stat().st_size for _, path in _all_files(config))


def source_fingerprint(config: CorpusConfig) -> str:
    """A hash (xxh3-128, hex) of the names and bytes of all source files: equal if the stage would read the same."""
    digest = xxhash.xxh3_128()
    for name, path in _all_files(config):
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _all_files(config: CorpusConfig) -> Iterator[tuple[str, Path]]:
    """(name independent of this machine, path) of each source file."""
    for entry in config.paths:
        if entry == "python:stdlib":
            yield from ((f"{entry}/{relative}", path) for path, relative in _stdlib_files(_stdlib_folder()))
        elif entry == "python:topics":
            yield entry, _topics_file()
        else:
            yield from ((f"{entry}/{relative}", path) for path, relative in _find_files(entry))


def _find_files(entry: str) -> list[tuple[Path, str]]:
    """(path, path below the entry) of the files that an entry names, sorted; hidden files are left out of folders."""
    root = Path(entry).expanduser()
    if root.is_file():
        _format_of(root)
        return [(root, root.name)]
    if root.is_dir():
        files = _walk(root, lambda name: name.startswith("."), lambda name: _is_accepted(Path(name)))
        if not files:
            raise UserError(f"{entry}: the folder holds no text; accepted are {_ACCEPTED}")
        return files
    matched = sorted(name for name in glob.glob(str(root), recursive=True) if Path(name).is_file())  # noqa: PTH207
    if not matched:
        raise UserError(
            f"{entry}: no such file or folder; `paths` takes files, folders, globs, python:stdlib or python:topics"
        )
    for name in matched:
        _format_of(Path(name))
    fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), root.parts))
    return [(Path(name), Path(name).relative_to(fixed).as_posix()) for name in matched]


def _walk(root: Path, is_omitted: Callable[[str], bool], is_wanted: Callable[[str], bool]) -> list[tuple[Path, str]]:
    """(path, path below `root`) of the wanted files, sorted; nothing below an omitted name is even listed."""
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not is_omitted(name)]
        below = Path(folder).relative_to(root).as_posix()
        prefix = "" if below == "." else f"{below}/"
        wanted = [name for name in names if is_wanted(name) and not is_omitted(name)]
        files += [(Path(folder, name), f"{prefix}{name}") for name in wanted]
    return sorted(files, key=lambda file: file[1])


def _is_accepted(path: Path) -> bool:
    bare = path.stem if path.suffix in (".gz", ".xz") else path.name
    return Path(bare).suffix in _FORMATS and (path.suffix not in (".gz", ".xz") or Path(bare).suffix != ".parquet")


def _format_of(path: Path) -> tuple[str, str]:
    """(format, compression) by the name: `.jsonl` and `.xz` for `a.jsonl.xz`."""
    if not _is_accepted(path):
        raise UserError(f"{path}: unknown kind of file; accepted are {_ACCEPTED}")
    compression = path.suffix if path.suffix in (".gz", ".xz") else ""
    return Path(path.stem).suffix if compression else path.suffix, compression


def _read_file(path: Path, relative: str, entry: str, text_columns: Sequence[str]) -> Iterator[Document]:
    format, compression = _format_of(path)
    if format == ".parquet":
        yield from _read_parquet(path, relative, entry, text_columns)
    elif format == ".jsonl":
        yield from _read_jsonl(path, relative, entry, text_columns, compression)
    elif format == ".py":
        yield _read_python(path, relative, entry, compression)
    else:
        yield from _read_text(path, relative, entry, compression)


def _read_text(path: Path, relative: str, entry: str, compression: str) -> Iterator[Document]:
    text = _decode(_read_bytes(path, compression), path)
    parts = _cut_into_parts(text)
    read_bytes = _shares(path.stat().st_size, len(parts))
    for index, part in enumerate(parts):
        meta = {"part": index + 1} if len(parts) > 1 else {}
        yield Document(part, entry, relative, relative, "text", meta=meta, read_bytes=read_bytes[index])


def _cut_into_parts(text: str) -> list[str]:
    """Parts of about PART_CHARS, cut at the last blank line, else at the last line end, before that length."""
    parts = []
    start = 0
    while len(text) - start > 2 * PART_CHARS:
        limit = start + PART_CHARS
        # rfind gives -1 where there is none; a text without line ends has no better place than any.
        end = text.rfind("\n\n", start, limit) + 2
        if end <= start + 1:
            end = text.rfind("\n", start, limit) + 1 or limit
        parts.append(text[start:end])
        start = end
    parts.append(text[start:])
    return parts


def _read_python(path: Path, relative: str, entry: str, compression: str) -> Document:
    raw = _read_bytes(path, compression)
    try:
        text = _decode_python(raw)
    except (UnicodeDecodeError, LookupError, SyntaxError) as error:
        raise UserError(
            f"{path}: not readable in the encoding it declares ({error}); expected UTF-8 or a `coding:` line that holds"
        ) from None
    package = path.parent.joinpath("__init__.py").is_file()
    group = Path(relative).parent.as_posix() if package else relative
    return Document(text, entry, relative, group, "python", read_bytes=path.stat().st_size)


def _read_jsonl(
    path: Path, relative: str, entry: str, text_columns: Sequence[str], compression: str
) -> Iterator[Document]:
    consumed = 0
    with open(path, "rb") as raw:
        stream = _OPENERS[compression](raw, "rb") if compression else raw
        for number, line in enumerate(_lines(stream, path), start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except UnicodeDecodeError as error:
                raise UserError(f"{where}: not UTF-8 (byte {error.start} of the line)") from None
            except json.JSONDecodeError as error:
                raise UserError(f"{where}: not a JSON value ({error.msg}, column {error.colno})") from None
            if not isinstance(row, dict):
                raise UserError(f"{where}: expected a JSON object with the key `{text_columns[0]}`, found {_kind(row)}")
            # The raw file is read ahead in blocks, so a row counts for what was read since the one before.
            position = raw.tell()
            yield _row_document(row, text_columns, where, relative, entry, number, position - consumed)
            consumed = position


def _lines(stream: IO[bytes], path: Path) -> Iterator[bytes]:
    try:
        yield from stream
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: the compressed file is damaged or cut short ({error})") from None


def _read_parquet(path: Path, relative: str, entry: str, text_columns: Sequence[str]) -> Iterator[Document]:
    try:
        file = pq.ParquetFile(path)
        columns = file.schema_arrow.names
        _text_column(columns, text_columns, str(path))
        read_bytes = _shares(path.stat().st_size, file.metadata.num_rows)
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                where = f"{path}, row {number}"
                yield _row_document(row, text_columns, where, relative, entry, number, read_bytes[number - 1])
    except (pa.ArrowInvalid, pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"{path}: no whole Parquet file, perhaps cut short ({reason})") from None


def _text_column(names: Collection[str], text_columns: Sequence[str], where: str) -> str:
    """The first of `text_columns` among the names of a row's columns."""
    for name in text_columns:
        if name in names:
            return name
    wanted = " or ".join(f"`{name}`" for name in text_columns)
    raise UserError(
        f"{where}: no {wanted}; it has {', '.join(names)}: add the one that holds its text to `text_columns`, of which "
        "the first that a row has is read"
    )


def _row_document(
    row: dict[str, Any],
    text_columns: Sequence[str],
    where: str,
    relative: str,
    entry: str,
    number: int,
    read_bytes: int,
) -> Document:
    text_column = _text_column(row, text_columns, where)
    text = row[text_column]
    if isinstance(text, list) and all(isinstance(paragraph, str) for paragraph in text):
        text = "\n\n".join(text)
    if not isinstance(text, str):
        raise UserError(f"{where}: `{text_column}` must be a string or a list of strings, not {_kind(text)}")
    license = row.get("license") or row.get("licence") or ""
    meta = {
        key: value
        for key, value in row.items()
        if key not in (text_column, "license", "licence") and isinstance(value, str | int | float | bool)
    }
    # A row that names a Python file is that file; its own path says which module it is.
    inner = row.get("path")
    is_python = isinstance(inner, str) and inner.endswith(".py")
    return Document(
        text,
        entry,
        str(inner) if is_python else relative,
        f"{relative}:{number}",
        "python" if is_python else "text",
        license if isinstance(license, str) else "",
        {"row": number, **meta},
        read_bytes,
    )


def _stdlib_folder() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _stdlib_files(root: Path) -> list[tuple[Path, str]]:
    def is_omitted(name: str) -> bool:
        # Build variables tell of this machine, not of Python.
        return name in _STDLIB_OMITTED or name.startswith(("_sysconfigdata", "config-"))

    return _walk(root, is_omitted, lambda name: name.endswith(".py"))


def _read_stdlib(root: Path) -> Iterator[Document]:
    """The modules of the standard library; one that is not in its declared encoding is a document with a problem."""
    for path, relative in _stdlib_files(root):
        raw = path.read_bytes()
        text, problem = "", ""
        try:
            text = _decode_python(raw)
        except (UnicodeDecodeError, LookupError, SyntaxError):
            problem = "not in its declared encoding"
        yield Document(
            text,
            "python:stdlib",
            relative,
            _module_group(relative),
            "python",
            _STDLIB_LICENSE,
            read_bytes=len(raw),
            problem=problem,
        )


def _module_group(relative: str) -> str:
    """The top-level module without its private mark: `_pydecimal` says the same as `decimal`."""
    name = relative.split("/")[0].removesuffix(".py")
    return name.removeprefix("_py").strip("_") or name


def _topics_file() -> Path:
    return _stdlib_folder() / "pydoc_data" / "topics.py"


def _read_topics() -> Iterator[Document]:
    from pydoc_data.topics import topics

    read_bytes = _shares(_topics_file().stat().st_size, len(topics))
    for index, (name, text) in enumerate(sorted(topics.items())):
        yield Document(
            text,
            "python:topics",
            name,
            # The topics quote each other at length: they are chapters of one book.
            "language reference",
            "text",
            _STDLIB_LICENSE,
            read_bytes=read_bytes[index],
        )


def _read_bytes(path: Path, compression: str) -> bytes:
    try:
        with _OPENERS[compression](path, "rb") as file:
            content: bytes = file.read()
            return content
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: the compressed file is damaged or cut short ({error})") from None


def _decode(raw: bytes, path: Path) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: not UTF-8 (byte 0x{raw[error.start]:02x}); convert it, "
            f"for example with `iconv -f LATIN1 -t UTF-8`"
        ) from None


def _decode_python(raw: bytes) -> str:
    """Source in the encoding of its byte order mark or `coding:` line (PEP 263), UTF-8 without one."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
    return raw.decode(encoding)


def _shares(total: int, count: int) -> list[int]:
    """`total` cut into `count` whole numbers that differ by one at most."""
    return [total * (index + 1) // count - total * index // count for index in range(count)]


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return {str: "a string", list: "a list", dict: "an object", bool: "true or false"}.get(type(value), "a number")
