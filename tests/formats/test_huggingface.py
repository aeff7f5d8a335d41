"""The same folder gives the same logits here and in `transformers`, whoever wrote it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from tiny import heat, hot_decoder, random_ids, tiny_config
from torch import Tensor
from torch.overrides import TorchFunctionMode

from groundup.formats.huggingface import FAMILIES, load_model, save_model
from groundup.formats.keys import Keys
from groundup.model.config import ModelConfig
from groundup.model.initialise import initialise
from groundup.model.language_model import LanguageModel
from groundup.model.specs import Attention, Norm

REFERENCES = {"llama": "Llama", "nanochat": "NanoChat"}
ALL_FAMILIES = pytest.mark.parametrize("family", ["groundup", "llama", "nanochat"])
# The others have parts that no class in `transformers` has.
SHARED_FAMILIES = pytest.mark.parametrize("family", sorted(REFERENCES))
# Every value differs from the defaults of both libraries, so that a key which is read nowhere shows.
KEYS: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama one kv head": ("llama", {"num_key_value_heads": 1}),
    "llama all kv heads": ("llama", {"num_key_value_heads": 4}),
    "llama wide heads": ("llama", {"head_dim": 12}),
    "nanochat": ("nanochat", {}),
    "nanochat tied": ("nanochat", {"tie_word_embeddings": True}),
    "nanochat all kv heads": ("nanochat", {"num_key_value_heads": 4}),
    "nanochat low softcap": ("nanochat", {"final_logit_softcapping": 2.0}),
}


class Float64Everywhere(TorchFunctionMode):
    """Turns the reference's detours through float32 (norms, softmax, rotary tables) into float64.

    Without it `model.double()` still rounds to seven digits, too coarse to tell a small mistake from rounding.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.float:
            return args[0].double()
        wide = [torch.float64 if value is torch.float32 else value for value in args]
        return function(*wide, **{k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()})


def _reference(family: str, hot: bool, **changes: Any) -> Any:
    """A model of `transformers` with random weights: as it initialises them, or hot."""
    name = REFERENCES[family]
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**KEYS | changes))
    if hot:
        heat(model, seed=1)
    return model


@torch.no_grad()
def _their_logits(folder: Path, input_ids: Tensor) -> Tensor:
    with Float64Everywhere():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float64, attn_implementation="eager"
        )
        return model(input_ids).logits


@torch.no_grad()
def _our_logits(folder: Path, input_ids: Tensor) -> Tensor:
    return load_model(folder, torch.float64)(input_ids)


def _save(model: LanguageModel, folder: Path) -> None:
    save_model(model, folder, bos_id=1, eos_ids=[2, 3], pad_id=5)


def _assert_equal(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == theirs.dtype == torch.float64
    assert (ours - theirs).norm() <= 1e-9 * theirs.norm()


@pytest.mark.parametrize("hot", [False, True], ids=["default weights", "hot weights"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_their_folder_gives_equal_logits_here(variant: str, hot: bool, tmp_path: Path):
    family, changes = VARIANTS[variant]
    _reference(family, hot, **changes).save_pretrained(tmp_path)
    ids = random_ids(2, 40)
    _assert_equal(_our_logits(tmp_path, ids), _their_logits(tmp_path, ids))


@pytest.mark.parametrize("hot", [False, True], ids=["fresh weights", "hot weights"])
@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@SHARED_FAMILIES
def test_our_folder_gives_equal_logits_there(family: str, tied: bool, kv_heads: int, hot: bool, tmp_path: Path):
    config = replace(_with_unusual_values(tiny_config(family, kv_heads)), tied_head=tied)
    model = hot_decoder(config)
    if not hot:
        initialise(model, seed=0)
    _save(model, tmp_path)
    ids = random_ids(2, 40)
    with torch.no_grad():
        ours = model(ids)
    _assert_equal(ours, _their_logits(tmp_path, ids))
    assert torch.equal(_our_logits(tmp_path, ids), ours)


def _with_unusual_values(config: ModelConfig) -> ModelConfig:
    """Other values than any default: a key that is not written, or not read there, shows in the logits."""
    norm = replace(config.final_norm, eps=1e-3)
    layers = tuple(
        replace(
            layer,
            norm=norm,
            mixer=_with_unusual_mixer(layer.attention, norm),
        )
        for layer in config.layers
    )
    return replace(
        config,
        layers=layers,
        final_norm=norm,
        embedding_norm=config.embedding_norm and norm,
        logit_softcap=config.logit_softcap and 4.0,
    )


def _with_unusual_mixer(mixer: Attention, norm: Norm) -> Attention:
    wanted = mixer.query_key_norm
    assert mixer.rope is not None
    return replace(mixer, rope=replace(mixer.rope, theta=300.0), query_key_norm=wanted and replace(wanted, norm=norm))


@SHARED_FAMILIES
def test_a_saved_folder_says_there_how_to_use_the_model(family: str, tmp_path: Path):
    _save(hot_decoder(tiny_config(family), dtype=torch.float32), tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, [2, 3], 5)
    assert config.max_position_embeddings == 64
    assert config.architectures == [FAMILIES[family].architecture]


@ALL_FAMILIES
def test_a_saved_folder_says_where_generation_starts_and_stops(family: str, tmp_path: Path):
    _save(hot_decoder(tiny_config(family)), tmp_path)
    generation = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, [2, 3], 5)


@ALL_FAMILIES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_what_is_saved_comes_back_to_the_bit(family: str, dtype: torch.dtype, tmp_path: Path):
    model = hot_decoder(tiny_config(family), dtype=dtype)
    _save(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    weights = dict(loaded.named_parameters())
    for name, parameter in model.named_parameters():
        assert weights[name].dtype == dtype
        assert torch.equal(weights[name], parameter)


@SHARED_FAMILIES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_transformers_loads_the_type_that_was_saved(family: str, dtype: torch.dtype, tmp_path: Path):
    _save(hot_decoder(tiny_config(family), dtype=dtype), tmp_path)
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == dtype


@SHARED_FAMILIES
def test_rotary_base_of_transformers_4_and_5_is_read_alike(family: str, tmp_path: Path):
    _reference(family, hot=True).save_pretrained(tmp_path)
    ids = random_ids(2, 40)
    newer = _our_logits(tmp_path, ids)
    keys = json.loads((tmp_path / "config.json").read_text())
    assert keys["rope_parameters"]["rope_theta"] == 300.0

    def with_keys(**changes: Any) -> Tensor:
        kept = {key: value for key, value in keys.items() if key not in ("rope_parameters", "dtype")}
        (tmp_path / "config.json").write_text(json.dumps(kept | {"torch_dtype": "float32"} | changes))
        return _our_logits(tmp_path, ids)

    assert torch.equal(with_keys(rope_theta=300.0, rope_scaling=None), newer)
    assert not torch.equal(with_keys(rope_theta=301.0), newer)
    assert not torch.equal(with_keys(), newer)


def test_an_export_with_other_logits_never_passes_as_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def swap_two(tensors: dict[str, Tensor], *args: Any, **options: Any) -> None:
        query, key = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "qk")
        tensors[query], tensors[key] = tensors[key], tensors[query]
        save_file(tensors, *args, **options)

    monkeypatch.setattr("groundup.formats.tensor_files.save_file", swap_two)
    with pytest.raises(RuntimeError, match="does not give the outputs"):
        _save(hot_decoder(tiny_config("llama")), tmp_path)


@ALL_FAMILIES
def test_a_loaded_model_is_ready_to_use(family: str, tmp_path: Path):
    _save(hot_decoder(tiny_config(family)), tmp_path)
    model = load_model(tmp_path, torch.float32)
    assert isinstance(model, LanguageModel)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model(random_ids(1, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("said", [{}, {"no_rope_layers": None}], ids=["absent", "null"])
def test_smollm3_rotates_all_but_every_fourth_layer_where_a_file_does_not_say(said: dict[str, Any], tmp_path: Path):
    keys = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_hidden_layers": 9,
        "vocab_size": 8,
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "smollm3", **keys, **said}))
    expected = transformers.AutoConfig.from_pretrained(tmp_path).no_rope_layers
    layers = FAMILIES["smollm3"].read(Keys(keys | said)).layers
    assert [int(layer.attention.rope is not None) for layer in layers] == expected
