"""A hub in small, on this machine: the endpoints that huggingface_hub uses, for one repository, and its misfortunes."""

import hashlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

REPOSITORY = "org/tiny"
COMMIT = hashlib.sha1(b"the only commit").hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class SmallHub(ThreadingHTTPServer):
    """Serves `files` (name → content) as one commit; safetensors lie in LFS, on a server of another origin.

    requests: (method, path, Range, Authorization) of each.
    transferred: names of the files whose content was asked for, in order.
    refusal: status and X-Error-Code with which everything is refused, or None.
    broken: file → after how many bytes of an answer the connection breaks; each of these happens once.
    failing: files that are answered with status 500.
    damaged: file → what is sent instead of its content.
    ignores_ranges: sends whole files whatever part was asked for.
    """

    daemon_threads = True

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = dict(files)
        self.requests: list[tuple[str, str, str | None, str | None]] = []
        self.transferred: list[str] = []
        self.refusal: tuple[int, str] | None = None
        self.broken: dict[str, list[int]] = {}
        self.failing: set[str] = set()
        self.damaged: dict[str, bytes] = {}
        self.ignores_ranges = False
        self.listing: Any = None
        self.storage = ThreadingHTTPServer(("127.0.0.1", 0), _Storage)
        self.storage.daemon_threads = True
        self.storage.hub = self  # type: ignore[attr-defined]

    def __enter__(self) -> "SmallHub":
        for server in (self, self.storage):
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in (self, self.storage):
            server.shutdown()
            server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def information(self) -> dict[str, Any]:
        """What `/api/models` tells."""
        siblings = [
            {"rfilename": name, "size": len(content), "blobId": git_sha1(content)}
            | ({"lfs": {"sha256": sha256(content), "size": len(content), "pointerSize": 134}} if in_lfs(name) else {})
            for name, content in self.files.items()
        ]
        return {"_id": "0", "id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "siblings": siblings}

    def tree(self) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": name, "size": len(content), "oid": git_sha1(content)}
            | ({"lfs": {"oid": sha256(content), "size": len(content), "pointerSize": 134}} if in_lfs(name) else {})
            for name, content in self.files.items()
        ]


def in_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


class _Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", headers.pop("length", None) or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer_file(self, hub: SmallHub, name: str, **headers: str) -> None:
        """The file, or the part that is asked for; only the beginning of it if the connection is to break."""
        if self.command != "HEAD":
            hub.transferred.append(name)
        if name in hub.failing:
            return self.answer(500)
        content, status = hub.damaged.get(name, hub.files[name]), 200
        part = self.headers.get("Range")
        if part and not hub.ignores_ranges:
            start = int(part.removeprefix("bytes=").removesuffix("-"))
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content, status = content[start:], 206
        if self.command != "HEAD" and hub.broken.get(name):
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: hub.broken[name].pop(0)])
            self.wfile.flush()
            self.close_connection = True
            return None
        return self.answer(status, content, **headers)


class _Handler(_Answering):
    server: SmallHub

    def do_GET(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, self.headers.get("Range"), self.headers.get("Authorization")))
        if hub.refusal is not None:
            status, code = hub.refusal
            return self.answer(status, **({"X_Error_Code": code} if code else {}))
        if hub.listing is not None and path.startswith("/api/"):
            return self.answer(200, hub.listing, Content_Type="application/json")
        if path == f"/api/models/{REPOSITORY}/tree/{COMMIT}":
            return self.answer(200, json.dumps(hub.tree()).encode(), Content_Type="application/json")
        revisions = ("main", "refs/pr/1", COMMIT)
        if path in [f"/api/models/{REPOSITORY}/revision/{one}" for one in revisions]:
            return self.answer(200, json.dumps(hub.information()).encode(), Content_Type="application/json")
        for revision in revisions:
            name = path.removeprefix(f"/{REPOSITORY}/resolve/{revision}/")
            if name != path and name in hub.files:
                return self._resolve(name)
        code = "RevisionNotFound" if f"/{REPOSITORY}/" in path else "RepoNotFound"
        return self.answer(404, X_Error_Code=code)

    do_HEAD = do_GET

    def _resolve(self, name: str) -> None:
        hub, content = self.server, self.server.files[name]
        if not in_lfs(name):
            return self.answer_file(hub, name, ETag=f'"{git_sha1(content)}"', X_Repo_Commit=COMMIT)
        return self.answer(
            302,
            Location=f"http://127.0.0.1:{hub.storage.server_port}/{name}",
            X_Repo_Commit=COMMIT,
            X_Linked_ETag=f'"{sha256(content)}"',
            X_Linked_Size=str(len(content)),
        )


class _Storage(_Answering):
    """Where the content of large files lies."""

    def do_GET(self) -> None:
        hub: SmallHub = self.server.hub  # type: ignore[attr-defined]
        hub.requests.append(
            (self.command, f"storage{self.path}", self.headers.get("Range"), self.headers.get("Authorization"))
        )
        self.answer_file(hub, unquote(self.path[1:]))

    do_HEAD = do_GET
