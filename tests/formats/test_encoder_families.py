"""Every encoder, as masked language model and as classifier, gives the logits of its reference in float64."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from encoder_references import Batch, batch, distance, encoder, of_tokens, our_outputs, their_outputs
from variants_encoders import VARIANTS

from groundup.formats.huggingface import load_model, save_model
from groundup.model.classifier import SequenceClassifier
from groundup.model.language_model import LanguageModel

Published = Callable[..., Path]
ALL = pytest.mark.parametrize("variant", VARIANTS)
HEAT = pytest.mark.parametrize("hot", [False, True], ids=["default weights", "hot weights"])


def _save(model: LanguageModel | SequenceClassifier, folder: Path) -> Path:
    folder.mkdir()
    save_model(model, folder, bos_id=1, eos_ids=[2], pad_id=0)
    return folder


@HEAT
@ALL
def test_a_folder_gives_equal_logits_in_both_directions(variant: str, hot: bool, published: Published, tmp_path: Path):
    theirs = published(encoder, variant, hot)
    asked = batch(variant)
    model = load_model(theirs, torch.float64)
    logits = of_tokens(our_outputs(model, asked.inputs()), asked.mask)
    assert distance(logits, of_tokens(their_outputs(variant, theirs, asked.inputs()), asked.mask)) <= 1e-9
    ours = _save(model, tmp_path / "ours")
    assert distance(logits, of_tokens(their_outputs(variant, ours, asked.inputs()), asked.mask)) <= 1e-9


@ALL
def test_what_is_saved_comes_back_to_the_bit(variant: str, published: Published, tmp_path: Path):
    model = load_model(published(encoder, variant, True))
    again = load_model(_save(model, tmp_path / "ours"))
    assert again.config == model.config
    for (name, one), (other_name, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)


@ALL
def test_padding_on_either_side_changes_nothing_and_a_batch_is_its_rows(variant: str, published: Published):
    model, asked = load_model(published(encoder, variant, True), torch.float64), batch(variant)
    together = our_outputs(model, asked.inputs())
    left = Batch(*(None if part is None else _padded_left(part, asked.mask) for part in asked))
    from_left = our_outputs(model, left.inputs())
    for number in range(len(asked.ids)):
        alone = asked.row(number)
        expected = our_outputs(model, alone.inputs())
        length = alone.ids.shape[1]
        for found, columns in ((together, slice(None, length)), (from_left, slice(-length, None))):
            row = found[number : number + 1]
            assert distance(row[:, columns] if row.ndim == 3 else row, expected) <= 1e-9
        assert distance(our_outputs(model, {**alone.inputs(), "attention_mask": None}), expected) <= 1e-12


def _padded_left(part: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    rows = [row.roll(int((1 - real).sum())) for row, real in zip(part, mask, strict=True)]
    return torch.stack(rows)


@pytest.mark.parametrize("variant", ["bert", "roberta", "bert classifier", "roberta classifier"])
def test_the_kind_of_a_token_matters_and_is_0_where_nothing_is_said(variant: str, tmp_path: Path):
    encoder(variant, hot=True).save_pretrained(tmp_path)
    model, asked = load_model(tmp_path, torch.float64), batch(variant)
    plain = {"input_ids": asked.ids, "attention_mask": asked.mask}
    without = our_outputs(model, plain)
    assert torch.equal(our_outputs(model, {**plain, "token_type_ids": torch.zeros_like(asked.ids)}), without)
    assert distance(our_outputs(model, asked.inputs()), without) > 1e-3
    theirs = their_outputs(variant, tmp_path, plain)
    assert distance(of_tokens(without, asked.mask), of_tokens(theirs, asked.mask)) <= 1e-9


@pytest.mark.parametrize("variant", ["distilbert", "modernbert classifier"])
def test_kinds_of_tokens_are_refused_where_the_model_knows_none(variant: str, tmp_path: Path):
    encoder(variant, hot=True).save_pretrained(tmp_path)
    model, ids = load_model(tmp_path), batch(variant).ids
    with pytest.raises(ValueError, match="has no token types"):
        model(ids, token_type_ids=torch.zeros_like(ids))


def test_the_names_of_the_classes_survive_both_ways(tmp_path: Path):
    encoder("distilbert classifier", hot=False).save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    assert isinstance(model, SequenceClassifier)
    assert model.config.labels == ("bad", "so so", "good")
    config = transformers.AutoConfig.from_pretrained(_save(model, tmp_path / "ours"))
    assert config.id2label == {0: "bad", 1: "so so", 2: "good"}
    assert config.label2id == {"bad": 0, "so so": 1, "good": 2}
    assert config.problem_type == "multi_label_classification"
    assert config.architectures == ["DistilBertForSequenceClassification"]


def test_modernbert_is_written_with_the_keys_of_transformers_4_as_well(tmp_path: Path):
    encoder("modernbert every second layer, odd window", hot=False).save_pretrained(tmp_path / "theirs")
    keys = json.loads((_save(load_model(tmp_path / "theirs"), tmp_path / "ours") / "config.json").read_text())
    assert keys["global_attn_every_n_layers"] == 2
    assert (keys["global_rope_theta"], keys["local_rope_theta"]) == (300.0, 30.0)
    assert keys["local_attention"] == 6
