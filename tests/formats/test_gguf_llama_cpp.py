"""What we write, llama.cpp reads: the same tokens, the same logits, the same chat template.

Needs llama-cpp-python, which compiles llama.cpp when it is installed (ten minutes or more):
`pip install groundup[llamacpp]`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf_models import ENCODERS, MODELS, model_of, with_cut
from references import reference
from test_gguf_vocabulary import HARD
from tiny import PRETRAINING, random_ids

from groundup.cli import main
from groundup.engine.generate import Generator
from groundup.engine.sampling import Sampling
from groundup.formats.gguf.blocks import WRITTEN
from groundup.formats.gguf.container import GgufFile
from groundup.formats.gguf.model_file import load_gguf, save_gguf
from groundup.formats.huggingface import load_model
from groundup.model.language_model import LanguageModel
from groundup.tokens import shards
from groundup.tokens.config import TokensConfig
from groundup.tokens.tokenizer import Tokenizer
from groundup.train import pretrain
from groundup.train.config import PretrainConfig

llama_cpp = pytest.importorskip(
    "llama_cpp", reason="llama-cpp-python is not installed: pip install groundup[llamacpp] compiles llama.cpp"
)
TIME = 24
# llama.cpp rounds activations to the type of the weights (to q8_0 for q4_0) before each product. Its logits differ from
# those of the same weights in single precision by at most this part of their norm.
TOLERANCE = {"f32": 1e-5, "f16": 2e-3, "bf16": 1e-2, "q8_0": 2e-2, "q4_0": 2e-2}
# It looks GELU up in a table of half precision.
GELU_TOLERANCE = 1e-3
# For BERT, too, by its tanh formula, where most models were trained with the exact one.
EXACT_GELU_TOLERANCE = 3e-3


def _open(path: Path, **options: Any) -> Any:
    settings = {"n_ctx": 64, "n_batch": 64, "n_threads": 1, "n_threads_batch": 1, "logits_all": True, "verbose": False}
    # Keys and values in single precision: in half they alone would make a difference of a thousandth.
    kinds = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    return llama_cpp.Llama(str(path), **settings | kinds | options)


def _their_logits(path: Path, ids: list[int]) -> torch.Tensor:
    model = _open(path)
    model.eval(ids)
    return torch.from_numpy(np.array(model.scores[: len(ids)]))


def _their_vectors(path: Path, ids: list[int]) -> torch.Tensor:
    """What an encoder gives for each token."""
    model = _open(path, embedding=True, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_NONE)
    batch = llama_cpp.llama_batch_get_one((llama_cpp.llama_token * len(ids))(*ids), len(ids))
    assert llama_cpp.llama_encode(model.ctx, batch) == 0
    flat = np.ctypeslib.as_array(llama_cpp.llama_get_embeddings(model.ctx), (len(ids), model.n_embd()))
    return torch.from_numpy(flat.copy())


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("hot", [False, True], ids=["default weights", "hot weights"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_are_those_of_the_model(name: str, hot: bool, words: Path, models: Path, tmp_path: Path):
    model, path = model_of(name, models, hot), tmp_path / "model.gguf"
    save_gguf(model, words, path, "f32")
    ids = random_ids(1, TIME, vocabulary=512)
    tolerance = GELU_TOLERANCE if name.startswith(("gemma", "gpt2")) else TOLERANCE["f32"]
    assert _distance(_their_logits(path, ids[0].tolist()), model(ids)[0]) <= tolerance


@pytest.mark.parametrize("weights", [name for name in WRITTEN if name != "f32"])
@pytest.mark.parametrize("name", [name for name in MODELS if " " not in name])
@torch.no_grad()
def test_logits_are_those_of_the_weights_as_they_were_stored(
    name: str, weights: str, words: Path, models: Path, tmp_path: Path
):
    path = tmp_path / "model.gguf"
    save_gguf(model_of(name, models, hot=False), words, path, weights)
    ids = random_ids(1, TIME, vocabulary=512)
    ours = load_gguf(path, torch.float32)(ids)[0]
    assert _distance(_their_logits(path, ids[0].tolist()), ours) <= TOLERANCE[weights]


@pytest.mark.parametrize("hot", [False, True], ids=["default weights", "hot weights"])
@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_vectors_are_those_of_the_encoder(name: str, hot: bool, words: Path, models: Path, tmp_path: Path):
    model, path = model_of(name, models, hot), tmp_path / "model.gguf"
    save_gguf(model, words, path, "f32")
    ids = random_ids(1, TIME, vocabulary=512)
    tolerance = GELU_TOLERANCE if name == "bert approximate gelu" else EXACT_GELU_TOLERANCE
    assert _distance(_their_vectors(path, ids[0].tolist()), model.encode(ids)[0]) <= tolerance


@pytest.mark.parametrize("weights", [name for name in WRITTEN if name != "f32"])
@pytest.mark.parametrize("name", ["bert", "distilbert"])
@torch.no_grad()
def test_vectors_are_those_of_the_weights_as_they_were_stored(
    name: str, weights: str, words: Path, models: Path, tmp_path: Path
):
    path = tmp_path / "model.gguf"
    save_gguf(model_of(name, models, hot=False), words, path, weights)
    ids = random_ids(1, TIME, vocabulary=512)
    ours = load_gguf(path, torch.float32).encode(ids)[0]
    assert _distance(_their_vectors(path, ids[0].tolist()), ours) <= TOLERANCE[weights]


MISTAKES: dict[str, Callable[[LanguageModel], object]] = {
    "the second kind of token": lambda model: _row_first(model.token_types, 1),
    "no kind of token": lambda model: model.token_types.weight.zero_(),
    "positions from 1 on": lambda model: _row_first(model.positions, 1),
    "no norm of the embedding": lambda model: model.embedding_norm.weight.fill_(1.0),
    "no bias of the values": lambda model: model.layers[1].mixer.value.bias.zero_(),
    "norms of a layer swapped": lambda model: _swap(
        model.layers[0].mixer_sum_norm, model.layers[0].feed_forward_sum_norm
    ),
    "another epsilon": lambda model: setattr(model.layers[2].mixer_sum_norm, "eps", 1e-5),
    "queries as keys": lambda model: _swap(model.layers[0].mixer.query, model.layers[1].mixer.query),
}


def _row_first(table: Any, row: int) -> None:
    table.weight.copy_(table.weight.roll(-row, 0))


def _swap(one: Any, other: Any) -> None:
    kept = one.weight.clone()
    one.weight.copy_(other.weight)
    other.weight.copy_(kept)


@pytest.mark.parametrize("mistake", MISTAKES)
@torch.no_grad()
def test_a_mistake_in_an_encoder_would_show(mistake: str, words: Path, models: Path, tmp_path: Path):
    model, path = model_of("bert approximate gelu" if "epsilon" in mistake else "bert", models), tmp_path / "model.gguf"
    save_gguf(model, words, path, "f32")
    MISTAKES[mistake](model)
    ids = random_ids(1, TIME, vocabulary=512)
    assert _distance(_their_vectors(path, ids[0].tolist()), model.encode(ids)[0]) > 3 * EXACT_GELU_TOLERANCE


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
        assert theirs.detokenize(plain).decode() == text


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


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q4_K_M", "Q5_K_M", "Q6_K"])
@torch.no_grad()
def test_a_file_that_llama_cpp_has_quantised_is_read(kind: str, words: Path, tmp_path: Path):
    """Most hold several formats, none of them the one that ours would have."""
    reference("llama", hot=False, hidden_size=256, intermediate_size=512, vocab_size=512).save_pretrained(tmp_path)
    whole, path, ids = tmp_path / "whole.gguf", tmp_path / "model.gguf", random_ids(1, TIME, vocabulary=512)
    save_gguf(load_model(tmp_path), words, whole, "f32")
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}"), 1
    assert llama_cpp.llama_model_quantize(str(whole).encode(), str(path).encode(), settings) == 0
    assert {place.format.name for place in GgufFile(path).tensors.values()} > {"f32"}
    ours = load_gguf(path, torch.float32)(ids)[0]
    assert _distance(_their_logits(path, ids[0].tolist()), ours) <= TOLERANCE["q8_0"]


@pytest.mark.parametrize("preset", ["llama", "gpt2"])
def test_a_model_trained_here_says_the_same_in_llama_cpp(
    preset: str, corpus_folder: Path, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """From text through training and `groundup export` to the same greedy continuation."""
    monkeypatch.setenv("GROUNDUP_QUIET", "1")
    stream, folder, path = tmp_path / "tokens", tmp_path / "model", tmp_path / "model.gguf"
    stream.mkdir()
    folder.mkdir()
    shards.run(TokensConfig(), stream, corpus=corpus_folder, tokenizer=words)
    pretrain.run(PretrainConfig(**PRETRAINING | {"preset": preset}), folder, tokens=stream, tokenizer=words)
    assert main(["export", str(folder), "--to", str(path), "--type", "f32"]) == 0
    prompt = Tokenizer.load(folder).encode("import ")
    generator = Generator(load_model(folder), stop_ids=[])
    expected = generator.generate([prompt], Sampling(max_tokens=24))[0]
    model = _open(path, logits_all=False)
    theirs = model.generate(prompt, temp=0.0, repeat_penalty=1.0, top_k=1)
    assert [next(theirs) for _ in range(24)] == list(expected)
