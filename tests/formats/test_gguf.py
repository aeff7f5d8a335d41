"""GGUF out and in: what is written comes back, what llama.cpp cannot compute is refused by name."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_models import ENCODERS, MODELS, model_of
from raw_gguf import build, tiny_llama
from references import reference
from tiny import hot_decoder, random_ids, tiny_config
from tiny_keys import rotary

import groundup
from groundup.cli import main
from groundup.cli.exporting import TYPES
from groundup.errors import UserError
from groundup.formats.gguf import container
from groundup.formats.gguf.architectures import ARCHITECTURES
from groundup.formats.gguf.blocks import WRITTEN
from groundup.formats.gguf.container import GgufFile
from groundup.formats.gguf.model_file import load_gguf, save_gguf
from groundup.formats.huggingface import FAMILIES, load_model
from groundup.model.config import ModelConfig
from groundup.model.language_model import LanguageModel
from groundup.model.positions import rope_tables
from groundup.model.rotary import Llama3Scaling

NAMES = pytest.mark.parametrize("name", MODELS)


def _written(model: LanguageModel, words: Path, out: Path, weights: str = "f32") -> Path:
    save_gguf(model, words, out / "model.gguf", weights)
    return out / "model.gguf"


def _as_read(config: ModelConfig) -> ModelConfig:
    """Mistral is LLaMA there."""
    return replace(config, family="llama") if config.family == "mistral" else config


def _six_digits(config: ModelConfig) -> str:
    return re.sub(r"\d+\.\d+(e-?\d+)?", lambda number: f"{float(number[0]):.6g}", repr(config))


def _parameters(model: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


# What is written comes back


@NAMES
@torch.no_grad()
def test_every_family_comes_back_with_its_configuration_weights_and_logits(
    name: str, words: Path, models: Path, tmp_path: Path
):
    model = model_of(name, models)
    again = load_gguf(_written(model, words, tmp_path))
    assert _six_digits(again.config) == _six_digits(_as_read(model.config))
    after = _parameters(again)
    for key, before in _parameters(model).items():
        if "gemma" in name and key.endswith("norm.weight"):  # 1 + weight is rounded to single precision
            assert torch.allclose(after[key], before, atol=2e-7, rtol=0)
        else:
            assert torch.equal(after[key], before), key
    ids = random_ids(2, 24, vocabulary=512)
    expected = model(ids)
    assert (again(ids) - expected).norm() <= 1e-5 * expected.norm()


def test_every_architecture_is_tried(models: Path):
    tried = {model_of(name, models).config.family for name in (*MODELS, *ENCODERS)}
    assert tried == {family for architecture in ARCHITECTURES for family in architecture.families}


@pytest.mark.parametrize("weights", WRITTEN)
@pytest.mark.parametrize("name", ["llama", "mixtral", "gemma2", "gpt2"])
def test_weights_are_stored_as_asked_and_what_must_be_precise_in_single(
    name: str, weights: str, words: Path, models: Path, tmp_path: Path
):
    file = GgufFile(_written(model_of(name, models), words, tmp_path, weights))
    output = "token_embd.weight" if "output.weight" not in file.tensors else "output.weight"
    for tensor, place in file.tensors.items():
        if "norm" in tensor or tensor.endswith("bias") or "gate_inp" in tensor or "position" in tensor:
            expected = "f32"
        elif weights == "q4_0" and tensor == output:
            expected = "q8_0"
        else:
            expected = weights
        assert place.format.name == expected, tensor
    assert file.metadata["general.file_type"] == {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2}[weights]


def test_rows_that_are_no_whole_blocks_are_kept_in_half_precision(words: Path, tmp_path: Path):
    reference("llama", hot=True, vocab_size=512).save_pretrained(tmp_path)  # 32 wide, 48 within
    model = load_model(tmp_path)
    path = _written(model, words, tmp_path, "q8_0")
    places = GgufFile(path).tensors
    assert places["blk.0.ffn_down.weight"].format.name == "f16"
    assert places["blk.0.ffn_up.weight"].format.name == "q8_0"
    again, down = _parameters(load_gguf(path)), "layers.0.feed_forward.down.weight"
    assert torch.equal(again[down], _parameters(model)[down].half())


@pytest.mark.parametrize("weights", ["q8_0", "q4_0"])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float64])
def test_quantized_weights_are_read_in_the_type_asked_for(
    weights: str, dtype: torch.dtype | None, words: Path, models: Path, tmp_path: Path
):
    model, form = model_of("qwen3", models), WRITTEN[weights]
    again = _parameters(load_gguf(_written(model, words, tmp_path, weights), dtype))
    assert {parameter.dtype for parameter in again.values()} == {dtype or torch.float32}
    key = "layers.1.feed_forward.up.weight"
    before = _parameters(model)[key]
    assert torch.equal(again[key], form.decode(form.encode(before)).view_as(before).to(dtype or torch.float32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_any_type_is_written(dtype: torch.dtype, words: Path, models: Path, tmp_path: Path):
    model = model_of("gemma3_text", models).to(dtype)
    again = _parameters(load_gguf(_written(model, words, tmp_path)))
    for name, before in _parameters(model).items():
        assert torch.allclose(again[name], before.float(), atol=2e-7, rtol=0)


def test_queries_lie_in_neighbouring_pairs_for_llama_and_in_halves_for_others(
    words: Path, models: Path, tmp_path: Path
):
    for name, dims in (("llama", 16), ("qwen2", 16)):
        model = model_of(name, models)
        stored = GgufFile(_written(model, words, tmp_path)).get("blk.0.attn_q.weight")
        query = _parameters(model)["layers.0.mixer.query.weight"]
        for head in range(4):
            for dim in range(dims):
                pair, side = divmod(dim, 2)
                source = pair + side * dims // 2 if name == "llama" else dim
                assert torch.equal(stored[head * dims + dim], query[head * dims + source])


def test_the_norms_of_gemma_hold_their_one(words: Path, models: Path, tmp_path: Path):
    model = model_of("gemma2", models)
    file = GgufFile(_written(model, words, tmp_path))
    stored = {name: file.get(name) for name in file.tensors if "norm" in name}
    assert len(stored) == 4 * 3 + 1
    ours = [one for name, one in sorted(_parameters(model).items()) if "norm" in name]
    assert sorted(one.sum().item() for one in stored.values()) == pytest.approx(
        sorted((one + 1).sum().item() for one in ours), rel=1e-6
    )


def test_load_takes_a_file(words: Path, models: Path, tmp_path: Path):
    model = model_of("qwen2", models)
    path = _written(model, words, tmp_path, "f16")
    assert groundup.load(path, torch.float32).config == model.config
    assert groundup.load(str(path)).embedding.weight.dtype == torch.float16
    with pytest.raises(UserError, match=r"missing\.gguf: there is no such file"):
        groundup.load(tmp_path / "missing.gguf")


# What llama.cpp cannot compute


@pytest.mark.parametrize("family", sorted(set(FAMILIES) & {"nanochat", "groundup", "palm", "gpt3"}))
def test_a_family_that_llama_cpp_does_not_know_is_named(family: str, words: Path, tmp_path: Path):
    with pytest.raises(
        UserError, match=f"GGUF has no place for a {family} model: of our families llama.cpp runs llama,"
    ):
        _written(hot_decoder(tiny_config(family)), words, tmp_path)
    assert list(tmp_path.iterdir()) == []


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a window that llama.cpp passes over": ("mistral", {}, "layers[0].mixer.window"),
    "windows in Qwen": ("qwen2 tied, windows", {"num_hidden_layers": 2}, "layers[1].mixer.window"),
    "another activation": ("llama exact gelu", {}, "layers[0].feed_forward.activation"),
    "dynamic scaling": ("llama dynamic", {}, "layers[0].mixer.rope.scaling"),
    "YaRN with other limits": ("llama yarn, all its keys", {}, "layers[0].mixer.rope.scaling.beta_fast"),
    "biases in Qwen 3": ("qwen3 biases, windows", {"use_sliding_window": False, "layer_types": None}, "mixer.bias"),
    "weights of experts not normalised": ("qwen3_moe", {}, "router.normalised"),
    "weights of experts normalised": ("qwen2_moe", {"norm_topk_prob": True}, "router.normalised"),
    "a tied head": ("qwen2_moe", {"tie_word_embeddings": True}, "tied_head"),
    "a head that is not tied": ("gemma untied", {}, "tied_head"),
    "dense layers among sparse ones": ("qwen2_moe some layers dense", {}, "layers[0].feed_forward"),
    "biases in Gemma": ("gemma biases", {}, "layers[0].mixer.bias"),
    "another scale of scores": ("gemma2", {}, "layers[0].mixer.scale"),
    "scores that are not capped": (
        "gemma2 no softcaps",
        {"query_pre_attn_scalar": 12},
        "layers[0].mixer.softcap",
    ),
    "no windows": ("gemma2 no windows", {"query_pre_attn_scalar": 12}, "wants a layer with a window in gemma2"),
    "heads wider than the model": ("qwen2", {"head_dim": 12}, "4 heads of 12 must make up the width of 32"),
    "scaling of both kinds": (
        "gemma3_text both kinds stretched",
        {"query_pre_attn_scalar": 12},
        "`rope.scaling.type` must be linear or none",
    ),
    "scores scaled by layer": ("gpt2 scaled by layer", {}, "layers[1].mixer.scale"),
    "llama 3's scaling in Qwen": (
        "qwen2",
        rotary("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
        "layers[0].mixer.rope.scaling",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_trait_that_llama_cpp_does_not_have_is_named(case: str, words: Path, tmp_path: Path):
    variant, changes, trait = REFUSED[case]
    folder, out = tmp_path / "model", tmp_path / "out"
    out.mkdir()
    reference(variant, hot=False, **{"vocab_size": 512} | changes).save_pretrained(folder)
    with pytest.raises(UserError) as refusal:
        _written(load_model(folder), words, out)
    assert trait in str(refusal.value)
    assert "has no place in GGUF" in str(refusal.value)
    assert list(out.iterdir()) == []


def test_a_window_beyond_the_longest_text_is_no_window(words: Path, tmp_path: Path):
    reference("mistral", hot=True, vocab_size=512, sliding_window=64).save_pretrained(tmp_path)
    again = load_gguf(_written(load_model(tmp_path), words, tmp_path))
    assert again.config.layers[0].attention.window is None


def test_numbers_too_large_for_half_precision_are_refused(words: Path, models: Path, tmp_path: Path):
    model = model_of("llama", models)
    with torch.no_grad():
        model.layers[1].mixer.value.weight[3, 5] = 1e5
    with pytest.raises(UserError, match=r"`blk\.1\.attn_v\.weight` has values that f16 cannot hold"):
        _written(model, words, tmp_path, "f16")
    assert list(tmp_path.iterdir()) == []
    _written(model, words, tmp_path, "bf16")
    with torch.no_grad():
        model.layers[1].mixer.value.weight[3, 5] = float("nan")
    for weights in WRITTEN:
        with pytest.raises(UserError, match=r"`blk\.1\.attn_v\.weight` has values that are not finite"):
            _written(model, words, tmp_path, weights)


# The file is whole or absent


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_cannot_be_finished_leaves_what_was_there(
    error: BaseException, words: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"older")
    encoded, calls = container._encoded, []

    def failing(entry: Any, tensor: torch.Tensor) -> Any:
        calls.append(entry)
        if len(calls) == 9:
            raise error
        return encoded(entry, tensor)

    monkeypatch.setattr(container, "_encoded", failing)
    with pytest.raises(type(error)):
        save_gguf(model_of("llama", models), words, path)
    assert [one.name for one in tmp_path.iterdir()] == ["model.gguf"]
    assert path.read_bytes() == b"older"


def test_a_file_that_does_not_hold_the_model_never_appears(
    words: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    encoded = container._encoded

    def off(entry: Any, tensor: torch.Tensor) -> Any:
        return encoded(entry, tensor.flip(-1) if entry.name == "blk.2.ffn_up.weight" else tensor)

    monkeypatch.setattr(container, "_encoded", off)
    with pytest.raises(RuntimeError, match=r"does not hold the model's `layers\.2\.feed_forward\.up\.weight`"):
        _written(model_of("llama", models), words, tmp_path, "q4_0")
    assert list(tmp_path.iterdir()) == []


# The verb


@torch.no_grad()
def test_a_run_is_exported_and_its_file_becomes_a_folder_again(
    words: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from groundup.formats.huggingface import save_model

    source, file, folder = tmp_path / "source", tmp_path / "model.gguf", tmp_path / "again"
    source.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (source / name).write_bytes((words / name).read_bytes())
    save_model(model_of("llama", models), source, bos_id=0, eos_ids=[1, 9], pad_id=2)
    assert main(["export", str(source), "--to", str(file), "--type", "f32"]) == 0
    assert main(["export", str(file), "--to", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(file), str(folder)]
    for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"):
        assert (folder / name).read_bytes() == (source / name).read_bytes(), name
    ids = random_ids(1, 16, vocabulary=512)
    assert torch.equal(load_model(folder)(ids), load_model(source)(ids))
    assert main(["export", str(file), "--to", str(folder)]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing", "--to", "x.gguf"], "missing: there is no such file or folder"),
        (["folder", "--to", "x.bin"], "ends in .gguf"),
        (["folder", "--to", "away/x.gguf"], "away: there is no such folder"),
        (["folder", "--to", "x.gguf"], "holds no model"),
        (["folder", "--to", "x.gguf", "--type", "q2"], "--type"),
    ],
)
def test_a_mistaken_export_says_what_would_be_right(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert main(["export", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_the_types_of_the_verb_are_those_that_are_written():
    assert list(TYPES) == list(WRITTEN)


def test_metadata_says_what_llama_cpp_asks_for(words: Path, models: Path, tmp_path: Path):
    found = GgufFile(_written(model_of("qwen3_moe", models), words, tmp_path, "q8_0")).metadata
    expected = {
        "general.architecture": "qwen3moe",
        "general.quantization_version": 2,
        "qwen3moe.block_count": 3,
        "qwen3moe.embedding_length": 64,
        "qwen3moe.expert_count": 5,
        "qwen3moe.expert_used_count": 2,
        "qwen3moe.expert_feed_forward_length": 32,
        "qwen3moe.attention.head_count": 4,
        "qwen3moe.attention.head_count_kv": 2,
        "qwen3moe.attention.key_length": 12,
        "qwen3moe.attention.layer_norm_rms_epsilon": 1e-3,
        "qwen3moe.rope.freq_base": 300.0,
    }
    assert {key: found[key] for key in expected} == expected
    assert json.loads(found["tokenizer.huggingface.json"]) == json.loads((words / "tokenizer.json").read_text())


# Files by other hands


@pytest.mark.parametrize("published", [True, False], ids=["Llama 3.1's scaling", "factors of any kind"])
@torch.no_grad()
def test_factors_on_frequencies_are_read(published: bool, tmp_path: Path):
    """Each frequency is divided by its factor, whether or not these are Llama 3.1's."""
    metadata, tensors = tiny_llama()
    metadata |= {"llama.rope.freq_base": 500_000.0, "llama.context_length": 131_072, "llama.rope.dimension_count": 8}
    metadata |= {"llama.attention.key_length": 8, "llama.attention.value_length": 8}
    for name, shape in (("q", (16, 8)), ("k", (8, 8)), ("v", (8, 8)), ("output", (8, 16))):
        tensors[f"blk.0.attn_{name}.weight"] = np.ones(shape)
    frequencies = 500_000.0 ** -(np.arange(4) / 4)
    # From the paper's code: wavelengths beyond 8192 positions are stretched by 8, those below 2048 are kept.
    factors = np.where(2 * np.pi / frequencies > 8192, 8.0, 1.0) if published else np.array([1.5, 3.0, 1.0, 7.0])
    if published:
        wavelength = 2 * np.pi / frequencies[2]
        assert 2048 < wavelength < 8192
        smooth = (8192 / wavelength - 1) / (4 - 1)
        factors[2] = 1 / ((1 - smooth) / 8 + smooth)
    (tmp_path / "model.gguf").write_bytes(build(metadata, tensors | {"rope_freqs.weight": factors}))
    model = load_gguf(tmp_path / "model.gguf", torch.float64)
    rope = model.config.layers[0].attention.rope
    assert rope is not None
    assert (rope.scaling == Llama3Scaling(8.0, 1.0, 4.0, 8192)) == published
    tables = rope_tables(rope, 8, torch.arange(32)[None], torch.float64)
    angles = np.arange(32)[:, None] * frequencies / factors
    assert np.allclose(tables.cosine[0, :, 0].numpy(), np.cos(angles), atol=1e-5)
    assert np.allclose(tables.sine[0, :, 0].numpy(), np.sin(angles), atol=1e-5)


def test_experts_of_a_file_are_mixtral(tmp_path: Path):
    metadata, tensors = tiny_llama()
    generator = np.random.default_rng(1)
    for name, shape in (("gate", (4, 12, 8)), ("up", (4, 12, 8)), ("down", (4, 8, 12))):
        del tensors[f"blk.0.ffn_{name}.weight"]
        tensors[f"blk.0.ffn_{name}_exps.weight"] = generator.normal(size=shape)
    tensors["blk.0.ffn_gate_inp.weight"] = generator.normal(size=(4, 8))
    metadata |= {"llama.expert_count": 4, "llama.expert_used_count": 2}
    (tmp_path / "model.gguf").write_bytes(build(metadata, tensors))
    model = load_gguf(tmp_path / "model.gguf")
    assert model.config.family == "mixtral"
    down = _parameters(model)["layers.0.feed_forward.experts.down.weight"]
    assert np.array_equal(down.numpy(), tensors["blk.0.ffn_down_exps.weight"].astype(np.float32))


class TestAgainstThePackageOfGgml:
    """ggml's own Python package reads what we write, and we what it writes."""

    def test_it_reads_our_files(self, words: Path, models: Path, tmp_path: Path):
        gguf = pytest.importorskip("gguf", reason="the package `gguf` is not installed: pip install groundup[llamacpp]")
        path = _written(model_of("mixtral", models), words, tmp_path, "q8_0")
        ours, theirs = GgufFile(path), gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
        assert fields.keys() == ours.metadata.keys()
        for key, value in ours.metadata.items():
            assert fields[key] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), key
        assert [tensor.name for tensor in theirs.tensors] == list(ours.tensors)
        for tensor in theirs.tensors:
            assert tuple(tensor.shape[::-1]) == ours.tensors[tensor.name].shape
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert np.array_equal(values.reshape(tensor.shape[::-1]), ours.get(tensor.name).float().numpy())

    def test_we_read_its_files(self, tmp_path: Path):
        gguf = pytest.importorskip("gguf", reason="the package `gguf` is not installed: pip install groundup[llamacpp]")
        metadata, tensors = tiny_llama()
        writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
        writer.add_name("another hand's")
        writer.add_vocab_size(10)
        writer.add_context_length(32)
        writer.add_embedding_length(8)
        writer.add_block_count(1)
        writer.add_feed_forward_length(12)
        writer.add_head_count(2)
        writer.add_head_count_kv(1)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_dimension_count(4)
        writer.add_rope_freq_base(300.0)
        writer.add_token_list([f"token {index}" for index in range(10)])
        writer.add_token_scores([-float(index) for index in range(10)])
        for name, array in tensors.items():
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        model = load_gguf(tmp_path / "model.gguf")
        (tmp_path / "ours.gguf").write_bytes(build(metadata, tensors))
        expected = load_gguf(tmp_path / "ours.gguf")
        assert model.config == expected.config
        assert all(map(torch.equal, _parameters(model).values(), _parameters(expected).values()))
