"""`groundup.save`: what it writes is what `transformers` loads, in shards if need be; and it writes all or nothing."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from references import reference
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import hot_decoder, random_ids, tiny_config

import groundup
from groundup.errors import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def source(tmp_path: Path, pretrained: Callable[[str], Path]) -> Path:
    """A folder as `transformers` writes it, tokenizer included."""
    folder = tmp_path / "source"
    reference("llama", hot=True).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(pretrained("llama")).save_pretrained(folder)
    settings = transformers.GenerationConfig(
        bos_token_id=1, eos_token_id=[2, 3], pad_token_id=5, do_sample=True, top_k=7
    )
    settings.save_pretrained(folder)
    return folder


@torch.no_grad()
def _assert_same_model(folder: Path, other: Path) -> None:
    ids = random_ids(2, 20)
    one, same = groundup.load(folder), groundup.load(other)
    assert one.config == same.config
    weights = dict(same.named_parameters())
    assert all(torch.equal(parameter, weights[name]) for name, parameter in one.named_parameters())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    assert (one(ids) - theirs).norm() <= 1e-5 * theirs.norm()


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_saved_is_a_whole_folder_for_transformers(source: Path, tmp_path: Path):
    groundup.save(groundup.load(source), tmp_path / "deep" / "out")
    out = tmp_path / "deep" / "out"
    _assert_same_model(out, source)
    settings = transformers.GenerationConfig.from_pretrained(out)
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (1, [2, 3], 5)
    assert settings.top_k == 7
    words = transformers.AutoTokenizer.from_pretrained(out)
    assert (
        words("import os")["input_ids"] == transformers.AutoTokenizer.from_pretrained(source)("import os")["input_ids"]
    )
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("variant", ["llama", "gpt2", "mixtral"])
def test_a_large_model_is_written_in_shards(variant: str, tmp_path: Path):
    source, out = tmp_path / "source", tmp_path / "out"
    reference(variant, hot=True).save_pretrained(source)
    groundup.save(groundup.load(source), out, shard_bytes=20_000)
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert shards == [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    assert len(shards) > 2
    total = 0
    for name in shards:
        with safe_open(out / name, framework="pt") as file:
            sizes = [file.get_tensor(tensor).nbytes for tensor in list(file.keys())]
        assert len(sizes) == 1 or sum(sizes) <= 20_000
        total += sum(sizes)
    assert json.loads((out / INDEX).read_text())["metadata"]["total_size"] == total
    _assert_same_model(out, source)


def test_other_files_of_the_folder_stay_and_the_older_models_go(source: Path, tmp_path: Path):
    out = tmp_path / "out"
    model = groundup.load(source)
    (out / "sub").mkdir(parents=True)
    for name in ("README.md", "sub/model.safetensors", "adapter.safetensors", "config.yaml"):
        (out / name).write_text(name)
    kept = _contents(out)
    weights = set()
    for shard_bytes in (5 * 10**9, 20_000, 30_000, 5 * 10**9):
        groundup.save(model, out, shard_bytes=shard_bytes)
        assert kept.items() <= _contents(out).items()
        _assert_same_model(out, source)
        weights = {path.name for path in out.glob("model*")}
        indexed = (
            {INDEX, *json.loads((out / INDEX).read_text())["weight_map"].values()} if shard_bytes < 10**6 else {WEIGHTS}
        )
        assert weights == indexed
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


@torch.no_grad()
def test_a_model_can_be_saved_over_the_folder_it_is_mapped_from(source: Path):
    model, ids = groundup.load(source), random_ids(1, 9)
    model.final_norm.weight.mul_(2)
    expected = model(ids)
    groundup.save(model, source)
    assert torch.equal(model(ids), expected)
    torch.testing.assert_close(groundup.load(source)(ids), expected)


def _fail(error: BaseException) -> Callable[..., None]:
    """Writes one shard, and fails at the next."""
    written = []

    def save(tensors: dict[str, torch.Tensor], path: Path, **options: Any) -> None:
        if written:
            path.write_bytes(b"half a shard")
            raise error
        save_file(tensors, path, **options)
        written.append(path)

    return save


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()], ids=repr)
def test_a_save_that_fails_leaves_everything_as_it_was(
    error: BaseException, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, before = groundup.load(source), _contents(source)
    for out in (source, tmp_path / "new"):
        monkeypatch.setattr("groundup.formats.tensor_files.save_file", _fail(error))
        with pytest.raises(type(error)):
            groundup.save(model, out, shard_bytes=20_000)
    assert _contents(source) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_full_disk_leaves_everything_as_it_was(source: Path, tmp_path: Path):
    """A real one: the system refuses to let any file grow beyond some size."""
    before = _contents(source)
    program = f"""
import resource, groundup
from groundup.cli.failures import explain
model = groundup.load({str(source)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
for out in ({str(source)!r}, {str(tmp_path / "new")!r}):
    try:
        groundup.save(model, out)
    except Exception as error:
        print(explain(error))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    assert all("a file would grow past this system's size limit" in line for line in lines), lines
    assert _contents(source) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_model_that_came_from_nowhere_says_that_it_has_no_token_ids(tmp_path: Path):
    groundup.save(hot_decoder(tiny_config("llama"), dtype=torch.float32), tmp_path / "out")
    settings = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (None, None, None)
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_another_folders_tokenizer_can_go_along(source: Path, tmp_path: Path):
    model = hot_decoder(tiny_config("llama"), dtype=torch.float32)
    groundup.save(model, tmp_path / "out", like=source)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [2, 3]


def test_what_cannot_be_saved_is_one_sentence_and_leaves_nothing(source: Path, tmp_path: Path):
    model = groundup.load(source)
    (tmp_path / "file").write_text("here")
    with pytest.raises(UserError, match="file is a file; a model is saved as a folder"):
        groundup.save(model, tmp_path / "file")
    with pytest.raises(UserError, match=r"nothing/config\.json: there is no such file"):
        groundup.save(model, tmp_path / "out", like=tmp_path / "nothing")
    with torch.no_grad():
        model.final_norm.weight[3] = torch.inf
    with pytest.raises(UserError, match="not finite"):
        groundup.save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("variant", "copied"), [("llama", 0), ("phi3", 0), ("gpt2", 0), ("mixtral", 30)])
def test_only_tensors_that_lie_otherwise_on_disk_are_read_when_a_model_is_loaded(
    variant: str, copied: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The others are mapped: nothing of them is read before it is used, and no copy is ever made."""
    from groundup.formats.tensor_files import TensorFiles

    reference(variant, hot=True).save_pretrained(tmp_path)
    read, names = TensorFiles.read, []

    def counted(self: TensorFiles, name: str) -> torch.Tensor:
        names.append(name)
        return read(self, name)

    monkeypatch.setattr(TensorFiles, "read", counted)
    groundup.load(tmp_path)
    assert len(names) == copied, names
    names.clear()
    groundup.load(tmp_path, torch.float32)
    assert len(names) == copied
