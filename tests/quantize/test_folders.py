"""Folders of quantized models: what is written is what is read, mapped into memory; nothing in them is trusted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import DECODERS, ENCODERS, hot_decoder, random_ids, tiny_config

import groundup
from groundup.errors import UserError
from groundup.formats.gguf.model_file import save_gguf
from groundup.model.language_model import LanguageModel
from groundup.quantize.convert import quantize_model, quantized_format
from groundup.quantize.matrix import W4, WEIGHT_FORMATS, WeightFormat

ALL_FORMATS = pytest.mark.parametrize("format", WEIGHT_FORMATS.values(), ids=WEIGHT_FORMATS)


def _quantized(preset: str, format: WeightFormat) -> LanguageModel:
    model = hot_decoder(tiny_config(preset), dtype=torch.float32)
    quantize_model(model, format)
    return model


def _assert_equal(one: LanguageModel, other: Any) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    with torch.no_grad():
        assert torch.equal(one(random_ids(2, 9)), other(random_ids(2, 9)))


@pytest.mark.parametrize("preset", [*DECODERS, *ENCODERS])
def test_what_is_saved_is_what_is_loaded(preset: str, tmp_path: Path):
    model = _quantized(preset, W4)
    groundup.save(model, tmp_path / "out")
    loaded = groundup.load(tmp_path / "out")
    assert loaded.config == model.config and quantized_format(loaded) == W4
    _assert_equal(model, loaded)


@ALL_FORMATS
def test_every_format_in_shards_too(format: WeightFormat, tmp_path: Path):
    model = _quantized("groundup", format)
    groundup.save(model, tmp_path / "out", shard_bytes=20_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    _assert_equal(model, groundup.load(tmp_path / "out"))


def test_tensors_bear_the_names_of_the_model(tmp_path: Path):
    model = _quantized("llama", W4)
    groundup.save(model, tmp_path / "out")
    tensors = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(tensors["layers.1.mixer.query.values"], model.layers[1].mixer.query.matrix.values)
    assert tensors["embedding.scales"].dtype == torch.float16
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["quantization_config"] == {"quant_method": "groundup", "format": "w4"}


def test_a_loaded_matrix_lies_in_the_file(tmp_path: Path):
    """Nothing of the weights is read or copied before it is used."""
    groundup.save(_quantized("llama", W4), tmp_path / "out")
    loaded = groundup.load(tmp_path / "out")
    path = str((tmp_path / "out/model.safetensors").resolve())
    ranges = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if path in line]
    mapped = [range(int(start, 16), int(end, 16)) for start, end in ranges]
    places = [tensor.data_ptr() for tensor in loaded.state_dict().values()]
    assert mapped and all(any(place in one for one in mapped) for place in places)


def test_the_engine_runs_a_folder(tmp_path: Path):
    model = _quantized("llama", W4)
    groundup.save(model, tmp_path / "out")
    (written,) = groundup.Engine(tmp_path / "out", stop_ids=()).generate([[1, 2, 3]], max_tokens=6)
    tokens = [1, 2, 3]
    for token in written.tokens:
        assert int(model(torch.tensor([tokens]))[0, -1].argmax()) == token
        tokens.append(token)
    assert len(written.tokens) == 6


def test_the_engine_quantizes_a_folder_itself(tmp_path: Path):
    groundup.save(hot_decoder(tiny_config("llama"), dtype=torch.float32), tmp_path / "plain")
    engine = groundup.Engine(tmp_path / "plain", stop_ids=(), quantize="w4")
    expected = _quantized("llama", W4).state_dict()
    assert all(torch.equal(one, expected[name]) for name, one in engine.model.state_dict().items())
    with pytest.raises(ValueError, match="`quantize` must be one of w8, w4, w4_g32, fp8 or None, not 'w2'"):
        groundup.Engine(tmp_path / "plain", quantize="w2")
    with pytest.raises(ValueError, match="`quantize` is for folders"):
        groundup.Engine(engine.model, quantize="w4")
    groundup.save(engine.model, tmp_path / "out")
    with pytest.raises(UserError, match="a model of w4 weights cannot be quantized again"):
        groundup.Engine(tmp_path / "out", quantize="w8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    groundup.save(_quantized("llama", W4), tmp_path / "out")
    return tmp_path / "out"


def _config(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        change(values)
        (folder / "config.json").write_text(json.dumps(values))

    return apply


def _tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = {name: one.clone() for name, one in load_file(folder / "model.safetensors").items()}
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


QUERY = "layers.0.mixer.query"
BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "another method": (
        _config(lambda values: values.update(quantization_config={"quant_method": "gptq", "bits": 4})),
        r"config.json: `quantization_config` is of 'gptq', which is not read here; only groundup's own",
    ),
    "no object": (_config(lambda values: values.update(quantization_config="w4")), "is of 'w4', which is not read"),
    "unknown format": (
        _config(lambda values: values["quantization_config"].update(format="w3")),
        "`quantization_config.format` must be one of w8, w4, w4_g32, not 'w3'",
    ),
    "no format": (_config(lambda values: values["quantization_config"].pop("format")), "must be one of .* not None"),
    "a format that is a list": (
        _config(lambda values: values["quantization_config"].update(format=["w4"])),
        "must be one of",
    ),
    "unknown key": (
        _config(lambda values: values["quantization_config"].update(zero=8)),
        "`quantization_config.zero` is not a key",
    ),
    "other format": (
        _config(lambda values: values["quantization_config"].update(format="w8")),
        r"tensor `.*values` is torch.uint8 of shape .*, the configuration says torch.uint8 of shape",
    ),
    "not quantized any more": (_config(lambda values: values.pop("quantization_config")), "is missing"),
    "another shape": (_config(lambda values: values.update(intermediate_size=160)), "the configuration says"),
    "far too large": (_config(lambda values: values.update(vocab_size=10**9)), "cannot hold 4 bits each"),
    "missing": (_tensors(lambda tensors: tensors.pop(f"{QUERY}.scales")), "`layers.0.mixer.query.scales` is missing"),
    "unknown tensor": (
        _tensors(lambda tensors: tensors.update({"extra": torch.zeros(1)})),
        "tensor `extra` has no place in a model of this config",
    ),
    "floating values": (
        _tensors(lambda tensors: tensors.update({f"{QUERY}.values": tensors[f"{QUERY}.values"].float()})),
        "is torch.float32 of shape",
    ),
    "wide scales": (
        _tensors(lambda tensors: tensors.update({f"{QUERY}.scales": tensors[f"{QUERY}.scales"].float()})),
        "the configuration says torch.float16",
    ),
    "integers for a norm": (
        _tensors(lambda tensors: tensors.update({"final_norm.weight": tensors["final_norm.weight"].to(torch.uint8)})),
        "tensor `final_norm.weight` is torch.uint8",
    ),
    "a torn file": (
        lambda folder: (
            (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100]) and None
        ),
        "is not a whole safetensors file",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders_are_refused_with_a_sentence(folder: Path, name: str):
    breaks, said = BROKEN[name]
    breaks(folder)
    with pytest.raises(UserError, match=said):
        groundup.load(folder)


def test_a_plain_folder_that_says_it_is_quantized_is_refused(tmp_path: Path):
    groundup.save(hot_decoder(tiny_config("llama"), dtype=torch.float32), tmp_path / "plain")
    _config(lambda values: values.update(quantization_config={"quant_method": "groundup", "format": "w8"}))(
        tmp_path / "plain"
    )
    with pytest.raises(UserError, match=r"tensor `embedding.scales` is missing"):
        groundup.load(tmp_path / "plain")


def test_what_needs_floating_weights_refuses_quantized_ones(folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"is quantized: its weights have types of their own, not torch.float16"):
        groundup.load(folder, torch.float16)
    with pytest.raises(UserError, match="a model of w4 weights cannot be exported to GGUF; name the one"):
        save_gguf(groundup.load(folder), folder, tmp_path / "out.gguf")
    shutil.rmtree(folder)
