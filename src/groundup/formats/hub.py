"""Models of the Hugging Face hub: `hf:org/name` or `hf:org/name@revision`, downloaded when a user asks for one.

huggingface_hub finds them, signs in and transfers, and they go into the cache that it shares among programs. Two things
are done here because it leaves them undone: a file that was cut short goes on where it ended, in a later run too, and
none enters the cache whose hash is not the one that the hub tells. Of a repository only what a model needs is fetched:
settings, tokenizer and safetensors; no pickles, no code.
"""

import errno
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub.errors as hub_errors
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers, validate_repo_id  # type: ignore[attr-defined]

from groundup import __version__
from groundup.errors import UserError
from groundup.formats.folder import CONFIG, GENERATION, HUB_PREFIX, INDEX, SINGLE, TOKENIZER_FILES, read_index
from groundup.formats.huggingface import read_config
from groundup.record.metrics import Progress, format_amount, is_silent
from groundup.storage import write_atomically

SETTINGS = (CONFIG, GENERATION, "groundup.json", *TOKENIZER_FILES)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# The error under all others of the library that httpx has been called by; only this name for it is the same in each.
HTTPError: type[Exception] = hub_errors.HTTPError  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Model:
    """A model as the user names it: repository, and branch, tag or commit."""

    repository: str
    revision: str

    @property
    def cache(self) -> Path:
        """Its part of the shared cache: `blobs/` holds files under their hashes, `snapshots/COMMIT/` links to them
        under their names, `refs/` says at which commit a branch is."""
        return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.repository, repo_type="model")

    def __str__(self) -> str:
        return f"{HUB_PREFIX}{self.repository}{'' if self.revision == 'main' else f'@{self.revision}'}"


@dataclass(frozen=True)
class File:
    """A file of a repository. digest: SHA-256 of what is kept outside of git (LFS), else git's own SHA-1."""

    name: str
    size_bytes: int
    digest: str


def fetch(name: str) -> Path:
    """The local folder of `org/name` or `org/name@revision`, up to date if the hub can be asked.

    Raises UserError where there is no such model, no right to it, no safetensors in it, no room for it, or no hub to
    ask and no whole copy of an earlier day.
    """
    model = _parse(name)
    try:
        commit, files = _listing(model)
    except _NoAnswerError as error:
        folder = _cached(model)
        if folder is None:
            raise UserError(f"{model} is not in the cache, and {error}") from None
        if not is_silent():
            print(f"{model}: the cached copy is used, since {error}", file=sys.stderr)
        return folder
    try:
        return _take(model, commit, files)
    except _NoAnswerError as error:
        raise UserError(
            f"the download of {model} broke off, since {error}; the same again goes on from there"
        ) from None


def _take(model: Model, commit: str, files: Mapping[str, File]) -> Path:
    """The snapshot of a commit, with all that is missing of it downloaded."""
    folder = model.cache / "snapshots" / commit
    weights = next((one for one in (SINGLE, INDEX) if one in files), None)
    if CONFIG not in files or weights is None:
        lacking = CONFIG if CONFIG not in files else SINGLE
        raise UserError(f"{model} holds no {lacking}; groundup reads models whose weights are safetensors, no others")
    with _as_sentences(model):
        wanted = SETTINGS if weights == SINGLE else (*SETTINGS, INDEX)
        _download(model, commit, [files[one] for one in wanted if one in files], "settings")
        read_config(folder)  # a model that is not understood is refused before its weights are fetched
        shards = [SINGLE] if weights == SINGLE else sorted(set(read_index(folder).values()))
        if absent := [one for one in shards if one not in files]:
            raise UserError(f"{model} does not hold {absent[0]}, which its {INDEX} names")
        _download(model, commit, [files[one] for one in shards], "weights")
        if model.revision != commit:
            branch = model.cache / "refs" / model.revision
            branch.parent.mkdir(parents=True, exist_ok=True)
            with _lock(model, "refs"):
                write_atomically(branch, commit)
    return folder


class _NoAnswerError(Exception):
    """The hub was not to be had; the message says why, as the end of a sentence."""


def _parse(name: str) -> Model:
    repository, _, revision = name.partition("@")
    try:
        validate_repo_id(repository)
    except hub_errors.HFValidationError:
        raise UserError(f"`{HUB_PREFIX}{name}` names no model; write {HUB_PREFIX}organisation/model") from None
    if ".." in revision or not re.fullmatch(r"\w([\w./-]*\w)?", revision or "main", re.ASCII):
        raise UserError(f"`{revision}` names no revision; write a branch, a tag or a commit after the @")
    return Model(repository, revision or "main")


def _listing(model: Model) -> tuple[str, dict[str, File]]:
    """The commit that the revision is at, and its files by name."""
    files: dict[str, File] = {}
    with _as_sentences(model):
        try:
            found = HfApi(library_name="groundup", library_version=__version__).model_info(
                model.repository, revision=model.revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
            for one in found.siblings or []:
                digest = one.lfs.sha256 if one.lfs else one.blob_id
                # What is no hash could, as the name of a file, lead out of the cache.
                if digest and one.size is not None and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", digest):
                    files[one.rfilename] = File(one.rfilename, one.size, digest)
            if not re.fullmatch(r"[0-9a-f]{40}", found.sha or "") or (found.siblings and not files):
                raise ValueError("hashes are missing")
        except OSError:
            raise
        except (ValueError, TypeError, KeyError) as error:
            why = f"{type(error).__name__}: {error}"
            raise UserError(f"{constants.ENDPOINT} (HF_ENDPOINT) does not answer as a hub does: {why}") from None
    return str(found.sha), files


def _cached(model: Model) -> Path | None:
    """The folder that an earlier download of the whole revision has left, or None."""
    branch = model.cache / "refs" / model.revision
    commit = branch.read_text(encoding="utf-8").strip() if branch.is_file() else model.revision
    folder = model.cache / "snapshots" / commit
    if not (folder / CONFIG).is_file():
        return None
    if (folder / SINGLE).is_file():
        return folder
    is_whole = (folder / INDEX).is_file() and all((folder / one).is_file() for one in set(read_index(folder).values()))
    return folder if is_whole else None


def _download(model: Model, commit: str, files: Iterable[File], title: str) -> None:
    """Put those of the files into the snapshot that are not there yet."""
    missing = [file for file in files if not (model.cache / "snapshots" / commit / file.name).exists()]
    if not missing:
        return
    for folder in ("blobs", f"snapshots/{commit}"):
        (model.cache / folder).mkdir(parents=True, exist_ok=True)
    begun = sum(min(_bytes_of(_partial(model, file)), file.size_bytes) for file in missing)
    total = sum(file.size_bytes for file in missing)
    if large := [file.name for file in missing if file.size_bytes > constants.MAX_HTTP_DOWNLOAD_SIZE]:
        how = f"`hf download {model.repository}` puts it into the same cache"
        raise UserError(f"{large[0]} of {model} is too large for one transfer; {how}")
    free = shutil.disk_usage(model.cache).free
    if total - begun > free:
        raise UserError(
            f"{model} needs {format_amount(total - begun)}B more and {model.cache} has {format_amount(free)}B left; "
            "make room, or set HF_HOME to a folder on another disk"
        )
    with Progress(f"{model} {title}", total, "B", done=begun) as progress:
        for file in missing:
            _download_file(model, commit, file, progress)


def _download_file(model: Model, commit: str, file: File, progress: Progress) -> None:
    """One file into `blobs/`, once it is whole and its hash is right, and a link to it into the snapshot."""
    blob, link = model.cache / "blobs" / file.digest, model.cache / "snapshots" / commit / file.name
    with _lock(model, file.digest):
        if not blob.exists():
            _transfer(model, commit, file, progress)
            if _digest(_partial(model, file), file.digest) != file.digest:
                _partial(model, file).unlink()
                raise UserError(
                    f"{file.name} of {model} came with another hash than the hub tells and was thrown away; "
                    "run the same again to fetch it anew"
                )
            os.replace(_partial(model, file), blob)
        if not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))


def _transfer(model: Model, commit: str, file: File, progress: Progress) -> None:
    """Bring the partial file to its full size."""
    path = _partial(model, file)
    if _bytes_of(path) > file.size_bytes:
        path.unlink()
    headers = build_hf_headers(library_name="groundup", library_version=__version__)
    with open(path, "ab") as stream:
        http_get(
            hf_hub_url(model.repository, file.name, revision=commit, endpoint=constants.ENDPOINT),
            stream,
            resume_size=_bytes_of(path),
            # A part of a compressed answer is no part of the file.
            headers=headers | {"Accept-Encoding": "identity"},
            expected_size=file.size_bytes,
            tqdm_class=partial(_Bar, progress),  # type: ignore[arg-type]
        )


class _Bar:
    """As much of tqdm as the library needs to tell us how far it is."""

    def __init__(self, progress: Progress, **_: Any) -> None:
        self._progress = progress

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, amount: int) -> None:
        self._progress.advance(amount)


def _lock(model: Model, name: str) -> AbstractContextManager[object]:
    """One at a time, whichever program it is: for files this is the lock that the library itself takes."""
    folder = model.cache.parent / ".locks" / model.cache.name
    folder.mkdir(parents=True, exist_ok=True)
    return WeakFileLock(folder / f"{name}.lock")


def _partial(model: Model, file: File) -> Path:
    return model.cache / "blobs" / f"{file.digest}.incomplete"


def _bytes_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _digest(path: Path, like: str) -> str:
    """The file's hash of the same kind: SHA-256, or git's, which is the SHA-1 of a header and the content."""
    digest = hashlib.sha256() if len(like) == 64 else hashlib.sha1(usedforsecurity=False)
    if len(like) == 40:
        digest.update(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _as_sentences(model: Model) -> Iterator[None]:
    """Turns what the library raises into a UserError, or into `_NoAnswerError` where the hub was not to be had."""
    hub, sign_in = constants.ENDPOINT, "sign in with `hf auth login` or set HF_TOKEN"
    try:
        yield
    except hub_errors.GatedRepoError:
        terms = f"{hub}/{model.repository}"
        raise UserError(f"{model} is gated: accept its terms at {terms}, then {sign_in}") from None
    except hub_errors.RevisionNotFoundError:
        raise UserError(f"{model.repository} has no branch, tag or commit `{model.revision}` at {hub}") from None
    except hub_errors.RepositoryNotFoundError:
        raise UserError(f"{hub} has no model {model.repository} for you: check its name, or {sign_in}") from None
    except hub_errors.OfflineModeIsEnabled:
        raise _NoAnswerError("HF_HUB_OFFLINE forbids to ask the hub") from None
    except hub_errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(f"{hub} refuses {model} to you ({status}): {sign_in}") from None
        raise _NoAnswerError(f"{hub} answers with status {status}") from None
    except HTTPError as error:
        raise _NoAnswerError(f"{hub} cannot be reached ({type(error).__name__})") from None
    except OSError as error:
        if error.errno in FULL:
            place = "make room, or set HF_HOME to a folder on another disk; what has come is kept"
            raise UserError(f"the disk is full at {model.cache}: {place}") from None
        if error.errno is not None:
            raise
        raise _NoAnswerError(f"{hub} sent a file of another size than it tells") from None
