"""Files of BERT, RoBERTa, DistilBERT and ModernBERT as they were published: old keys, old names, copies, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from encoder_references import batch, distance, encoder, of_tokens, our_outputs, their_outputs
from safetensors.torch import load_file, save_file
from test_gpt_files import _read
from torch import Tensor

from groundup.errors import UserError
from groundup.formats.huggingface import load_model
from groundup.formats.keys import Keys
from groundup.formats.label_keys import read_labels

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "vocab_size": 50,
}
DISTILBERT: dict[str, Any] = {"dim": 32, "hidden_dim": 48, "n_heads": 4, "n_layers": 3, "vocab_size": 50}
# By family: what a file must say.
MINIMAL = {"bert": SIZES, "roberta": SIZES, "distilbert": DISTILBERT, "modernbert": SIZES}
NAMES = {"id2label": {"0": "NEGATIVE", "1": "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}}
# Files with the keys that published ones hold, sizes aside.
PUBLISHED: list[tuple[str, dict[str, Any]]] = [
    *MINIMAL.items(),
    (  # google-bert/bert-base-uncased
        "bert",
        SIZES
        | {
            "architectures": ["BertForMaskedLM"],
            "attention_probs_dropout_prob": 0.1,
            "gradient_checkpointing": False,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "initializer_range": 0.02,
            "layer_norm_eps": 1e-12,
            "max_position_embeddings": 40,
            "pad_token_id": 0,
            "position_embedding_type": "absolute",
            "transformers_version": "4.6.0.dev0",
            "type_vocab_size": 2,
            "use_cache": True,
        },
    ),
    (  # google-bert/bert-base-chinese
        "bert",
        SIZES
        | {
            "architectures": ["BertForMaskedLM"],
            "directionality": "bidi",
            "pooler_fc_size": 768,
            "pooler_num_attention_heads": 12,
            "pooler_num_fc_layers": 3,
            "pooler_size_per_head": 128,
            "pooler_type": "first_token_transform",
        },
    ),
    ("bert", SIZES | NAMES | {"architectures": ["BertForSequenceClassification"], "finetuning_task": "sst-2"}),
    ("bert", SIZES | {"architectures": ["BertForSequenceClassification"], "id2label": None, "problem_type": None}),
    ("bert", SIZES | {"architectures": ["BertForPreTraining"], "hidden_act": "gelu_new"}),
    (  # FacebookAI/roberta-base
        "roberta",
        SIZES
        | {
            "architectures": ["RobertaForMaskedLM"],
            "bos_token_id": 0,
            "eos_token_id": 2,
            "layer_norm_eps": 1e-05,
            "max_position_embeddings": 42,
            "pad_token_id": 1,
            "type_vocab_size": 1,
        },
    ),
    (
        "roberta",
        SIZES | {"architectures": ["RobertaForSequenceClassification"], "num_labels": 5, "problem_type": "regression"},
    ),
    (  # distilbert/distilbert-base-uncased
        "distilbert",
        DISTILBERT
        | {
            "activation": "gelu",
            "architectures": ["DistilBertForMaskedLM"],
            "attention_dropout": 0.1,
            "dropout": 0.1,
            "initializer_range": 0.02,
            "max_position_embeddings": 40,
            "qa_dropout": 0.1,
            "seq_classif_dropout": 0.2,
            "sinusoidal_pos_embds": False,
            "tie_weights_": True,
        },
    ),
    (  # distilbert/distilbert-base-uncased-finetuned-sst-2-english
        "distilbert",
        DISTILBERT
        | NAMES
        | {"architectures": ["DistilBertForSequenceClassification"], "finetuning_task": "sst-2", "output_past": True},
    ),
    (  # answerdotai/ModernBERT-base
        "modernbert",
        SIZES
        | {
            "architectures": ["ModernBertForMaskedLM"],
            "attention_bias": False,
            "classifier_activation": "gelu",
            "classifier_bias": False,
            "classifier_dropout": 0.0,
            "classifier_pooling": "mean",
            "cls_token_id": 1,
            "decoder_bias": True,
            "deterministic_flash_attn": False,
            "embedding_dropout": 0.0,
            "global_attn_every_n_layers": 2,
            "global_rope_theta": 150000.0,
            "gradient_checkpointing": False,
            "hidden_activation": "gelu",
            "initializer_cutoff_factor": 2.0,
            "layer_norm_eps": 1e-05,
            "local_attention": 8,
            "local_rope_theta": 9000.0,
            "mlp_bias": False,
            "mlp_dropout": 0.0,
            "norm_bias": False,
            "norm_eps": 1e-05,
            "position_embedding_type": "absolute",
            "reference_compile": None,
            "repad_logits_with_grad": False,
            "sep_token_id": 2,
            "sparse_pred_ignore_index": -100,
            "sparse_prediction": False,
            "tie_word_embeddings": True,
            "torch_dtype": "float32",
        },
    ),
    (
        "modernbert",
        SIZES | NAMES | {"architectures": ["ModernBertForSequenceClassification"], "classifier_pooling": "mean"},
    ),
]
CLASSIFIER = {"architectures": ["BertForSequenceClassification"]}
# Family, keys, and what the refusal names.
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("bert", {"is_decoder": True}, "is_decoder"),
    ("bert", {"add_cross_attention": True}, "add_cross_attention"),
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ("bert", {"position_embedding_type": "relative_key_query"}, "position_embedding_type"),
    ("bert", {"architectures": ["BertLMHeadModel"]}, "architectures"),
    ("bert", {"architectures": ["BertForTokenClassification"]}, "architectures"),
    ("bert", {"architectures": ["RobertaForMaskedLM"]}, "architectures"),
    ("bert", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ("bert", {"hidden_size": 33}, "hidden_size"),
    ("bert", {"type_vocab_size": 0}, "type_vocab_size"),
    ("bert", {"hidden_act": "mish"}, "hidden_act"),
    ("bert", CLASSIFIER | {"id2label": {"0": "a", "2": "b"}}, "id2label"),
    ("bert", CLASSIFIER | {"id2label": {"0": "a", "1": 1}}, "id2label"),
    ("bert", CLASSIFIER | {"id2label": {}}, "id2label"),
    ("bert", CLASSIFIER | NAMES | {"num_labels": 3}, "num_labels"),
    ("bert", CLASSIFIER | NAMES | {"label2id": {"NEGATIVE": 1, "POSITIVE": 0}}, "label2id"),
    ("bert", CLASSIFIER | {"problem_type": "ranking"}, "problem_type"),
    ("roberta", {"is_decoder": True}, "is_decoder"),
    ("roberta", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ("roberta", {"pad_token_id": None}, "pad_token_id"),
    ("roberta", {"pad_token_id": 50, "max_position_embeddings": 51}, "max_position_embeddings"),
    ("roberta", {"architectures": ["RobertaForPreTraining"]}, "architectures"),
    ("distilbert", {"is_decoder": True}, "is_decoder"),
    ("distilbert", {"n_heads": 5}, "dim"),
    ("modernbert", {"is_decoder": True}, "is_decoder"),
    ("modernbert", {"local_attention": 1}, "local_attention"),
    ("modernbert", {"local_rope_theta": None}, "local_rope_theta"),
    ("modernbert", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
    ("modernbert", {"classifier_pooling": "max"}, "classifier_pooling"),
    ("modernbert", {"layer_types": ["sliding_attention"]}, "layer_types"),
    ("modernbert", {"hidden_activation": "mish"}, "hidden_activation"),
]


@pytest.mark.parametrize(("family", "values"), PUBLISHED)
def test_published_keys_and_absent_ones_mean_what_transformers_takes_them_for(
    family: str, values: dict[str, Any], tmp_path: Path
):
    (tmp_path / "config.json").write_text(json.dumps(values | {"model_type": family}))
    transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    new = json.loads((tmp_path / "config.json").read_text())
    assert _read(family, values) == _read(family, new)


@pytest.mark.parametrize(("family", "keys", "named"), REFUSED)
def test_what_our_parts_cannot_express_is_refused_by_its_name(family: str, keys: dict[str, Any], named: str):
    with pytest.raises(ValueError, match=f"`{named}`"):
        _read(family, MINIMAL[family] | keys)


@pytest.mark.parametrize("family", MINIMAL)
@pytest.mark.parametrize("missing", ["vocab_size", "hidden_size"])
def test_a_size_that_is_missing_is_named(family: str, missing: str):
    missing = "dim" if (family, missing) == ("distilbert", "hidden_size") else missing
    with pytest.raises(KeyError, match=missing):
        _read(family, {key: value for key, value in MINIMAL[family].items() if key != missing})


def test_classes_are_named_by_number_whatever_their_order_and_however_many():
    names = {str(number): f"class {number}" for number in range(12)}
    backwards = dict(reversed(names.items()))
    assert read_labels(Keys({"id2label": backwards})) == tuple(names.values())
    assert read_labels(Keys({"_num_labels": 3})) == ("LABEL_0", "LABEL_1", "LABEL_2")
    # Some files rename the classes in one of the two alone.
    assert read_labels(Keys({**NAMES, "label2id": {"LABEL_0": 0, "LABEL_1": 1}})) == ("NEGATIVE", "POSITIVE")


def _rewrite(folder: Path, change: dict[str, Tensor] | None = None, renamed: dict[str, str] | None = None) -> None:
    """Add tensors to a folder, and change parts of all names."""
    path = folder / "model.safetensors"
    tensors = {}
    for name, tensor in load_file(path).items():
        for old, new in (renamed or {}).items():
            name = name.replace(old, new)
        tensors[name] = tensor
    save_file(tensors | (change or {}), path)


def _check(variant: str, folder: Path, expected: Tensor) -> None:
    asked = batch(variant)
    found = our_outputs(load_model(folder, torch.float64), asked.inputs())
    assert distance(of_tokens(found, asked.mask), expected) <= 1e-9


def _expected(variant: str, folder: Path) -> Tensor:
    encoder(variant, hot=True).save_pretrained(folder)
    asked = batch(variant)
    return of_tokens(their_outputs(variant, folder, asked.inputs()), asked.mask)


@pytest.mark.parametrize("variant", ["bert", "bert classifier"])
def test_googles_own_layout_is_read(variant: str, tmp_path: Path):
    """Norms of `gamma` and `beta`, stored positions, what pre-training alone needed, the head beside its embedding."""
    expected = _expected(variant, tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    more = {"bert.embeddings.position_ids": torch.arange(40)[None]}
    if variant == "bert":
        more |= {
            "cls.seq_relationship.weight": torch.ones(2, 32),
            "cls.seq_relationship.bias": torch.ones(2),
            "bert.pooler.dense.weight": torch.ones(32, 32),
            "bert.pooler.dense.bias": torch.ones(32),
            "cls.predictions.decoder.weight": held["bert.embeddings.word_embeddings.weight"].clone(),
            "cls.predictions.decoder.bias": held["cls.predictions.bias"].clone(),
        }
    _rewrite(tmp_path, more, {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"})
    _check(variant, tmp_path, expected)


@pytest.mark.parametrize(
    ("variant", "head", "original"),
    [
        ("bert", "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("bert", "cls.predictions.decoder.bias", "cls.predictions.bias"),
        ("roberta", "lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        ("roberta", "lm_head.decoder.bias", "lm_head.bias"),
        ("distilbert", "vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),
        ("modernbert", "decoder.weight", "model.embeddings.tok_embeddings.weight"),
    ],
)
def test_what_is_tied_may_lie_in_the_file_as_long_as_it_is_equal(
    variant: str, head: str, original: str, tmp_path: Path
):
    expected = _expected(variant, tmp_path)
    copy = load_file(tmp_path / "model.safetensors")[original]
    _rewrite(tmp_path, {head: copy.clone()})
    _check(variant, tmp_path, expected)
    copy[3] += 1
    _rewrite(tmp_path, {head: copy})
    with pytest.raises(UserError, match=f"`{head}`"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("variant", "names"),
    [
        ("roberta", ["roberta.embeddings.position_ids", "roberta.pooler.dense.weight", "roberta.pooler.dense.bias"]),
        ("distilbert", ["distilbert.embeddings.position_ids"]),
    ],
)
def test_tensors_that_nothing_needs_are_passed_over(variant: str, names: list[str], tmp_path: Path):
    expected = _expected(variant, tmp_path)
    _rewrite(tmp_path, {name: torch.ones(4) for name in names})
    _check(variant, tmp_path, expected)


@pytest.mark.parametrize(
    ("variant", "bias", "used"),
    [
        ("bert head of its own", "cls.predictions.bias", "cls.predictions.decoder.bias"),
        ("roberta head of its own", "lm_head.bias", "lm_head.decoder.bias"),
    ],
)
def test_the_bias_of_an_untied_head_is_read_by_either_name(variant: str, bias: str, used: str, tmp_path: Path):
    """transformers 4 knows it as one tensor and stores one, 5 stores two and computes with that of the matrix."""
    expected = _expected(variant, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert not torch.equal(tensors[bias], tensors[used])
    tensors[bias] = tensors.pop(used)
    save_file(tensors, tmp_path / "model.safetensors")
    _check(variant, tmp_path, expected)


@pytest.mark.parametrize("variant", ["bert classifier", "roberta classifier", "distilbert classifier"])
def test_a_classifier_needs_all_of_its_head(variant: str, tmp_path: Path):
    _expected(variant, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if "classifier" in name or "pooler" in name]:
        save_file({other: tensor for other, tensor in tensors.items() if other != name}, path)
        with pytest.raises(UserError, match=f"`{name}` is missing"):
            load_model(tmp_path)


def test_as_many_classes_as_the_config_names(tmp_path: Path):
    _expected("bert classifier", tmp_path)
    keys = json.loads((tmp_path / "config.json").read_text())
    keys["id2label"].pop("2")
    (tmp_path / "config.json").write_text(json.dumps(keys | {"label2id": None}))
    with pytest.raises(UserError, match=r"`classifier.weight` has shape \(3, 32\), the configuration says \(2, 32\)"):
        load_model(tmp_path)
