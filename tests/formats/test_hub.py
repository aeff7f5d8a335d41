"""Models of the hub: downloaded whole, resumed, checked, cached; and one sentence for each way in which that fails.

The hub is a server on this machine; that it speaks the protocol is shown by the library's own download from it.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from small_hub import COMMIT, REPOSITORY, SmallHub, git_sha1, sha256
from tiny import hot_decoder, random_ids, tiny_config

import groundup
from groundup.errors import UserError
from groundup.formats.huggingface import load_model, save_folder, save_model
from groundup.record.metrics import Progress

NAME = f"hf:{REPOSITORY}"
WEIGHTS = "model.safetensors"
NEEDED = {"config.json", "generation_config.json", "tokenizer.json", WEIGHTS}
# Nothing of these may be asked for.
OTHERS = {
    "README.md": b"# tiny",
    "consolidated.safetensors": b"not these",
    "modeling_tiny.py": b"raise SystemExit('code of a stranger')",
    "onnx/model.onnx": b"nor this",
    "pytorch_model.bin": b"\x80\x04nor pickles",
    "subfolder/config.json": b"{}",
}
CHUNK = 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of some 100 kB."""
    folder = tmp_path_factory.mktemp("model")
    save_model(hot_decoder(tiny_config("llama"), dtype=torch.float32), folder, bos_id=1, eos_ids=[2], pad_id=0)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallHub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("GROUNDUP_QUIET", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    with SmallHub(_files(folder) | OTHERS) as hub:
        _use(hub.url, monkeypatch)
        yield hub


def _use(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for HF_ENDPOINT, which the library reads when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "models--org--tiny"


def _refusal(name: str = NAME) -> str:
    with pytest.raises(UserError) as refusal:
        groundup.load(name)
    return str(refusal.value)


def _assert_loads(folder: Path, name: str = NAME) -> None:
    ids = random_ids(1, 8)
    assert torch.equal(groundup.load(name)(ids), load_model(folder)(ids))


def _ranges(hub: SmallHub, name: str = WEIGHTS) -> list[str | None]:
    """What parts of a file were asked for, in order."""
    return [part for _, path, part, _ in hub.requests if path == f"storage/{name}"]


def test_a_model_of_the_hub_is_loaded_and_only_what_it_needs_is_fetched(hub: SmallHub, folder: Path):
    _assert_loads(folder)
    assert sorted(hub.transferred) == sorted(NEEDED)


def test_what_is_there_already_is_not_fetched_again(hub: SmallHub, folder: Path):
    groundup.load(NAME)
    hub.transferred.clear()
    for name in (NAME, f"{NAME}@main", f"{NAME}@{COMMIT}", f"{NAME}@refs/pr/1"):
        _assert_loads(folder, name)
    assert hub.transferred == []


def test_the_library_finds_what_was_fetched_here(hub: SmallHub, cache: Path, monkeypatch: pytest.MonkeyPatch):
    groundup.load(NAME)
    hub.transferred.clear()
    theirs = huggingface_hub.snapshot_download(REPOSITORY, allow_patterns=sorted(NEEDED))
    assert Path(theirs) == cache / "snapshots" / COMMIT
    assert hub.transferred == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert huggingface_hub.snapshot_download(REPOSITORY, allow_patterns=sorted(NEEDED)) == theirs


def test_what_the_library_has_fetched_is_used_here(hub: SmallHub, folder: Path):
    huggingface_hub.snapshot_download(REPOSITORY)
    hub.transferred.clear()
    _assert_loads(folder)
    assert hub.transferred == []


def test_a_broken_connection_goes_on_where_it_broke(hub: SmallHub, folder: Path):
    hub.broken[WEIGHTS] = [10 * CHUNK, 5 * CHUNK]
    _assert_loads(folder)
    assert _ranges(hub) == [None, f"bytes={10 * CHUNK}-", f"bytes={15 * CHUNK}-"]


def test_an_interrupted_download_goes_on_in_a_later_run(
    hub: SmallHub, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    advance = Progress.advance

    def interrupt(self: Progress, amount: float = 1.0, **fields: str | float) -> None:
        advance(self, amount, **fields)
        if self._title.endswith("weights") and self._done >= 20 * CHUNK:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "advance", interrupt)
        with pytest.raises(KeyboardInterrupt):
            groundup.load(NAME)
    assert not (cache / "snapshots" / COMMIT / WEIGHTS).exists()
    assert not (cache / "refs" / "main").exists()
    _assert_loads(folder)
    assert _ranges(hub) == [None, f"bytes={19 * CHUNK}-"]  # the piece that was just shown was not yet written


def test_a_hub_that_fails_half_way_is_named_and_the_next_run_goes_on(hub: SmallHub, folder: Path):
    hub.broken[WEIGHTS] = [10 * CHUNK]
    failing = hub.failing

    class FailsFromTheSecondOn(set[str]):
        def __contains__(self, name: object) -> bool:
            return name == WEIGHTS and hub.transferred.count(WEIGHTS) > 1

    hub.failing = FailsFromTheSecondOn()
    assert _refusal() == (
        f"the download of {NAME} broke off, since {hub.url} answers with status 500; the same again goes on from there"
    )
    hub.failing = failing
    _assert_loads(folder)
    assert _ranges(hub)[-1] == f"bytes={10 * CHUNK}-"


def test_a_server_that_knows_no_parts_sends_all_again(hub: SmallHub, folder: Path):
    hub.broken[WEIGHTS] = [10 * CHUNK]
    hub.ignores_ranges = True
    _assert_loads(folder)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"], ids=["by sha-256", "by git's hash"])
def test_damaged_bytes_are_refused_and_thrown_away(name: str, hub: SmallHub, folder: Path, cache: Path):
    whole = hub.files[name]
    hub.damaged[name] = whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]
    message = _refusal()
    assert f"{name} of {NAME}" in message
    assert "hash" in message
    digest = sha256(whole) if name == WEIGHTS else git_sha1(whole)
    assert not list((cache / "blobs").glob(f"{digest}*"))
    assert not (cache / "snapshots" / COMMIT / name).exists()
    hub.damaged.clear()
    _assert_loads(folder)


def test_a_damaged_beginning_from_an_earlier_run_is_refused_and_thrown_away(hub: SmallHub, folder: Path, cache: Path):
    (cache / "blobs").mkdir(parents=True)
    (cache / "blobs" / f"{sha256(hub.files[WEIGHTS])}.incomplete").write_bytes(bytes(5 * CHUNK))
    assert "hash" in _refusal()
    _assert_loads(folder)


@pytest.mark.parametrize(
    ("status", "code", "parts"),
    [
        (404, "RepoNotFound", ["has no model org/tiny", "sign in"]),
        (401, "RepoNotFound", ["has no model org/tiny", "sign in"]),
        (401, "", ["refuses", "401", "sign in"]),
        (404, "RevisionNotFound", ["org/tiny has no branch, tag or commit `main`"]),
        (403, "GatedRepo", ["is gated", "accept its terms at http://127.0.0.1", "/org/tiny"]),
        (403, "", ["refuses", "403"]),
        (500, "", ["is not in the cache", "status 500"]),
    ],
)
def test_a_refusal_of_the_hub_is_one_sentence(status: int, code: str, parts: list[str], hub: SmallHub):
    hub.refusal = status, code
    message = _refusal()
    assert all(part in message for part in parts), message


def test_an_unknown_revision_is_named(hub: SmallHub):
    assert f"{REPOSITORY} has no branch, tag or commit `v9`" in _refusal(f"{NAME}@v9")


def test_offline_a_cached_model_is_loaded_and_another_is_not(
    hub: SmallHub, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert _refusal() == f"{NAME} is not in the cache, and HF_HUB_OFFLINE forbids to ask the hub"
    assert hub.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    groundup.load(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("GROUNDUP_QUIET", "0")
    capsys.readouterr()
    _assert_loads(folder)
    assert capsys.readouterr().err == f"{NAME}: the cached copy is used, since HF_HUB_OFFLINE forbids to ask the hub\n"
    _assert_loads(folder, f"{NAME}@{COMMIT}")


def test_without_a_connection_a_cached_model_is_loaded_and_another_is_not(
    hub: SmallHub, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    nowhere = "http://127.0.0.1:9"
    with monkeypatch.context() as patch:
        _use(nowhere, patch)
        assert _refusal() == f"{NAME} is not in the cache, and {nowhere} cannot be reached (ConnectError)"
    groundup.load(NAME)
    _use(nowhere, monkeypatch)
    _assert_loads(folder)


@pytest.mark.parametrize("lost", [WEIGHTS, "config.json"])
def test_offline_half_a_model_counts_as_none(lost: str, hub: SmallHub, cache: Path, monkeypatch: pytest.MonkeyPatch):
    groundup.load(NAME)
    (cache / "snapshots" / COMMIT / lost).unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "is not in the cache" in _refusal()


@pytest.mark.parametrize("lacking", [WEIGHTS, "config.json"])
def test_a_repository_without_safetensors_is_refused_before_anything_is_fetched(lacking: str, hub: SmallHub):
    del hub.files[lacking]
    message = _refusal()
    assert f"{NAME} holds no {lacking}" in message
    assert hub.transferred == []


def test_a_model_that_is_not_understood_is_refused_before_its_weights_are_fetched(hub: SmallHub):
    hub.files["config.json"] = json.dumps({"model_type": "rwkv9"}).encode()
    assert "rwkv9" in _refusal()
    assert WEIGHTS not in hub.transferred


def _full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_without_room_is_refused_before_the_transfer(hub: SmallHub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000))
    message = _refusal()
    assert "make room" in message
    assert "has 5000B left" in message
    assert WEIGHTS not in hub.transferred


def test_a_disk_that_fills_up_on_the_way_is_one_sentence(hub: SmallHub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("groundup.formats.hub.http_get", _full)
    assert "the disk is full" in _refusal()


@pytest.fixture
def sharded(hub: SmallHub, folder: Path, tmp_path: Path) -> Path:
    """The same model in shards, on the hub instead of the whole one."""
    save_folder(load_model(folder), tmp_path / "sharded", shard_bytes=30_000)
    hub.files = _files(tmp_path / "sharded") | OTHERS
    return tmp_path / "sharded"


def test_of_a_model_in_shards_those_are_fetched_that_its_index_names(hub: SmallHub, sharded: Path, cache: Path):
    _assert_loads(sharded)
    shards = {name for name in hub.files if name.startswith("model-0")}
    assert len(shards) > 2
    assert {name for name in hub.transferred if name.endswith("safetensors")} == shards


def test_a_model_in_shards_is_loaded_offline_if_all_of_them_are_there(
    hub: SmallHub, sharded: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    groundup.load(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _assert_loads(sharded)
    min((cache / "snapshots" / COMMIT).glob("model-0*")).unlink()
    assert "is not in the cache" in _refusal()


@pytest.mark.parametrize("place", ["../model.safetensors", "/etc/model.safetensors", "model-9.safetensors", "a.bin"])
def test_an_index_of_the_hub_that_leads_elsewhere_is_refused(place: str, hub: SmallHub, sharded: Path):
    hub.files["model.safetensors.index.json"] = json.dumps({"weight_map": {"head.weight": place}}).encode()
    assert place in _refusal()
    assert not [name for name in hub.transferred if name.endswith(".safetensors")]


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told | {"sha": "../../../outside"},
        lambda told: told | {"sha": None},
        lambda told: told | {"siblings": [{"rfilename": "config.json"}]},
        lambda told: told | {"siblings": [{"rfilename": "config.json", "size": 2, "blobId": "../../../x"}]},
        lambda told: told | {"siblings": [{"rfilename": "config.json", "size": 2, "lfs": {}}, "model.safetensors"]},
        lambda told: [told],
    ],
)
def test_a_listing_that_is_none_is_refused(change: Callable[[Any], Any], hub: SmallHub, tmp_path: Path):
    hub.listing = json.dumps(change(hub.information())).encode()
    assert "does not answer as a hub does" in _refusal()
    assert hub.transferred == []
    assert not list(tmp_path.glob("cache/**/*.safetensors"))


def test_a_server_that_is_no_hub_is_named(hub: SmallHub):
    hub.listing = b"<html>Welcome</html>"
    assert f"{hub.url} (HF_ENDPOINT) does not answer as a hub does" in _refusal()


@pytest.mark.parametrize("name", ["", "a/b/c", "../secret", "org/..", "org/name.git", "org/na me", "org//name", "/etc"])
def test_what_names_no_model_is_refused_without_asking(name: str, hub: SmallHub):
    assert "names no model" in _refusal(f"hf:{name}")
    assert hub.requests == []


@pytest.mark.parametrize("revision", ["../main", "/main", "a b", "refs/../../x", "main/"])
def test_what_names_no_revision_is_refused_without_asking(revision: str, hub: SmallHub):
    assert "names no revision" in _refusal(f"{NAME}@{revision}")
    assert hub.requests == []


def test_the_users_token_goes_to_the_hub_and_nowhere_else(hub: SmallHub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    groundup.load(NAME)
    sent = {path.startswith("storage"): token for _, path, _, token in hub.requests}
    assert sent == {False: "Bearer hf_secret", True: None}


def test_two_at_a_time_fetch_each_file_once(hub: SmallHub, folder: Path):
    with ThreadPoolExecutor(2) as pool:
        models = list(pool.map(groundup.load, [NAME, NAME]))
    ids = random_ids(1, 8)
    assert all(torch.equal(model(ids), load_model(folder)(ids)) for model in models)
    assert sorted(hub.transferred) == sorted(NEEDED)


def test_the_command_line_takes_models_of_the_hub(pretrained: Callable[[str], Path], tmp_path: Path):
    """Through HF_ENDPOINT and HF_HOME, as a user sets them."""

    def sample(**environment: str) -> subprocess.CompletedProcess[str]:
        settings = {"HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-m", "groundup", "sample", NAME, "--prompt", "import ", "--max-tokens", "5"]
        command += ["--temperature", "0", "--threads", "1"]
        return subprocess.run(
            command, env=os.environ | settings | environment, capture_output=True, text=True, check=False
        )

    folder = pretrained("llama")
    with SmallHub({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}) as hub:
        refused = sample(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
        assert refused.returncode == 2
        assert refused.stderr == f"groundup: {NAME} is not in the cache, and HF_HUB_OFFLINE forbids to ask the hub\n"
        fetched = sample(HF_ENDPOINT=hub.url)
        assert fetched.returncode == 0, fetched.stderr
        assert f"{NAME} weights: 100 %" in fetched.stderr
    offline = sample(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert offline.stdout == fetched.stdout
    assert offline.stdout.startswith("import ")
