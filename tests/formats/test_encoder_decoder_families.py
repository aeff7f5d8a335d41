"""T5, Switch and Whisper give the logits of their reference in float64, whoever wrote the folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_decoders import SOURCE, TARGET, assert_equal, inputs_of, reference_pair, their_logits, their_model
from references import Float64Everywhere
from safetensors.torch import load_file, save_file
from tiny import random_ids
from torch import Tensor
from transformers import GenerationMixin
from variants_encoder_decoder import OWN_HEAD, VARIANTS

import groundup as gu
from groundup.errors import UserError
from groundup.formats.huggingface import load_model, save_model
from groundup.model.cache import KeyValueCache
from groundup.model.encoder_decoder import EncoderDecoder

Published = Callable[..., Path]
ALL = pytest.mark.parametrize("variant", VARIANTS)
OF_TEXT = pytest.mark.parametrize("variant", [variant for variant in VARIANTS if not variant.startswith("whisper")])
HEAT = pytest.mark.parametrize("hot", [False, True], ids=["default weights", "hot weights"])
IDS: dict[str, Any] = {"bos_id": 1, "eos_ids": [2], "pad_id": 0}


def _load(folder: Path, dtype: torch.dtype | None = torch.float64) -> EncoderDecoder:
    model = load_model(folder, dtype)
    assert isinstance(model, EncoderDecoder)
    return model


def _loaded(variant: str, folder: Path) -> EncoderDecoder:
    reference_pair(variant, hot=True).save_pretrained(folder)
    return _load(folder)


def _save(model: EncoderDecoder, folder: Path) -> Path:
    folder.mkdir()
    save_model(model, folder, **IDS)
    return folder


@HEAT
@ALL
@torch.no_grad()
def test_a_folder_gives_equal_logits_in_both_directions(variant: str, hot: bool, published: Published, tmp_path: Path):
    theirs = published(reference_pair, variant, hot)
    source, target = inputs_of(variant)
    model = _load(theirs)
    logits = model(source, target)
    assert_equal(logits, their_logits(variant, theirs, source, target))
    ours = _save(model, tmp_path / "ours")
    assert_equal(logits, their_logits(variant, ours, source, target))


@ALL
def test_what_is_saved_comes_back_to_the_bit(variant: str, published: Published, tmp_path: Path):
    folder = published(reference_pair, variant, True)
    model = _load(folder, dtype=None)
    again = _load(_save(model, tmp_path / "ours"), dtype=None)
    assert again.config == model.config
    for (name, one), (other_name, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)
    theirs, ours = (load_file(one / "model.safetensors") for one in (folder, tmp_path / "ours"))
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert json.loads((tmp_path / "ours" / "generation_config.json").read_text())["decoder_start_token_id"] == 3


@ALL
@torch.no_grad()
def test_however_the_target_comes_the_logits_are_the_same(variant: str, published: Published):
    """Cached = uncached, in chunks = at once, left-padded = unpadded, a batch = each row alone."""
    model = _load(published(reference_pair, variant, True))
    source, target = inputs_of(variant)
    expected = model(source, target)
    memory = model.read(source)
    for chunks in ([1] * TARGET, [7, 1, TARGET - 8]):
        cache = KeyValueCache(model.decoder)
        parts = [model(None, part, cache=cache, memory=memory) for part in target.split(chunks, dim=1)]
        assert_equal(torch.cat(parts, dim=1), expected)
    for row in range(2):
        assert_equal(model(source[row : row + 1], target[row : row + 1]), expected[row : row + 1])
    padded = torch.cat((torch.full((2, 5), 3), target), dim=1)
    mask = torch.ones_like(padded)
    mask[:, :5] = 0
    assert_equal(model(source, padded, target_mask=mask)[:, 5:], expected)
    cache = KeyValueCache(model.decoder)
    parts = [
        model(None, part, target_mask=mask[:, :end], cache=cache, memory=memory)
        for part, end in zip(padded.split([3, 9, 17], dim=1), (3, 12, 29), strict=True)
    ]
    assert_equal(torch.cat(parts, dim=1)[:, 5:], expected)


@OF_TEXT
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@torch.no_grad()
def test_a_padded_source_is_the_source(variant: str, left: bool, published: Published):
    model = _load(published(reference_pair, variant, True))
    source, target = inputs_of(variant)
    expected = model(source, target)
    parts, mask = [torch.full((2, 6), 5), source], torch.ones(2, SOURCE + 6, dtype=torch.long)
    mask[:, slice(6) if left else slice(SOURCE, None)] = 0
    padded = torch.cat(parts if left else parts[::-1], dim=1)
    assert_equal(model(padded, target, source_mask=mask), expected)
    both = torch.cat((torch.full((2, 4), 3), target), dim=1)
    target_mask = torch.ones_like(both)
    target_mask[:, :4] = 0
    assert_equal(model(padded, both, source_mask=mask, target_mask=target_mask)[:, 4:], expected)
    # A row of padding alone, as a batch that is filled up has, gives numbers too.
    mask[1] = 0
    assert torch.isfinite(model(padded, target, source_mask=mask)).all()


@ALL
@torch.no_grad()
def test_the_encoder_is_read_once_for_a_whole_generation(variant: str, published: Published):
    model = _load(published(reference_pair, variant, True))
    source, target = inputs_of(variant)
    memory, cache = model.read(source), KeyValueCache(model.decoder)
    model(None, target[:, :4], cache=cache, memory=memory)
    wrong = memory._replace(hidden_bsd=torch.full_like(memory.hidden_bsd, float("nan")))
    expected = model(source, target)
    assert_equal(model(None, target[:, 4:], cache=cache, memory=wrong), expected[:, 4:])


def _reference_greedy(variant: str, folder: Path, source: Tensor, begun: Tensor, count: int) -> list[list[int]]:
    """What `transformers` generates after the beginnings of targets, up to the first end."""
    with Float64Everywhere():
        model = their_model(variant, folder)
        # Without its cache, which has too few layers where the decoder has more than the encoder.
        options: dict[str, Any] = {"max_new_tokens": count, "do_sample": False, "num_beams": 1, "use_cache": False}
        # Whisper's own way to generate adds tasks and times to it.
        ids = GenerationMixin.generate(model, source, decoder_input_ids=begun, **options)
    rows = ids[:, begun.shape[1] :].tolist()
    return [row[: row.index(2)] if 2 in row else row for row in rows]


GENERATING = ["t5", f"t5 unscaled, gated, {OWN_HEAD}", "switch_transformers little room", "whisper head of its own"]


@pytest.mark.parametrize("variant", GENERATING)
@torch.no_grad()
def test_greedy_generation_is_that_of_the_reference(variant: str, tmp_path: Path):
    model = _loaded(variant, tmp_path)
    source = inputs_of(variant, batch=6)[0]
    begun = torch.cat((torch.full((6, 1), model.config.start_id), random_ids(6, 2, seed=7)), dim=1)
    expected = _reference_greedy(variant, _save(model, tmp_path / "ours"), source, begun, count=20)
    assert max(len(set(row)) for row in expected) > 4, "texts that go round in circles say little"
    sources = list(source) if variant.startswith("whisper") else source.tolist()
    pairs = [gu.Pair(one, target) for one, target in zip(sources, begun.tolist(), strict=True)]
    found = gu.Engine(model, stop_ids=[2]).generate(pairs, max_tokens=20)
    assert [one.tokens for one in found] == expected


@OF_TEXT
def test_files_may_hold_copies_of_the_embedding(variant: str, tmp_path: Path):
    model = _loaded(variant, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    copied = {f"{side}.embed_tokens.weight": tensors["shared.weight"].clone() for side in ("encoder", "decoder")}
    table = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    unused = {table: torch.ones(model.config.decoder.relative_positions.buckets, 4)}
    head = {} if "lm_head.weight" in tensors else {"lm_head.weight": tensors["shared.weight"].clone()}
    save_file(tensors | copied | unused | head, path, metadata={"format": "pt"})
    again = _load(tmp_path)
    assert again.config == model.config
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), again.parameters(), strict=True))
    copied["encoder.embed_tokens.weight"][0, 0] += 1
    save_file(tensors | copied, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"encoder\.embed_tokens\.weight"):
        _load(tmp_path)


def _change_keys(folder: Path, **changes: Any) -> None:
    """Set these keys of config.json, or leave out those that are None."""
    path = folder / "config.json"
    keys = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in keys.items() if value is not None}))


@torch.no_grad()
def test_keys_of_version_1_1_as_older_files_have_them(tmp_path: Path):
    """Without the keys of newer files: the activation follows from `feed_forward_proj`, the scale from the head."""
    variant = f"t5 unscaled, gated, {OWN_HEAD}"
    model = _loaded(variant, tmp_path)
    _change_keys(
        tmp_path,
        tie_word_embeddings=False,
        **dict.fromkeys(("dense_act_fn", "is_gated_act", "scale_decoder_outputs", "is_decoder", "dtype")),
        n_positions=512,
        output_past=True,
        task_specific_params={"summarization": {"prefix": "summarize: "}},
    )
    assert _load(tmp_path).config == model.config
    source, target = inputs_of(variant)
    assert_equal(model(source, target), their_logits(variant, tmp_path, source, target))


@torch.no_grad()
def test_keys_of_version_1_0_as_older_files_have_them(tmp_path: Path):
    model = _loaded("t5 published buckets", tmp_path)
    newer = ("relative_attention_max_distance", "feed_forward_proj", "tie_word_embeddings")
    _change_keys(tmp_path, **dict.fromkeys(("dense_act_fn", "is_gated_act", "scale_decoder_outputs", *newer)))
    assert _load(tmp_path).config == model.config


def test_keys_of_published_switch_and_whisper_files_are_understood(tmp_path: Path):
    model = _loaded("switch_transformers", tmp_path / "switch")
    _change_keys(
        tmp_path / "switch",
        batch_prioritized_routing=False,
        feed_forward_proj="relu",
        is_gated_act=False,
        num_selected_experts=1,
        router_type="tokens_masked",
    )
    assert _load(tmp_path / "switch").config == model.config
    model = _loaded("whisper", tmp_path / "whisper")
    _change_keys(
        tmp_path / "whisper",
        begin_suppress_tokens=[220, 50257],
        forced_decoder_ids=[[1, 50259]],
        max_length=448,
        num_hidden_layers=2,
        suppress_tokens=[1, 2],
    )
    assert _load(tmp_path / "whisper").config == model.config


@pytest.mark.parametrize(
    ("variant", "change", "named"),
    [
        ("t5", {"feed_forward_proj": "gated-softplus"}, "`feed_forward_proj` must be one of"),
        ("t5", {"dense_act_fn": "softplus"}, "`dense_act_fn` must be one of"),
        ("t5", {"relative_attention_num_buckets": 6}, "multiple of 4, not 6"),
        ("t5", {"relative_attention_max_distance": 4}, "more than 4"),
        ("t5", {"decoder_start_token_id": 64}, r"`start_id` \(64\)"),
        ("t5", {"rope_theta": 10_000.0}, "`rope_theta` is not a key"),
        ("switch_transformers", {"encoder_sparse_step": 3}, "`encoder_sparse_step` is 3, only 2 is supported"),
        ("switch_transformers", {"num_selected_experts": 2}, "`num_selected_experts` is 2"),
        ("switch_transformers", {"tie_word_embeddings": False}, "`tie_word_embeddings` is False"),
        ("switch_transformers", {"expert_capacity": 0}, "`expert_capacity` must be a positive integer"),
        ("whisper", {"decoder_attention_heads": 5}, "multiple of `decoder_attention_heads`"),
        ("whisper", {"max_source_positions": 0}, "`max_source_positions` must be a positive integer"),
    ],
)
def test_what_cannot_be_is_refused_by_name(variant: str, change: dict[str, Any], named: str, tmp_path: Path):
    reference_pair(variant, hot=False).save_pretrained(tmp_path)
    _change_keys(tmp_path, **change)
    with pytest.raises(UserError, match=named) as refusal:
        load_model(tmp_path)
    assert "config.json" in str(refusal.value)


@torch.no_grad()
def test_a_short_clip_is_read_with_the_first_positions(tmp_path: Path):
    """The reference takes clips of one length alone: so one of that length, with a table that is cut, is the truth."""
    reference = reference_pair("whisper", hot=True)
    reference.save_pretrained(tmp_path / "long")
    model = _load(tmp_path / "long")
    encoder = reference.model.encoder
    encoder.embed_positions = torch.nn.Embedding.from_pretrained(encoder.embed_positions.weight[:13].clone())
    reference.config.max_source_positions = encoder.config.max_source_positions = 13
    encoder.max_source_positions = 13
    reference.save_pretrained(tmp_path / "short")
    source, target = inputs_of("whisper")
    expected = their_logits("whisper", tmp_path / "short", source[..., :26], target)
    assert_equal(model(source[..., :26], target), expected)
    # An odd last frame has a position of its own.
    assert model.read(source[..., :25]).hidden_bsd.shape[1] == 13


@torch.no_grad()
def test_sound_of_another_shape_is_refused(tmp_path: Path):
    model = _loaded("whisper", tmp_path)
    source, target = inputs_of("whisper")
    with pytest.raises(ValueError, match=r"6 mel bins, at most 40 frames\), not \(2, 6, 41\)"):
        model(torch.cat((source, source[..., :1]), dim=2), target)
    with pytest.raises(ValueError, match="6 mel bins"):
        model(source[:, :5], target)
    with pytest.raises(ValueError, match="silence is part of it"):
        model(source, target, source_mask=torch.ones(2, 40))
    with pytest.raises(ValueError, match="needs a source"):
        model(None, target)


def test_stored_sinusoids_are_kept_as_they_are(tmp_path: Path):
    """Even where they are not what a formula gives: a file's numbers are the model's."""
    reference = reference_pair("whisper", hot=False)
    with torch.no_grad():
        reference.model.encoder.embed_positions.weight.add_(0.25)
    reference.save_pretrained(tmp_path)
    kept = _load(tmp_path, dtype=None).encoder.positions.weight
    assert torch.equal(kept, reference.model.encoder.embed_positions.weight)
    assert not kept.requires_grad


@torch.no_grad()
def test_a_source_of_another_length_does_not_move_the_target(tmp_path: Path):
    """Cross-attention has no positions: what the encoder saw farther left changes nothing in who is seen."""
    model = _loaded("t5", tmp_path)
    source, target = inputs_of("t5")
    memory = model.read(source)
    order = torch.randperm(SOURCE, generator=torch.Generator().manual_seed(0))
    shuffled = memory._replace(hidden_bsd=memory.hidden_bsd[:, order])
    assert_equal(model(None, target, memory=shuffled), model(None, target, memory=memory))
