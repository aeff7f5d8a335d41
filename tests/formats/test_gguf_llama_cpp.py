"""What we write, llama.cpp reads: the same tokens, the same logits, the same chat template.

Needs llama-cpp-python, which compiles llama.cpp when it is installed (ten minutes or more):
`pip install groundup[llamacpp]`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf_models import MODELS, model_of, with_cut
from test_gguf_vocabulary import HARD
from tiny import random_ids

from groundup.formats.gguf.blocks import WRITTEN
from groundup.formats.gguf.model_file import load_gguf, save_gguf
from groundup.formats.huggingface import load_model, save_model

llama_cpp = pytest.importorskip(
    "llama_cpp", reason="llama-cpp-python is not installed: pip install groundup[llamacpp] compiles llama.cpp"
)
TIME = 24
# llama.cpp rounds activations to the type of the weights (to q8_0 for q4_0) before each product. Its logits differ from
# those of the same weights in single precision by at most this part of their norm.
TOLERANCE = {"f32": 2e-5, "f16": 5e-3, "bf16": 4e-2, "q8_0": 4e-2, "q4_0": 4e-2}


def _open(path: Path, **options: Any) -> Any:
    settings = {"n_ctx": 64, "n_batch": 64, "n_threads": 1, "n_threads_batch": 1, "logits_all": True, "verbose": False}
    # Keys and values in single precision: in half they alone would make a difference of a thousandth.
    kinds = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    return llama_cpp.Llama(str(path), **settings | kinds | options)


def _their_logits(path: Path, ids: list[int]) -> torch.Tensor:
    model = _open(path)
    model.eval(ids)
    return torch.from_numpy(np.array(model.scores[: len(ids)]))


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("hot", [False, True], ids=["default weights", "hot weights"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_are_those_of_the_model(name: str, hot: bool, words: Path, models: Path, tmp_path: Path):
    model, path = model_of(name, models, hot), tmp_path / "model.gguf"
    save_gguf(model, words, path, "f32")
    ids = random_ids(1, TIME, vocabulary=512)
    assert _distance(_their_logits(path, ids[0].tolist()), model(ids)[0]) <= TOLERANCE["f32"]


@pytest.mark.parametrize("weights", [name for name in WRITTEN if name != "f32"])
@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "gpt2"])
@torch.no_grad()
def test_logits_are_those_of_the_weights_as_they_were_stored(
    name: str, weights: str, words: Path, models: Path, tmp_path: Path
):
    path = tmp_path / "model.gguf"
    save_gguf(model_of(name, models, hot=False), words, path, weights)
    ids = random_ids(1, TIME, vocabulary=512)
    ours = load_gguf(path, torch.float32)(ids)[0]
    assert _distance(_their_logits(path, ids[0].tolist()), ours) <= TOLERANCE[weights]


@pytest.mark.parametrize("cut", ["gpt-2", "qwen2", "llama-bpe"])
def test_text_becomes_the_same_tokens_and_tokens_the_same_text(cut: str, words: Path, models: Path, tmp_path: Path):
    folder, path = with_cut(words, tmp_path / "words", cut), tmp_path / "model.gguf"
    save_gguf(model_of("llama", models), folder, path)
    theirs, ours = _open(path, vocab_only=True), transformers.AutoTokenizer.from_pretrained(folder)
    for text in HARD:
        for begin in (True, False):
            plain = ours(text, add_special_tokens=begin, split_special_tokens=True).input_ids
            assert theirs.tokenize(text.encode(), add_bos=begin, special=False) == plain, text
            special = ours(text, add_special_tokens=begin).input_ids
            assert theirs.tokenize(text.encode(), add_bos=begin, special=True) == special, text
        assert theirs.detokenize(plain).decode() == text or cut == "gpt-2"


def test_special_tokens_are_those_of_the_folder(words: Path, models: Path, tmp_path: Path):
    folder, path = with_cut(words, tmp_path / "words", "qwen2"), tmp_path / "model.gguf"
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 9]}))
    save_gguf(model_of("llama", models), folder, path)
    model = _open(path, vocab_only=True)
    assert (model.token_bos(), model.token_eos()) == (0, 1)
    vocabulary = llama_cpp.llama_model_get_vocab(model.model)
    assert llama_cpp.llama_vocab_eot(vocabulary) == 9
    assert llama_cpp.llama_vocab_pad(vocabulary) == 2
    assert [index for index in range(520) if llama_cpp.llama_vocab_is_control(vocabulary, index)] == list(range(10))
    assert {index for index in range(520) if llama_cpp.llama_vocab_is_eog(vocabulary, index)} >= {1, 9}


def test_the_chat_template_is_rendered_alike(words: Path, models: Path, tmp_path: Path):
    path = tmp_path / "model.gguf"
    save_gguf(model_of("llama", models), words, path)
    model = _open(path, vocab_only=True)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "  What is 1+1? \n"},
        {"role": "assistant", "content": " 2\n", "tool_call": "1+1"},
        {"role": "tool", "content": "2"},
        {"role": "user", "content": "Sure?"},
    ]
    formatter = llama_cpp.llama_chat_format.Jinja2ChatFormatter(
        template=model.metadata["tokenizer.chat_template"],
        eos_token="<|end_of_text|>",
        bos_token="<|begin_of_text|>",
        add_generation_prompt=True,
    )
    ours = transformers.AutoTokenizer.from_pretrained(words)
    expected = ours.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert formatter(messages=messages).prompt == expected


@torch.no_grad()
def test_a_file_that_llama_cpp_has_quantised_is_read(words: Path, models: Path, tmp_path: Path):
    """Its q4_0 and q4_k_m files hold other formats beside the one they are named for."""
    model = model_of("llama", models, hot=False)
    whole, ids = tmp_path / "whole.gguf", random_ids(1, TIME, vocabulary=512)
    save_gguf(model, words, whole, "f32")
    for kind in (llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0):
        path, settings = tmp_path / f"{kind}.gguf", llama_cpp.llama_model_quantize_default_params()
        settings.ftype, settings.nthread = kind, 1
        assert llama_cpp.llama_model_quantize(str(whole).encode(), str(path).encode(), settings) == 0
        ours = load_gguf(path, torch.float32)(ids)[0]
        assert _distance(_their_logits(path, ids[0].tolist()), ours) <= TOLERANCE["q8_0"]


@torch.no_grad()
def test_a_trained_preset_goes_from_its_folder_into_llama_cpp(words: Path, models: Path, tmp_path: Path):
    """The folder that training writes, with its own generation_config.json."""
    folder, path = with_cut(words, tmp_path / "folder", "qwen2"), tmp_path / "model.gguf"
    save_model(model_of("llama tied", models), folder, bos_id=0, eos_ids=[1, 9], pad_id=2)
    save_gguf(load_model(folder), folder, path, "f32")
    ids = random_ids(1, TIME, vocabulary=512)
    assert _distance(_their_logits(path, ids[0].tolist()), load_model(folder)(ids)[0]) <= TOLERANCE["f32"]
