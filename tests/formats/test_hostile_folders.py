"""Folders made to do harm, or harmed by chance: one sentence, no memory worth speaking of, nothing of theirs is run."""

import json
import os
import pickle
import resource
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from references import reference
from safetensors.torch import load_file, save_file
from tiny import hot_decoder, tiny_config

from groundup.cli import main
from groundup.errors import UserError
from groundup.formats.huggingface import load_model, save_folder, save_model

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
QUERY = "model.layers.1.self_attn.q_proj.weight"
# Between them they have every operation of the rule tables and every reader of keys.
VARIANTS = (
    "llama yarn, all its keys",
    "smollm3",
    "gpt2",
    "opt",
    "gpt_neox",
    "falcon grouped, biases",
    "gemma3_text",
    "olmo3",
    "phi3 longrope",
    "cohere2",
    "mixtral",
    "qwen2_moe",
    "gpt_oss",
    "deepseek_v3",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole folder of float32 weights, to be copied and harmed."""
    folder = tmp_path_factory.mktemp("whole")
    save_model(hot_decoder(tiny_config("llama"), dtype=torch.float32), folder, bos_id=1, eos_ids=[2], pad_id=0)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture
def sharded(whole: Path, tmp_path: Path) -> Path:
    save_folder(load_model(whole), tmp_path / "shards", shard_bytes=30_000)
    assert len(list((tmp_path / "shards").glob("model-*-of-*"))) > 2
    return tmp_path / "shards"


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each variant, written by the reference."""
    folders = {variant: tmp_path_factory.mktemp("family") for variant in VARIANTS}
    for variant, folder in folders.items():
        reference(variant, hot=False).save_pretrained(folder)
    return folders


def _refusal(folder: Path) -> str:
    with _within_bounds(), pytest.raises(UserError) as refusal:
        load_model(folder)
    message = str(refusal.value)
    assert str(folder) in message
    assert message.isprintable()
    assert len(message) < 2100
    return message


@contextmanager
def _within_bounds(seconds: float = 10, megabytes: int = 200) -> Iterator[None]:
    """Neither waits nor allocates on behalf of what a file claims."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    assert time.monotonic() - started < seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < megabytes * 1024


def _edit_json(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


# Headers of safetensors


def _header(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _write(path: Path, header: bytes, data: bytes, length: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)


@pytest.mark.parametrize("length", [2**60, 2**64 - 1, 2**63, 200_000_000, 10**6, 7, 0])
def test_a_header_of_an_absurd_length_is_refused(length: int, folder: Path):
    header, data = _header(folder / WEIGHTS)
    _write(folder / WEIGHTS, json.dumps(header).encode(), data, length)
    assert WEIGHTS in _refusal(folder)


@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a": 1}', b"[" * 100_000, b'{"a":' * 100_000, b'{"__metadata__": 1}'],
    ids=lambda header: str(header[:20]),
)
def test_a_header_that_is_no_table_of_tensors_is_refused(header: bytes, folder: Path):
    _write(folder / WEIGHTS, header, b"")
    assert WEIGHTS in _refusal(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [0, 2**40]},
        {"data_offsets": [2**60, 2**60 + 4096]},
        {"data_offsets": [4096, 0]},
        {"data_offsets": [-4096, 0]},
        {"data_offsets": [0, 4096]},
        {"data_offsets": [0, 4095]},
        {"data_offsets": [0]},
        {"data_offsets": None},
        {"shape": [2**40, 2**40]},
        {"shape": [2**32, 2**32, 2**32]},
        {"shape": [2**63, 2]},
        {"shape": [-1, 1024]},
        {"shape": [1.5, 2]},
        {"shape": [0]},
        {"shape": [10**30]},
        {"shape": "32"},
        {"dtype": "F33"},
        {"dtype": "PICKLE"},
        {"dtype": "F64"},
        {"dtype": None},
    ],
    ids=str,
)
def test_a_tensor_that_does_not_fit_its_file_is_refused(change: dict[str, Any], folder: Path):
    header, data = _header(folder / WEIGHTS)
    header[QUERY] |= change
    _write(folder / WEIGHTS, json.dumps(header).encode(), data)
    assert WEIGHTS in _refusal(folder)


def test_two_tensors_in_the_same_bytes_are_refused(folder: Path):
    header, data = _header(folder / WEIGHTS)
    header[QUERY]["data_offsets"] = header[QUERY.replace("q_proj", "o_proj")]["data_offsets"]
    _write(folder / WEIGHTS, json.dumps(header).encode(), data)
    assert WEIGHTS in _refusal(folder)


def test_a_tensor_named_twice_is_refused(folder: Path):
    header, data = _header(folder / WEIGHTS)
    twice = json.dumps(header).replace(QUERY.replace("q_proj", "o_proj"), QUERY)
    _write(folder / WEIGHTS, twice.encode(), data)
    assert WEIGHTS in _refusal(folder)


def test_bytes_that_no_tensor_names_are_refused(folder: Path):
    with open(folder / WEIGHTS, "ab") as file:
        file.write(b"more")
    assert WEIGHTS in _refusal(folder)


EDITS = st.lists(
    st.tuples(st.sampled_from(["change", "insert", "delete", "cut"]), st.floats(0, 1), st.integers(0, 255)),
    min_size=1,
    max_size=3,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS)
def test_no_bytes_of_a_header_give_anything_but_a_refusal_or_the_same_model(
    edits: list[tuple[str, float, int]], folder: Path, whole: Path
):
    content = bytearray((whole / WEIGHTS).read_bytes())
    end = 8 + struct.unpack("<Q", content[:8])[0]
    for kind, place, byte in sorted(edits, key=lambda edit: edit[0] == "cut"):
        at = int(place * (end - 4))
        if kind == "change":
            content[at] = byte
        elif kind == "insert":
            content.insert(at, byte)
        elif kind == "delete":
            del content[at]
        else:
            del content[int(place * len(content)) :]
    (folder / WEIGHTS).write_bytes(content)
    _assert_refused_or_equal(folder, whole)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_values_of_a_header_give_anything_but_a_refusal_or_the_same_model(
    data: st.DataObject, folder: Path, whole: Path
):
    """Edits of bytes rarely pass the parser; these always do."""
    header, content = _header(whole / WEIGHTS)
    name = data.draw(st.sampled_from(sorted(header.keys() - {"__metadata__"})))
    entry = header[name]
    small = st.integers(-3, 5000) | st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64])
    match data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "name"])):
        case "dtype":
            kinds = "BOOL U8 I8 F8_E5M2 F8_E4M3 I16 U16 F16 BF16 I32 U32 F32 F64 I64 U64 C64 F4 F6_E2M3 F8_E8M0"
            entry["dtype"] = data.draw(st.sampled_from(kinds.split()))
        case "shape":
            entry["shape"] = data.draw(st.permutations(entry["shape"]) | st.lists(small, max_size=4))
        case "data_offsets":
            entry["data_offsets"] = data.draw(st.lists(small, min_size=2, max_size=2))
        case "name":
            header[data.draw(st.sampled_from(sorted(header)) | st.text())] = header.pop(name)
    _write(folder / WEIGHTS, json.dumps(header).encode(), content)
    _assert_refused_or_equal(folder, whole)


def _assert_refused_or_equal(folder: Path, whole: Path) -> None:
    try:
        model = load_model(folder)
    except UserError as error:
        assert str(folder) in str(error)
    else:
        expected = load_model(whole).state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


# Tensors


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_of_another_shape_is_named(variant: str, families: dict[str, Path], tmp_path: Path):
    folder = Path(shutil.copytree(families[variant], tmp_path / "model"))
    whole = load_file(folder / WEIGHTS)
    for name, tensor in whole.items():
        if ".1." in name:  # layers are read alike
            continue
        others = [tensor.flatten()[:1].reshape(()), tensor[:0], tensor[None], torch.cat((tensor, tensor))]
        others += [tensor.T] if tensor.ndim == 2 and tensor.shape[0] != tensor.shape[1] else []
        others += [tensor.flatten()] if tensor.ndim > 1 else []
        for other in others:
            save_file(whole | {name: other.contiguous()}, folder / WEIGHTS)
            message = _refusal(folder)
            assert f"`{name}`" in message
            assert str(tuple(other.shape)) in message or "one byte each" in message or "has no place" in message


KINDS = [torch.int64, torch.int32, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.complex64]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("variant", ["llama yarn, all its keys", "gpt2", "mixtral"])
def test_weights_that_are_no_floats_are_named(
    kind: torch.dtype, variant: str, families: dict[str, Path], tmp_path: Path
):
    folder = Path(shutil.copytree(families[variant], tmp_path / "model"))
    whole = load_file(folder / WEIGHTS)
    for name in sorted(whole)[:4]:
        save_file(whole | {name: whole[name].to(kind)}, folder / WEIGHTS)
        message = _refusal(folder)
        assert f"`{name}`" in message
        assert str(kind) in message


# Shards


def _place(sharded: Path, name: str = QUERY) -> str:
    return str(json.loads((sharded / INDEX).read_text())["weight_map"][name])


def test_a_missing_shard_is_named(sharded: Path):
    (sharded / _place(sharded)).unlink()
    assert f"has no {_place(sharded)}" in _refusal(sharded)


def test_a_shard_cut_short_is_named(sharded: Path):
    path = sharded / _place(sharded)
    path.write_bytes(path.read_bytes()[:-1])
    assert path.name in _refusal(sharded)


def test_a_tensor_that_the_index_places_in_another_shard_is_named(sharded: Path):
    other = _place(sharded, "model.norm.weight")
    assert other != _place(sharded)
    _edit_json(sharded / INDEX, lambda index: index["weight_map"].update({QUERY: other}))
    message = _refusal(sharded)
    assert f"`{QUERY}` lies here, {INDEX} says that it lies in {other}" in message


def test_a_tensor_of_the_index_that_no_shard_holds_is_named(sharded: Path):
    shard = _place(sharded)
    _edit_json(sharded / INDEX, lambda index: index["weight_map"].update({"model.more.weight": shard}))
    assert f"{shard}: tensor `model.more.weight` is missing" in _refusal(sharded)


def test_a_tensor_that_the_index_leaves_out_is_named(sharded: Path):
    shard = _place(sharded)
    _edit_json(sharded / INDEX, lambda index: index["weight_map"].pop(QUERY))
    assert f"{shard}: tensor `{QUERY}` lies here, {INDEX} does not name it" in _refusal(sharded)


def test_a_tensor_in_two_shards_is_named(sharded: Path):
    other = sharded / _place(sharded, "model.norm.weight")
    save_file(load_file(other) | {QUERY: load_file(sharded / _place(sharded))[QUERY]}, other)
    assert f"tensor `{QUERY}` lies in " in _refusal(sharded)


def test_a_shard_that_the_index_does_not_name_is_named(sharded: Path):
    shutil.copy(sharded / _place(sharded), sharded / "model-00009-of-00009.safetensors")
    assert "model-00009-of-00009.safetensors" in _refusal(sharded)


@pytest.mark.parametrize(
    "place",
    ["../model.safetensors", "/tmp/model.safetensors", "sub/model.safetensors", "..", "", "model.bin", 3, None, ["x"]],
    ids=str,
)
def test_an_index_that_leads_out_of_the_folder_is_refused(place: Any, sharded: Path, whole: Path):
    shutil.copy(whole / WEIGHTS, sharded.parent / WEIGHTS)
    (sharded / "sub").mkdir()
    shutil.copy(whole / WEIGHTS, sharded / "sub" / WEIGHTS)
    _edit_json(sharded / INDEX, lambda index: index["weight_map"].update({QUERY: place}))
    message = _refusal(sharded)
    assert INDEX in message
    assert QUERY in message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"{}",
        b'{"weight_map": {}}',
        b'{"weight_map": []}',
        b'{"weight_map": null}',
        b"[" * 10**6,
    ],
    ids=lambda content: str(content[:20]),
)
def test_an_index_that_is_none_is_refused(content: bytes, sharded: Path):
    (sharded / INDEX).write_bytes(content)
    assert INDEX in _refusal(sharded)


def test_shards_may_be_links_as_they_are_in_the_hubs_cache(sharded: Path, whole: Path):
    for path in sharded.glob("model-*-of-*"):
        path.rename(sharded.parent / f"blob-{path.name}")
        path.symlink_to(sharded.parent / f"blob-{path.name}")
    _assert_refused_or_equal(sharded, whole)
    load_model(sharded)


# config.json


@pytest.mark.parametrize(
    "content",
    [
        b'{"hidden_size": ' + b"9" * 5000 + b"}",
        b'{"a":' * 100_000,
        b"[" * 100_000,
        b'{"model_type": "llama"}' + b" " * 60_000_000,
        b'{"model_type": "\xed\xa0\x80"}',
        b'{"model_type": "\\ud800\\u001b[31m\\n"}',
    ],
    ids=["endless number", "deep object", "deep list", "60 MB", "surrogate bytes", "control characters"],
)
def test_a_config_that_no_parser_should_meet_is_refused(content: bytes, folder: Path):
    (folder / "config.json").write_bytes(content)
    assert "config.json" in _refusal(folder)


@pytest.mark.parametrize(
    "size", [10**6, 10**12, 2**53, 2**63, 10**400], ids=["10^6", "10^12", "2^53", "2^63", "10^400"]
)
@pytest.mark.parametrize(
    "key",
    [
        "head_dim",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "vocab_size",
    ],
)
def test_sizes_that_the_files_cannot_hold_are_refused_before_anything_is_built(key: str, size: int, folder: Path):
    _edit_json(folder / "config.json", lambda keys: keys.update({key: size}))
    _refusal(folder)


def test_many_small_layers_are_refused_too(folder: Path):
    _edit_json(folder / "config.json", lambda keys: keys.update(num_hidden_layers=9999))
    assert "parameters" in _refusal(folder)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "-1", "-1e-300", "0", "1e-400"])
@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta", "hidden_size", "vocab_size"])
def test_numbers_that_are_none_are_refused_by_key(key: str, value: str, folder: Path):
    keys = json.loads((folder / "config.json").read_text())
    keys.pop(key)
    (folder / "config.json").write_text(json.dumps(keys)[:-1] + f', "{key}": {value}}}')
    assert f"`{key}`" in _refusal(folder)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.integers(0, 70)
    | st.floats()
    | st.sampled_from(["default", "linear", "yarn", "llama3", "full_attention", "sliding_attention", "gelu", "", "x"])
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["rope_type", "type", "factor", "rope_theta", "full_attention", "low_freq_factor", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_config_gives_anything_but_a_refusal_or_a_model(
    data: st.DataObject, families: dict[str, Path], tmp_path: Path
):
    source = families[data.draw(st.sampled_from(VARIANTS))]
    keys = json.loads((source / "config.json").read_text())
    for key in data.draw(st.lists(st.sampled_from(sorted(keys)), min_size=1, max_size=3, unique=True)):
        if data.draw(st.booleans()):
            keys[key] = data.draw(VALUES)
        else:
            del keys[key]
    (tmp_path / WEIGHTS).unlink(missing_ok=True)
    (tmp_path / WEIGHTS).symlink_to(source / WEIGHTS)
    (tmp_path / "config.json").write_text(json.dumps(keys))
    try:
        load_model(tmp_path)
    except UserError as error:
        assert str(tmp_path) in str(error)


# Code, pickles, and files that are none


class Harm:
    """What a pickle does when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", WEIGHTS])
def test_a_pickle_is_never_opened(name: str, folder: Path):
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps(Harm(folder / "harmed")))
    message = _refusal(folder)
    assert WEIGHTS in message
    assert name in message
    assert not (folder / "harmed").exists()


def test_code_beside_a_model_is_never_run(folder: Path, whole: Path):
    harm = f"import pathlib; pathlib.Path({str(folder / 'harmed')!r}).touch()"
    (folder / "modeling_tiny.py").write_text(harm)
    (folder / "__init__.py").write_text(harm)
    auto = {"AutoConfig": "modeling_tiny.Config", "AutoModelForCausalLM": "modeling_tiny.Model"}
    _edit_json(folder / "config.json", lambda keys: keys.update(auto_map=auto))
    _assert_refused_or_equal(folder, whole)
    assert not (folder / "harmed").exists()


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, INDEX])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_is_not_waited_for(name: str, make: Callable[[Path], None], folder: Path):
    if name != "config.json":
        (folder / WEIGHTS).unlink()
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    assert name in _refusal(folder)


def test_the_command_line_shows_a_strangers_words_as_letters_and_no_traceback(
    folder: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copy(tokenizer_folder / "tokenizer.json", folder)
    evil = "\x1b]0;harm\x07\nweight\ud800"
    save_file(load_file(folder / WEIGHTS) | {evil.replace("\ud800", ""): torch.ones(2)}, folder / WEIGHTS)
    assert main(["sample", str(folder)]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith("groundup: ")
    assert "\\x1b]0;harm\\x07 weight" in written.err
    assert written.err.count("\n") == 1
    _edit_json(folder / "config.json", lambda keys: keys.update(model_type=evil))
    assert main(["sample", str(folder)]) == 2
    assert "Traceback" not in capsys.readouterr().err
