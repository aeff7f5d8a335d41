"""What we write, llama.cpp reads: the same tokens, the same logits, the same chat template.

Needs llama-cpp-python, which compiles llama.cpp when it is installed (ten minutes or more):
`pip install groundup[llamacpp]`.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from gguf_models import ENCODERS, MODELS, model_of, with_cut
from gguf_tokenizers import sentencepiece, wordpiece
from references import reference
from test_gguf_vocabulary import HARD
from tiny import PRETRAINING, greedy, random_ids

from groundup.cli import main
from groundup.formats.gguf.blocks import WRITTEN
from groundup.formats.gguf.container import GgufFile, write_gguf
from groundup.formats.gguf.model_file import load_gguf, save_gguf
from groundup.formats.gguf.vocabulary import vocabulary_of_folder
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
# It looks GELU up in a table of half precision; the tanh formula, in BERT for the exact one too.
GELU_TOLERANCE = 1e-3
# Beside `HARD`, but for what `OTHER_WORDS` are examples of.
HARD_WORDS = [
    *(text for text in HARD if len(text) < 300 and "한" not in text),
    "unaffable running élan vital, Ångström; señor façade",
    "ÜBER naïve CAFÉ École e\u0301lan",
    "中文 句子漢字 日本語テキスト",
    "Привет, МИР! Ελληνικά",
    "qqqq zzzzjjj 😀 runner",
    "word\u00adsoft\u200bzero \u00a0nbsp\u0085\u2028x",
    "5€ £3 ©2024 ½ ™ a+b=c <x> ~`^|$ ١٢٣ ①②",
    "[CLS] the [MASK] runner[SEP] [UNK]",
]
# Other pieces: a word of more than 100 letters, the mark itself, marks with a width, syllables made of letters.
OTHER_WORDS = ["a" * 101, "a▁b", "க ொ", "한국어 문장"]
HARD_SENTENCES = [
    *HARD,
    " lead",
    "   three lead",
    "trail  ",
    "tab\tnew\nline\r\n",
    "a▁b ▁c",
    "runner runs 漢字かな, Привет мир; naïve façade",
    "unknown: ↯ 𝄞 ஔ 😀",
    "<|turn|>after<|turn|> x <|turn|>",
    "</s> hi <unk>",
    "unaffable unaffordable affordable",
]


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
    tokens = (llama_cpp.llama_token * len(ids))(*ids)  # a batch does not keep them alive
    assert llama_cpp.llama_encode(model.ctx, llama_cpp.llama_batch_get_one(tokens, len(ids))) == 0
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
    assert _distance(_their_vectors(path, ids[0].tolist()), model.encode(ids)[0]) <= GELU_TOLERANCE


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
    "another epsilon": lambda model: setattr(model.layers[2].feed_forward_sum_norm, "eps", 0.3),
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
    model, path = model_of("bert", models), tmp_path / "model.gguf"
    save_gguf(model, words, path, "f32")
    MISTAKES[mistake](model)
    ids = random_ids(1, TIME, vocabulary=512)
    assert _distance(_their_vectors(path, ids[0].tolist()), model.encode(ids)[0]) > 10 * GELU_TOLERANCE


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


def _vocabulary(keys: Mapping[str, Any], path: Path) -> Any:
    """llama.cpp's tokenizer for some keys."""
    hollow = {f"llama.{key}": 8 for key in ("context_length", "embedding_length", "block_count", "feed_forward_length")}
    hollow |= {"llama.attention.head_count": 1, "llama.attention.layer_norm_rms_epsilon": 1e-5}
    with open(path, "wb") as file:
        write_gguf(file, {"general.architecture": "llama"} | hollow | dict(keys), [], [])
    return _open(path, vocab_only=True)


def _different(theirs: Any, folder: Path, texts: Iterable[str]) -> list[str]:
    """The texts of which llama.cpp makes other tokens."""
    ours = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [
        text
        for text in texts
        if any(
            theirs.tokenize(text.encode(), add_bos=special, special=True)
            != ours.encode(text, add_special_tokens=special).ids
            for special in (True, False)
        )
    ]


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip_accents", [None, True, False])
def test_words_become_the_same_pieces(lowercase: bool, strip_accents: bool | None, tmp_path: Path):
    folder = wordpiece(tmp_path / "words", lowercase=lowercase, strip_accents=strip_accents)
    theirs = _vocabulary(vocabulary_of_folder(folder, 520), tmp_path / "words.gguf")
    assert _different(theirs, folder, HARD_WORDS) == []
    plain = theirs.tokenize(b"[CLS] unaffable runners [MASK]", add_bos=False, special=False)
    ours = transformers.AutoTokenizer.from_pretrained(folder)
    assert (
        plain == ours("[CLS] unaffable runners [MASK]", add_special_tokens=False, split_special_tokens=True).input_ids
    )


@pytest.mark.parametrize("text", OTHER_WORDS)
def test_these_words_become_other_pieces_as_the_documentation_says(text: str, tmp_path: Path):
    folder = wordpiece(tmp_path / "words")
    theirs = _vocabulary(vocabulary_of_folder(folder, 520), tmp_path / "words.gguf")
    assert _different(theirs, folder, [text]) == [text]


@pytest.mark.parametrize("prefix", [True, False], ids=["like LLaMA 2", "like Gemma"])
def test_pieces_of_sentences_are_the_same(prefix: bool, tmp_path: Path):
    folder = sentencepiece(tmp_path / "words", prefix=prefix)
    theirs = _vocabulary(vocabulary_of_folder(folder, 1000), tmp_path / "words.gguf")
    assert _different(theirs, folder, HARD_SENTENCES) == []
    ours = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in HARD_SENTENCES[1:]:
        ids = ours.encode(text, add_special_tokens=False).ids
        again = theirs.detokenize(ids, special=True).decode()
        assert again.removeprefix(" " * prefix) == ours.decode(ids, skip_special_tokens=False), text


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_metaspace_differs_only_where_the_documentation_says(scheme: str, tmp_path: Path):
    def cut(tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme=scheme, split=scheme != "first")

    folder = sentencepiece(tmp_path / "words", prefix=scheme != "never", edit=cut)
    theirs = _vocabulary(vocabulary_of_folder(folder, 1000), tmp_path / "words.gguf")
    led = {text for text in HARD_SENTENCES if re.search(r"(^|>) " if scheme == "always" else r"^ |^<|\|>.", text)}
    odd = set(_different(theirs, folder, HARD_SENTENCES))
    assert odd == set() if scheme == "never" else odd and odd <= led


CODE = "    def _split_chunks(self, text): return wrapper.fill(text)  # unaffordable"
# Mistake → (folder, what it does to the keys, a text that shows it).
VOCABULARY_MISTAKES: dict[str, tuple[Callable[[Path], Path], Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "no mark at the start of a word": (wordpiece, lambda keys: {"tokens": _without_marks(keys["tokens"])}, "runner"),
    "lower case": (wordpiece, lambda keys: {"normalizer.lowercase": False}, "Runner"),
    "accents": (wordpiece, lambda keys: {"normalizer.strip_accents": False}, "élan"),
    "first and last token": (wordpiece, lambda keys: {"bos_token_id": keys["seperator_token_id"]}, "runner"),
    "unknown words": (wordpiece, lambda keys: {"unknown_token_id": 0}, "😀"),
    "order of merges": (sentencepiece, lambda keys: {"scores": [-one for one in keys["scores"]]}, CODE),
    "all merges alike": (sentencepiece, lambda keys: {"scores": [0.0] * len(keys["scores"])}, CODE),
    "space in front": (sentencepiece, lambda keys: {"add_space_prefix": False}, "runner"),
    "token in front": (sentencepiece, lambda keys: {"add_bos_token": False}, "runner"),
    "special tokens": (sentencepiece, lambda keys: {"token_type": [1] * len(keys["token_type"])}, "<|turn|>"),
}


def _without_marks(tokens: list[str]) -> list[str]:
    return [one.removeprefix("▁") if one.removeprefix("▁") not in tokens else one for one in tokens]


@pytest.mark.parametrize("mistake", VOCABULARY_MISTAKES)
def test_a_mistake_in_a_tokenizer_would_show(mistake: str, tmp_path: Path):
    make, change, text = VOCABULARY_MISTAKES[mistake]
    folder, prefix = make(tmp_path / "words"), "tokenizer.ggml."
    keys = vocabulary_of_folder(folder, 1000)
    assert _different(_vocabulary(keys, tmp_path / "words.gguf"), folder, [text]) == []
    plain = {key.removeprefix(prefix): value for key, value in keys.items()}
    wrong = keys | {prefix + key: value for key, value in change(plain).items()}
    assert _different(_vocabulary(wrong, tmp_path / "wrong.gguf"), folder, [text]) == [text]


@torch.no_grad()
def test_from_text_to_vectors(models: Path, tmp_path: Path):
    """A BERT with its own tokenizer, as llama.cpp's servers are asked for embeddings."""
    folder, path, model = wordpiece(tmp_path / "words"), tmp_path / "model.gguf", model_of("bert", models)
    save_gguf(model, folder, path, "f32")
    theirs = _open(path, embedding=True, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_NONE)
    text = "Élan vital: the affable runner, 漢字"
    ids = transformers.AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    vectors = torch.tensor(theirs.embed(text, normalize=False))
    assert _distance(vectors, model.encode(ids)[0]) <= GELU_TOLERANCE


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
def test_a_file_that_llama_cpp_has_quantized_is_read(kind: str, words: Path, tmp_path: Path):
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
    expected = greedy(load_model(folder), prompt, 24)
    model = _open(path, logits_all=False)
    theirs = model.generate(prompt, temp=0.0, repeat_penalty=1.0, top_k=1)
    assert [next(theirs) for _ in range(24)] == expected
