"""GGUF files that are damaged or lie: one sentence that names the file and what is wrong, whatever they claim."""

import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from raw_gguf import build, tiny_llama

from groundup.errors import UserError
from groundup.formats.gguf.model_file import load_gguf

QUERY, EMBEDDING = "blk.0.attn_q.weight", "token_embd.weight"
HUGE = 2**63 - 1


def _refusal(raw: bytes, tmp_path: Path) -> str:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(raw)
    with pytest.raises(UserError) as refusal:
        load_gguf(path)
    message = str(refusal.value)
    assert "hostile.gguf" in message
    assert "\n" not in message
    assert len(message) < 600
    return message


@torch.no_grad()
def test_a_file_by_another_hand_is_read(tmp_path: Path):
    """Without it the refusals below would prove nothing."""
    path = tmp_path / "model.gguf"
    metadata, tensors = tiny_llama()
    path.write_bytes(build(metadata, tensors, version=2, alignment=32))
    model = load_gguf(path)
    assert model.config.family == "llama"
    assert torch.equal(model.embedding.weight, torch.from_numpy(tensors[EMBEDDING]))
    assert torch.isfinite(model(torch.arange(10)[None])).all()


def test_other_alignments_are_read(tmp_path: Path):
    path = tmp_path / "model.gguf"
    metadata, tensors = tiny_llama()
    path.write_bytes(build(metadata | {"general.alignment": 64}, tensors, alignment=64))
    weight = load_gguf(path).layers[0].feed_forward.down.weight
    assert torch.equal(weight, torch.from_numpy(tensors["blk.0.ffn_down.weight"]))


@pytest.mark.parametrize(
    ("lies", "said"),
    [
        ({"magic": b"GGML"}, "does not begin with GGUF"),
        ({"version": 1}, "GGUF of version 1 is not read"),
        ({"version": 3 << 24}, "GGUF big-endian is not read"),
        ({"tensor_count": HUGE}, ""),
        ({"key_count": HUGE}, ""),
        ({"key_count": 11, "tensor_count": 13}, ""),
        ({"shapes": {QUERY: (HUGE, HUGE)}}, "does not lie within the file"),
        ({"shapes": {QUERY: (2**64 - 1, 8)}}, "cannot have the shape"),
        ({"shapes": {QUERY: (2**32, 2**32)}}, "does not lie within the file"),
        ({"shapes": {QUERY: (0, 8)}}, "cannot have the shape"),
        ({"shapes": {QUERY: (2, 2, 2, 2, 4)}}, "has 5 dimensions"),
        ({"shapes": {QUERY: ()}}, "has 0 dimensions"),
        ({"shapes": {QUERY: (8, 7)}}, "(8, 7), the configuration says (8, 8)"),
        ({"shapes": {QUERY: (64,)}}, f"`{QUERY}` has shape (64,)"),
        ({"kinds": {QUERY: 99}}, "is stored as type 99, which is not read; read are f32, f16"),
        ({"kinds": {QUERY: 8}}, "cannot have the shape (8, 8) as q8_0"),
        ({"offsets": {QUERY: HUGE - 31}}, "does not lie within the file"),
        ({"offsets": {QUERY: 2**40}}, "does not lie within the file"),
        ({"offsets": {QUERY: 4}}, "does not lie within the file"),
    ],
    ids=str,
)
def test_a_layout_that_lies_is_refused(lies: dict[str, Any], said: str, tmp_path: Path):
    assert said in _refusal(build(*tiny_llama(), **lies), tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"general.architecture": None}, "`general.architecture` is None"),
        ({"general.architecture": "mystery"}, "`general.architecture` is 'mystery'; known are llama,"),
        ({"general.architecture": ["llama"]}, "`general.architecture` is ['llama']"),
        ({"general.type": "adapter"}, "is of the type 'adapter'"),
        ({"split.count": 3}, "one part of several"),
        ({"general.alignment": 0}, "`general.alignment` must be a power of two"),
        ({"general.alignment": 48}, "`general.alignment` must be a power of two"),
        ({"general.alignment": "wide"}, "`general.alignment` must be a power of two"),
        ({"llama.embedding_length": None}, "key `llama.embedding_length` is missing"),
        ({"llama.embedding_length": 0}, "`embedding_length` must be a positive integer"),
        ({"llama.embedding_length": "wide"}, "`embedding_length` must be a positive integer, not 'wide'"),
        ({"llama.embedding_length": 2**31}, "`embedding_length` is 2147483648, more than any model has"),
        ({"llama.embedding_length": ("i32", -8)}, "`embedding_length` must be a positive integer, not -8"),
        ({"llama.embedding_length": ("u64", 2**64 - 1)}, "more than any model has"),
        ({"llama.block_count": 10**6}, "`block_count` is 1000000, more than the 512"),
        ({"llama.block_count": 2}, "tensor `blk.1.attn_k.weight` is missing"),
        ({"llama.context_length": ("u64", 2**63)}, "`context_length` is 9223372036854775808"),
        ({"llama.vocab_size": 11}, "`vocab_size` is 11, only 10 is supported"),
        ({"llama.attention.head_count": 0}, "`attention.head_count` must be a positive integer"),
        ({"llama.attention.head_count": 2**20}, "`rope.dimension_count` is 4, only 0 is supported"),
        ({"llama.attention.head_count": [2, 2]}, "`attention.head_count` must be a positive integer, not [2, 2]"),
        ({"llama.attention.head_count_kv": 3}, "must be a multiple of `kv_heads` (3)"),
        ({"llama.attention.key_length": 3, "llama.rope.dimension_count": 3}, "`head_dim` must be even"),
        ({"llama.attention.value_length": 8}, "`attention.value_length` is 8, only 4 is supported"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "must be a positive number, not nan"),
        ({"llama.rope.dimension_count": 2}, "`rope.dimension_count` is 2, only 4 is supported"),
        ({"llama.rope.freq_base": 0.0}, "`rope.freq_base` must be a positive number"),
        ({"llama.rope.scaling.type": "mystery"}, "`rope.scaling.type` must be one of none, linear, yarn"),
        ({"llama.rope.scaling.factor": float("inf")}, "`rope.scaling.factor` must be a positive number"),
        ({"llama.rope.scaling.attn_factor": 2.0}, "`rope.scaling.attn_factor` is 2.0"),
        ({"llama.mystery": 1}, "`llama.mystery` is not a key that llama has here"),
        ({"llama.expert_count": 4}, "key `llama.expert_used_count` is missing"),
        ({"llama.expert_count": 4, "llama.expert_used_count": 5}, "5 experts cannot be chosen from 4"),
        ({"x" * 300: ["text"] * 3, "llama.attention.causal": False}, "`attention.causal` is False"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_metadata_that_is_missing_unknown_or_absurd_is_named(changes: dict[str, Any], said: str, tmp_path: Path):
    metadata, tensors = tiny_llama()
    keys = {key: value for key, value in (metadata | changes).items() if value is not None}
    assert said in _refusal(build(keys, tensors), tmp_path)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda tensors: tensors.pop(QUERY), f"tensor `{QUERY}` is missing"),
        (lambda tensors: tensors.pop(EMBEDDING), f"tensor `{EMBEDDING}` is missing"),
        (lambda tensors: tensors.update(odd=np.ones(3)), "tensor `odd` has no place in a llama model of these keys"),
        (lambda tensors: tensors.update({"blk.0.attn_q.bias": np.ones(8)}), ""),
        (
            lambda tensors: tensors.update({"blk.1.ffn_up.weight": np.ones((12, 8))}),
            "`blk.1.ffn_up.weight` has no place",
        ),
        (lambda tensors: tensors.update({"rope_freqs.weight": np.array([1.0, -1.0])}), "must have positive, finite"),
        (lambda tensors: tensors.update({"rope_freqs.weight": np.array([1.0, np.nan])}), "must have positive, finite"),
    ],
)
def test_tensors_that_are_missing_or_unknown_are_named(
    edit: Callable[[dict[str, np.ndarray]], object], said: str, tmp_path: Path
):
    metadata, tensors = tiny_llama()
    edit(tensors)
    if said:
        assert said in _refusal(build(metadata, tensors), tmp_path)
        return
    path = tmp_path / "model.gguf"
    path.write_bytes(build(metadata, tensors))
    assert load_gguf(path).config.layers[0].attention.bias == ("query",)


def test_a_key_or_tensor_that_stands_there_twice_is_named(tmp_path: Path):
    metadata, tensors = tiny_llama()
    raw = build(metadata | {"llama.block_counX": 1}, tensors).replace(b"llama.block_counX", b"llama.block_count")
    assert "key `llama.block_count` stands there twice" in _refusal(raw, tmp_path)
    raw = build(metadata, tensors).replace(b"blk.0.attn_k.weight", b"blk.0.attn_v.weight")
    assert "tensor `blk.0.attn_v.weight` stands there twice" in _refusal(raw, tmp_path)


def test_names_that_are_no_text_are_refused(tmp_path: Path):
    raw = build(*tiny_llama())
    assert "is not UTF-8 text" in _refusal(raw.replace(b"llama.block_count", b"llama.block\xff\xfeount"), tmp_path)
    unknown = build(tiny_llama()[0] | {"llama.a\nb\x1b[31m": 1}, tiny_llama()[1])
    assert "\x1b" not in _refusal(unknown, tmp_path)


def test_a_list_longer_than_any_vocabulary_is_not_read(tmp_path: Path):
    metadata, tensors = tiny_llama()
    raw = build(metadata | {"tokenizer.ggml.tokens": ["a", "b"]}, tensors)
    count = raw.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens") + 8
    for claimed in (2**62, 2**40, 2**23):
        lying = raw[:count] + claimed.to_bytes(8, "little") + raw[count + 8 :]
        assert f"is a list of {claimed}" in _refusal(lying, tmp_path)
    lying = raw[:count] + (2**21).to_bytes(8, "little") + raw[count + 8 :]
    assert "cut short" in _refusal(lying, tmp_path)


def test_no_length_of_a_file_but_the_whole_is_accepted(tmp_path: Path):
    raw = build(*tiny_llama())
    for kept in [*range(0, 800, 13), *range(800, len(raw), 97), len(raw) - 1]:
        message = _refusal(raw[:kept], tmp_path)
        assert "cut short" in message or "is empty" in message


def test_whatever_byte_is_changed_the_file_is_read_or_refused_in_one_sentence(tmp_path: Path):
    """And nothing large is allocated on the way: the process may not grow by more than 256 MB."""
    metadata, tensors = tiny_llama()
    raw = build(metadata, tensors)
    header = raw.index(b"blk.0.ffn_down.weight") + 60
    chance, path = random.Random(0), tmp_path / "hostile.gguf"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for _ in range(1500):
        damaged = bytearray(raw)
        for _ in range(chance.choice((1, 1, 2))):
            damaged[chance.randrange(header)] = chance.choice((0, 1, 2, 8, 9, 127, 128, 255, chance.randrange(256)))
        path.write_bytes(damaged)
        try:
            load_gguf(path)
        except UserError as error:
            refused += 1
            assert "hostile.gguf" in str(error)
    assert refused > 800
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024


def test_other_kinds_of_files_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="there is no such file"):
        load_gguf(tmp_path / "absent.gguf")
    with pytest.raises(UserError, match="there is no such file"):
        load_gguf(tmp_path)
    assert "is empty" in _refusal(b"", tmp_path)
    assert "does not begin with GGUF" in _refusal(b"PK\x03\x04" + bytes(100), tmp_path)
