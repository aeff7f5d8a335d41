"""Adapters that PEFT saves give its logits in every family it can adapt; what is not understood is refused by name."""

import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from encoder_references import batch, encoder
from references import DECODERS, Float64Everywhere, reference
from safetensors.torch import load_file, save_file
from tiny import random_ids, tiny_config
from torch import Tensor

import groundup as gu
from groundup.errors import UserError
from groundup.formats.huggingface import load_language_model
from groundup.formats.peft import PREFIX, read_adapter
from groundup.model.config import ModelConfig
from groundup.model.lora import Adapter, Adapters, LowRank, LowRankTable

# The first variant of each family, and those in which queries, keys and values are joined in other ways.
VARIANTS = list({variant.split()[0]: variant for variant in reversed(DECODERS)}.values())[::-1]
VARIANTS += [variant for variant in DECODERS if variant.startswith("falcon ")]
# All linear layers but the head, unless PEFT does not adapt some of a family: it makes `target_parameters` of those of
# experts, and the reference code of state-space layers reads some matrices without calling their modules.
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
TARGETS = {
    "deepseek_v3": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],
    "jamba": [*ATTENTION, "in_proj", "x_proj", "out_proj", "gate_proj", "up_proj", "down_proj"],
    "mamba": ["in_proj", "x_proj"],
    "mamba2": ["in_proj"],
    "qwen3_next": [*ATTENTION, "in_proj_qkvz", "in_proj_ba", "out_proj", "shared_expert_gate"],
} | dict.fromkeys(("mixtral", "olmoe", "qwen3_moe"), ATTENTION)


def _save(folder: Path, out: Path, tables: bool = False, body: bool = False, **settings: Any) -> None:
    """Save an adapter with random matrices for the model of a folder, in float64.

    tables: with what PEFT saves beside it by default. body: for the class without a head.
    """
    torch.manual_seed(2)
    config = peft.LoraConfig(init_lora_weights=False, **settings)
    theirs = _their_model(folder)
    model = peft.get_peft_model(theirs.base_model if body else theirs, config)
    with torch.no_grad():  # of PEFT's own size, B would drown what the layers compute
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_embedding_B" in name:
                parameter.mul_(0.3)
    model.double().save_pretrained(out, save_embedding_layers="auto" if tables else False)


def _their_model(folder: Path) -> transformers.PreTrainedModel:
    attention = "sdpa" if json.loads((folder / "config.json").read_text()).get("alibi") else "eager"
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation=attention, experts_implementation="eager"
    )


@torch.no_grad()
def _their_logits(folder: Path, adapter: Path, input_ids: Tensor) -> Tensor:
    with Float64Everywhere():
        model = peft.PeftModel.from_pretrained(_their_model(folder), adapter).double()
        return model(input_ids=input_ids, use_cache=False).logits


@torch.no_grad()
def _our_logits(folder: Path, adapter: Path, input_ids: Tensor) -> Tensor:
    model = load_language_model(folder, torch.float64)
    plain = model(input_ids)
    adapters, added = Adapters(model), Adapter("one", read_adapter(adapter, model.config, torch.float64))
    adapters.add(added)
    with adapters.applied([added] * len(input_ids), model.device):
        logits = model(input_ids)
    assert not torch.allclose(logits, plain), "the adapter changes nothing"
    return logits


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_linear_layer_of_every_family_is_changed_as_peft_does(variant: str, tmp_path: Path):
    folder, adapter = tmp_path / "model", tmp_path / "adapter"
    reference(variant, hot=True).save_pretrained(folder)
    _save(folder, adapter, target_modules=TARGETS.get(variant, "all-linear"), r=3, lora_alpha=5)
    ids = random_ids(2, 24)
    ours, theirs = _our_logits(folder, adapter, ids), _their_logits(folder, adapter, ids)
    assert ours.dtype == theirs.dtype == torch.float64
    assert (ours - theirs).norm() <= 1e-9 * theirs.norm()


@pytest.mark.parametrize("variant", VARIANTS)
def test_embedding_and_head_of_every_family_are_changed_as_peft_does(variant: str, tmp_path: Path):
    """Where the two are one matrix, each has an adapter of its own still."""
    folder, adapter = tmp_path / "model", tmp_path / "adapter"
    theirs = reference(variant, hot=True)
    theirs.save_pretrained(folder)
    ends = theirs.get_input_embeddings(), theirs.get_output_embeddings()
    names = [name for name, module in theirs.named_modules() if module in ends]
    assert len(names) == 2
    _save(folder, adapter, tables=True, target_modules=names, r=3, lora_alpha=5)
    ids = random_ids(2, 24)
    expected = _their_logits(folder, adapter, ids)
    assert (_our_logits(folder, adapter, ids) - expected).norm() <= 1e-9 * expected.norm()


@pytest.mark.parametrize("targets", [["embed_tokens"], "embed_tokens|.*q_proj"], ids=["by name", "described"])
def test_an_adapter_of_a_tied_embedding_can_be_the_heads_too(targets: list[str] | str, tmp_path: Path):
    """PEFT then saves it twice, and names only the embedding."""
    folder, adapter = tmp_path / "model", tmp_path / "adapter"
    reference("gemma", hot=True).save_pretrained(folder)
    _save(folder, adapter, tables=True, target_modules=targets, ensure_weight_tying=True, r=3, lora_alpha=5)
    ids = random_ids(2, 24)
    expected = _their_logits(folder, adapter, ids)
    assert (_our_logits(folder, adapter, ids) - expected).norm() <= 1e-9 * expected.norm()
    path = adapter / "adapter_config.json"
    settings = json.loads(path.read_text())
    assert settings["ensure_weight_tying"]
    if isinstance(settings["target_modules"], list):
        path.write_text(json.dumps(settings | {"ensure_weight_tying": False}))
        with pytest.raises(UserError, match="changes `lm_head`, which `target_modules` in"):
            _read(adapter, folder)


@pytest.mark.parametrize("variant", ["llama", "gpt2", "gpt_neox", "opt", "falcon", "mamba"])
def test_an_adapter_of_a_model_without_its_head_is_one_of_the_whole(variant: str, tmp_path: Path):
    """Its names begin behind what the body is called in the whole."""
    folder, whole, body = tmp_path / "model", tmp_path / "whole", tmp_path / "body"
    reference(variant, hot=True).save_pretrained(folder)
    for out in (whole, body):
        _save(folder, out, body=out == body, target_modules=TARGETS.get(variant, "all-linear"), r=3, lora_alpha=5)
    found, expected = _read(body, folder), _read(whole, folder)
    assert not set(load_file(body / "adapter_model.safetensors")) & set(load_file(whole / "adapter_model.safetensors"))
    assert found.keys() == expected.keys() and len(found) >= 2
    for name, one in found.items():
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(one, expected[name], strict=True))


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert"])
@torch.no_grad()
def test_encoders_are_changed_as_peft_does(name: str, tmp_path: Path):
    """Their vectors, by an adapter of the body alone for a folder with and without a head; logits, by one of all."""
    ids = batch(name).ids[:1]
    for variant in (name, f"{name} without a head"):
        folder, adapter = tmp_path / variant / "model", tmp_path / variant / "adapter"
        encoder(variant, hot=True).save_pretrained(folder)
        expected_d = _their_outputs(transformers.AutoModel, folder, adapter, ids).last_hidden_state[0].mean(0)
        engine = gu.Engine(load_language_model(folder, torch.float64), stop_ids=[])
        (plain_d,) = engine.embed(ids.tolist())
        engine.add_adapter("one", adapter)
        (found_d,) = engine.embed(ids.tolist(), adapter="one")
        assert not torch.allclose(plain_d, found_d)
        assert (found_d - expected_d).norm() <= 1e-9 * expected_d.norm()
    folder, adapter = tmp_path / name / "model", tmp_path / "whole"
    expected = _their_outputs(transformers.AutoModelForMaskedLM, folder, adapter, ids).logits
    assert (_our_logits(folder, adapter, ids) - expected).norm() <= 1e-9 * expected.norm()


def _their_outputs(kind: Any, folder: Path, out: Path, input_ids: Tensor) -> Any:
    """Of an encoder with an adapter of its embedding, head and every linear map that is computed, which is saved."""
    with Float64Everywhere():
        theirs = kind.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
        ends = theirs.get_input_embeddings(), theirs.get_output_embeddings()
        names = [
            name
            for name, module in theirs.named_modules()
            if module in ends or (isinstance(module, torch.nn.Linear) and "pooler" not in name)
        ]
        torch.manual_seed(2)
        config = peft.LoraConfig(r=3, lora_alpha=1, target_modules=names, init_lora_weights=False)
        model = peft.get_peft_model(theirs, config).double().eval()
        model.save_pretrained(out)
        return model(input_ids=input_ids)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    reference("llama", hot=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    reference("gpt2", hot=True).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("by_root", [False, True], ids=["alpha / r", "alpha / √r"])
def test_ranks_and_alphas_of_their_own_by_name(llama: Path, by_root: bool, tmp_path: Path):
    """The first name that fits counts, a longer one says which layer; the others have those of all."""
    _save(
        llama,
        tmp_path,
        r=4,
        lora_alpha=6,
        use_rslora=by_root,
        target_modules=["q_proj", "v_proj", "down_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 2, "q_proj": 5},
        alpha_pattern={"proj": 50, "layers.0.mlp": 60, "v_proj": 1.5, "layers.0.mlp.down_proj": 11},
    )
    ids = random_ids(2, 12)
    torch.testing.assert_close(
        _our_logits(llama, tmp_path, ids), _their_logits(llama, tmp_path, ids), rtol=1e-10, atol=1e-10
    )


def test_some_layers_alone(llama: Path, tmp_path: Path):
    _save(llama, tmp_path, target_modules=["q_proj"], layers_to_transform=[1])
    changes = _read(tmp_path, llama)
    assert list(changes) == ["layers.1.mixer.query"]


def test_a_module_that_is_three_of_ours_shares_its_first_matrix(gpt2: Path, tmp_path: Path):
    _save(gpt2, tmp_path, target_modules=["c_attn"], r=3, lora_alpha=3)
    changes = _read(tmp_path, gpt2)
    parts = [changes[f"layers.0.mixer.{name}"] for name in ("query", "key", "value")]
    found = load_file(tmp_path / "adapter_model.safetensors")
    prefix = "base_model.model.transformer.h.0.attn.c_attn.lora_"
    assert all(torch.equal(part.down_ri, found[f"{prefix}A.weight"]) for part in parts)
    assert torch.equal(torch.cat([part.up_or for part in parts]), found[f"{prefix}B.weight"])


def _read(adapter: Path, folder: Path) -> dict[str, LowRank | LowRankTable]:
    config = load_language_model(folder).config
    assert isinstance(config, ModelConfig)
    return read_adapter(adapter, config, torch.float64)


BROKEN_KEYS = [
    ({"peft_type": "IA3"}, "`peft_type` must be one of LORA, not 'IA3'"),
    ({"peft_type": None}, "`peft_type` must be one of LORA, not None"),
    ({"use_dora": True}, "`use_dora` is True, which is not supported"),
    ({"modules_to_save": ["lm_head"]}, "`modules_to_save` is ['lm_head'], which is not supported"),
    (
        {"target_parameters": ["experts.down_proj"]},
        "`target_parameters` is ['experts.down_proj']; adapters here change layers that every token passes through, no",
    ),
    ({"bias": "all"}, "`bias` is 'all', only 'none' is supported"),
    ({"init_lora_weights": "pissa_niter_16"}, "`init_lora_weights` is 'pissa_niter_16', which changes the model's own"),
    ({"r": 0}, "`r` must be a positive integer, not 0"),
    ({"lora_alpha": "8"}, "`lora_alpha` must be a positive number, not '8'"),
    ({"rank_pattern": {"q_proj|v_proj": 4}}, "`rank_pattern` has 'q_proj|v_proj'; only plain names are supported"),
    ({"alpha_pattern": {"q_proj": -1}}, "`alpha_pattern.q_proj` must be a positive number, not -1"),
    ({"use_new_trick": True}, "`use_new_trick` is not a key that an adapter has here"),
    ({"target_modules": ["q_proj"]}, "changes `model.layers.0.self_attn.v_proj`, which `target_modules` in"),
    ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "has no tensors for `o_proj`, which `target_modules` in"),
]


@pytest.fixture
def adapter(llama: Path, tmp_path: Path) -> Path:
    _save(llama, tmp_path / "adapter", target_modules=["q_proj", "v_proj"], r=2)
    return tmp_path / "adapter"


@pytest.mark.parametrize(("keys", "message"), BROKEN_KEYS, ids=[next(iter(keys)) for keys, _ in BROKEN_KEYS])
def test_a_key_that_is_not_understood_is_named(keys: dict[str, Any], message: str, adapter: Path, llama: Path):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    with pytest.raises(UserError, match=re.escape(message)):
        _read(adapter, llama)


@pytest.mark.parametrize("key", ["r", "lora_alpha", "peft_type"])
def test_a_missing_key_is_named(key: str, adapter: Path, llama: Path):
    path = adapter / "adapter_config.json"
    values = json.loads(path.read_text())
    del values[key]
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"key `{key}` is missing"):
        _read(adapter, llama)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj"
BROKEN_TENSORS = {
    "missing": (lambda found: found.pop(f"{FIRST}.lora_B.weight"), f"tensor `{FIRST}.lora_B.weight` is missing"),
    "shape": (
        lambda found: found.update({f"{FIRST}.lora_A.weight": torch.ones(3, 32)}),
        f"tensor `{FIRST}.lora_A.weight` has shape (3, 32), not (2, 32)",
    ),
    "integers": (
        lambda found: found.update({f"{FIRST}.lora_A.weight": torch.ones(2, 32, dtype=torch.int64)}),
        f"tensor `{FIRST}.lora_A.weight` is of torch.int64",
    ),
    "unknown": (
        lambda found: found.update({f"{FIRST}.lora_magnitude_vector": torch.ones(2)}),
        f"tensor `{FIRST}.lora_magnitude_vector` is not called `base_model.model.….lora_A.weight` or",
    ),
    "another layer": (
        lambda found: found.update({"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.ones(2)}),
        "changes `model.layers.7.self_attn.q_proj`, which is no linear layer, embedding or head of",
    ),
    "twice": (
        lambda found: found.update(
            {name.replace("model.model.", "model."): one.clone() for name, one in found.items()}
        ),
        "changes `model.layers.0.self_attn.q_proj` twice, under two names",
    ),
    "none": (lambda found: found.clear(), "holds no tensors"),
}


@pytest.mark.parametrize("kind", BROKEN_TENSORS)
def test_a_tensor_that_is_not_understood_is_named(kind: str, adapter: Path, llama: Path):
    change, message = BROKEN_TENSORS[kind]
    path = adapter / "adapter_model.safetensors"
    found = load_file(path)
    change(found)
    save_file(found, path)
    with pytest.raises(UserError, match=re.escape(message)):
        _read(adapter, llama)


def test_an_adapter_of_another_family_is_refused(gpt2: Path, llama: Path, tmp_path: Path):
    _save(gpt2, tmp_path, target_modules=["c_attn"])
    with pytest.raises(UserError, match=r"changes `transformer\.h\.0\.attn\.c_attn`, which is no linear layer"):
        _read(tmp_path, llama)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_adapters_of_single_experts_are_refused_by_name(family: str, llama: Path, tmp_path: Path):
    """As PEFT saved them before transformers 5."""
    folder, adapter = tmp_path / "model", tmp_path / "adapter"
    reference(family, hot=True).save_pretrained(folder)
    _save(folder, adapter, target_modules=["q_proj"], r=2)
    name = "block_sparse_moe.experts.1.w2" if family == "mixtral" else "mlp.experts.1.down_proj"
    path, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    module = f"model.layers.0.{name}"
    one = {f"{PREFIX}{module}.lora_A.weight": torch.ones(2, 48), f"{PREFIX}{module}.lora_B.weight": torch.ones(32, 2)}
    save_file(load_file(path) | one, path)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": ["q_proj", name.split(".")[-1]]}))
    with pytest.raises(UserError, match=re.escape(f"changes `{module}`, a matrix of an expert: adapters here change")):
        _read(adapter, folder)


def test_a_table_beside_an_adapter_must_be_that_of_the_model(llama: Path, tmp_path: Path):
    _save(llama, tmp_path, tables=True, target_modules=["embed_tokens", "q_proj"])
    path, name = tmp_path / "adapter_model.safetensors", "base_model.model.model.{}.base_layer.weight"
    found, table = load_file(path), name.format("embed_tokens")
    save_file(found | {table: found[table][1:].clone()}, path)
    with pytest.raises(UserError, match=r"embed_tokens\.base_layer\.weight` has shape \(63, 32\), not \(64, 32\)"):
        _read(tmp_path, llama)
    bias = table.replace("weight", "bias")
    save_file(found | {bias: torch.ones(63)}, path)
    with pytest.raises(UserError, match=r"embed_tokens\.base_layer\.bias` has shape \(63,\), not \(64,\)"):
        _read(tmp_path, llama)
    for layer in ("layers.0.self_attn.q_proj", "layers.0.self_attn.v_proj"):
        save_file(found | {name.format(layer): torch.ones(32, 32)}, path)
        with pytest.raises(UserError, match="belongs to no embedding or head that the adapter changes"):
            _read(tmp_path, llama)


def test_a_head_that_induction_reads_too_is_refused(tmp_path: Path):
    """Its rows raise the logits of followers beside the product, which an adapter would change alone."""
    config = tiny_config("groundup")
    name, width, rows = f"{PREFIX}lm_head.lora_", config.table_width, config.vocab_size
    save_file(
        {f"{name}A.weight": torch.ones(2, width), f"{name}B.weight": torch.ones(rows, 2)},
        tmp_path / "adapter_model.safetensors",
    )
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["lm_head"], "bias": "none"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    assert list(read_adapter(tmp_path, tiny_config("llama"), torch.float64)) == ["head_product"]
    with pytest.raises(UserError, match="changes `lm_head`, which is no linear layer, embedding or head of a groundup"):
        read_adapter(tmp_path, config, torch.float64)


def test_pickles_are_never_opened(adapter: Path, llama: Path):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors; adapter_model\.bin is no replacement"):
        _read(adapter, llama)
