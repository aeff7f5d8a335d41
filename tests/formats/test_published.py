"""Tokenizers of published folders: read as `transformers` reads them, no text becomes a control token, none is lost."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers
from gguf_tokenizers import edited, sentencepiece, wordpiece
from hypothesis import given, settings
from hypothesis import strategies as st
from published_tokenizers import HARD, MAKERS, byte_level, unigram

from groundup.errors import UserError
from groundup.formats.published import load_tokenizer
from groundup.tokens.config import CONTROL_TOKENS, PATTERNS
from groundup.tokens.text import TextStream, TextTokenizer
from groundup.tokens.tokenizer import Tokenizer, train

# Those that give every text back; Unigram's take blanks away, as SentencePiece does.
FAITHFUL = [kind for kind in MAKERS if "Unigram" not in kind]
FRAGMENTS = ["<|end|>", "</s>", "<s>", "<unk>", "<|turn|>", "<", "/", "s", ">", "|", "end", " ", "é", "日本", "x"]
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("published")
    return {kind: make(root / str(number)) for number, (kind, make) in enumerate(MAKERS.items())}


@pytest.fixture(scope="module")
def read(folders: dict[str, Path]) -> dict[str, TextTokenizer]:
    return {kind: load_tokenizer(folder) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def references(folders: dict[str, Path]) -> dict[str, Any]:
    return {kind: transformers.AutoTokenizer.from_pretrained(folder) for kind, folder in folders.items()}


@pytest.mark.parametrize("kind", MAKERS)
def test_transformers_reads_and_writes_the_same(read: dict[str, TextTokenizer], references: dict[str, Any], kind: str):
    words, reference = read[kind], references[kind]
    for text in [*HARD, ""]:
        if "Unigram" in kind and ("</s>" in text or "<unk>" in text):
            continue  # even `split_special_tokens` leaves a way into these, the next test has none
        whole = reference.encode(text, split_special_tokens=True)
        assert words.whole(text) == whole
        assert words.encode(text) == reference.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert words.decode(whole) == reference.decode(whole, skip_special_tokens=True)
    assert words.encode_batch(HARD) == [words.encode(text) for text in HARD]
    assert words.vocab_size == len(reference)
    assert {*words.control.values()} >= {*reference.all_special_ids}


@pytest.mark.parametrize("kind", MAKERS)
@given(text=st.lists(st.sampled_from(FRAGMENTS)).map("".join))
@settings(max_examples=60, deadline=None)
def test_no_text_becomes_a_control_token(read: dict[str, TextTokenizer], kind: str, text: str):
    words = read[kind]
    control = {*words.control.values()}
    if kind == "Unigram without bytes":
        control -= {words.control["<unk>"]}  # what letters that it does not know become
    for encode in (words.encode, words.encode_behind):
        assert not {*encode(text)} & control
    if kind in FAITHFUL:
        assert words.decode(words.encode(text)) == text


@pytest.mark.parametrize("kind", FAITHFUL)
@given(text=st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"])))
@settings(max_examples=100, deadline=None)
def test_every_text_comes_back(read: dict[str, TextTokenizer], kind: str, text: str):
    words = read[kind]
    assert words.decode(words.encode(text)) == text
    assert words.spell(words.encode_behind(text)) == text


@pytest.mark.parametrize("kind", MAKERS)
def test_broken_characters_are_those_of_transformers(
    read: dict[str, TextTokenizer], references: dict[str, Any], kind: str
):
    words, reference, draws = read[kind], references[kind], np.random.default_rng(0)
    pieces = [words.piece(index) for index in range(words.vocab_size)]
    lone = [index for index, piece in enumerate(pieces) if len(piece) == 1 and piece >= b"\x80"]
    # SentencePiece's bytes apart from each other: of several that are no character, the library makes one each.
    others = [index for index in range(words.vocab_size) if index not in lone]
    for _ in range(100):
        ids = draws.choice(others, 20)
        if lone and kind not in ("byte-level", "byte-level, nothing before a text"):
            ids[::2] = draws.choice(lone, 10)
            ids[1::2] = words.encode("a")[-1]
        elif lone:
            ids = draws.integers(0, words.vocab_size, 20)
        assert words.decode(ids.tolist()) == reference.decode(ids.tolist(), skip_special_tokens=True)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_stream_says_what_tokens_spell(read: dict[str, TextTokenizer], kind: str):
    words, draws = read[kind], np.random.default_rng(1)
    for _ in range(100):
        ids, stream = draws.integers(0, words.vocab_size + 9, 20).tolist(), TextStream(words)
        assert "".join(map(stream.push, ids)) + stream.finish() == words.spell(ids)
    if kind in FAITHFUL:
        stream = TextStream(words)
        shown = [stream.push(index) for index in words.encode_behind("∀😀")]
        assert "".join(shown) == "∀😀" and shown[:2] == ["", ""]


def test_a_token_behind_others_keeps_its_space(tmp_path: Path):
    words = load_tokenizer(sentencepiece(tmp_path / "words"))
    first, second = words.encode("runner"), words.encode_behind(" runner")
    assert first == second
    assert (words.decode(first), words.spell(first), words.spell(words.encode_behind("runner"))) == (
        "runner",
        " runner",
        "runner",
    )


def test_what_was_added_spells_itself(tmp_path: Path):
    """`é` is the byte E9 in the alphabet of bytes, and a letter in what was added."""
    folder = byte_level(tmp_path / "words")
    inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    inner.add_tokens(["né", "Ω Ω"])
    inner.save(str(folder / "tokenizer.json"))
    words = load_tokenizer(folder)
    ids = words.encode("né Ω Ω, é 階")
    assert {*ids} >= {words.vocab_size - 2, words.vocab_size - 1}
    assert words.decode(ids) == "né Ω Ω, é 階"


def _with_plain_tokens(spec: dict[str, Any]) -> None:
    """Learned ones, which the alphabet of bytes cannot write, in the place of the last two."""
    model = spec["model"]
    model["vocab"] = {token: index for token, index in model["vocab"].items() if index < 498}
    model["vocab"] |= {"two words": 498, "日本": 499}
    model["merges"] = model["merges"][:-2]


def _with_unknown_letters(spec: dict[str, Any]) -> None:
    spec["model"]["byte_fallback"] = False


def _with_bytes_as_text(spec: dict[str, Any]) -> None:
    spec["decoder"]["decoders"] = [one for one in spec["decoder"]["decoders"] if one["type"] != "ByteFallback"]


@pytest.mark.parametrize(
    ("make", "edit"),
    [(byte_level, _with_plain_tokens), (sentencepiece, _with_unknown_letters), (sentencepiece, _with_bytes_as_text)],
)
def test_rare_kinds_are_those_of_transformers(tmp_path: Path, make: Callable[[Path], Path], edit: Edit):
    folder = edited(make(tmp_path / "words"), tmp_path / "edited", edit)
    words, reference = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    ids = [*words.encode("∀ runs, ∀"), 498, 499]
    assert ids == [*reference.encode("∀ runs, ∀", add_special_tokens=False), 498, 499]
    assert words.decode(ids) == reference.decode(ids, skip_special_tokens=True)


def test_a_byte_level_tokenizer_may_put_a_space_before_a_text(tmp_path: Path):
    def spaced(spec: dict[str, Any]) -> None:
        spec["pre_tokenizer"]["add_prefix_space"] = True

    words = load_tokenizer(edited(byte_level(tmp_path / "words"), tmp_path / "edited", spaced))
    assert words.spell(words.encode("runs")) == " runs" and words.spell(words.encode_behind("runs")) == "runs"


def _with_merges_to_the_end(spec: dict[str, Any]) -> None:
    vocab = spec["model"]["vocab"]
    vocab |= {token: 959 + number for number, token in enumerate(("</", "</s")) if token not in vocab}
    spec["added_tokens"] = [one for one in spec["added_tokens"] if one["content"] != "<|turn|>"]
    spec["model"]["merges"] = [["<", "/"], ["</", "s"], ["</s", ">"], *spec["model"]["merges"]]


def _with_words_as_they_are(spec: dict[str, Any]) -> None:
    spec["model"]["ignore_merges"] = True
    spec["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def _with_an_ordinary_end(spec: dict[str, Any]) -> None:
    next(one for one in spec["added_tokens"] if one["content"] == "</s>")["special"] = False


@pytest.mark.parametrize("edit", [_with_merges_to_the_end, _with_words_as_they_are, _with_an_ordinary_end])
def test_ways_into_a_control_token_are_closed(tmp_path: Path, edit: Edit):
    folder = edited(sentencepiece(tmp_path / "words"), tmp_path / "edited", edit)
    inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    inner.encode_special_tokens = True
    words = load_tokenizer(folder)
    assert words.end_ids == (2,) and 2 in inner.encode("</s>").ids
    for text in ("</s>", "x </s>"):
        assert 2 not in words.encode(text) and words.decode(words.encode(text)) == text
    assert (words.control_name(2), words.piece(2)) == ("</s>", b"")


@pytest.mark.parametrize("make", [byte_level, sentencepiece, unigram])
def test_texts_are_neither_cut_nor_padded(tmp_path: Path, make: Callable[[Path], Path]):
    plain = load_tokenizer(make(tmp_path / "words"))
    folder = tmp_path / "words"
    inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    inner.enable_truncation(3)
    inner.enable_padding(length=16)
    inner.save(str(folder / "tokenizer.json"))
    words, text = load_tokenizer(folder), "runners and runners and running runners"
    assert words.whole(text) == plain.whole(text)
    assert words.encode_batch(["a", text]) == [plain.encode("a"), plain.encode(text)]
    assert (words.beginning, words.ending) == (plain.beginning, plain.ending)


ENDS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "settings first": (
        {"generation_config.json": {"eos_token_id": [959, 2]}, "config.json": {"eos_token_id": 1}},
        (959, 2),
    ),
    "the tokenizer's next": ({"tokenizer_config.json": {"eos_token": "<|turn|>"}}, (959,)),
    "as an object": ({"tokenizer_config.json": {"eos_token": {"content": "<|turn|>", "lstrip": False}}}, (959,)),
    "the model's last": ({"tokenizer_config.json": {}, "config.json": {"eos_token_id": 1}}, (1,)),
    "what is text or no token is passed over": (
        {"generation_config.json": {"eos_token_id": [300, 5000]}, "tokenizer_config.json": {"eos_token": "</s>"}},
        (2,),
    ),
    "nowhere": ({"tokenizer_config.json": {"eos_token": None}}, ()),
}


@pytest.mark.parametrize("case", ENDS)
def test_the_end_is_what_the_folder_says(tmp_path: Path, case: str):
    folder = sentencepiece(tmp_path / "words")
    files, expected = ENDS[case]
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    assert load_tokenizer(folder).end_ids == expected


def test_one_of_ours_is_ours(tmp_path: Path):
    ours = Tokenizer(train(iter([["any text"]]), len(CONTROL_TOKENS) + 256, PATTERNS["code"]))
    ours.save(tmp_path)
    words = load_tokenizer(tmp_path)
    assert isinstance(words, Tokenizer)
    assert words.prompt("a <|end|>") == [ours.bos_id, *ours.encode("a <|end|>")] == words.whole("a <|end|>")
    assert words.source("a") == [*ours.encode("a"), ours.eos_id]
    assert words.end_ids == (ours.eos_id, ours.end_id)


def _with_far_ids(spec: dict[str, Any]) -> None:
    spec["model"]["vocab"]["far"] = 4_000_000_000


def _with_word_ends(spec: dict[str, Any]) -> None:
    spec["decoder"] = {"type": "BPEDecoder", "suffix": "</w>"}


def _without_decoder(spec: dict[str, Any]) -> None:
    spec["decoder"] = None


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (_with_far_ids, r"tokenizer\.json: 961 tokens have ids up to 4000000000; copy it again"),
        (_with_word_ends, r"tokenizer\.json: its decoder \(BPEDecoder\) is neither byte-level nor SentencePiece's"),
        (_without_decoder, r"its decoder \(none\) is neither byte-level nor SentencePiece's; give token ids"),
    ],
)
def test_what_is_not_understood_is_refused_in_a_sentence(tmp_path: Path, edit: Edit, sentence: str):
    folder = edited(sentencepiece(tmp_path / "words"), tmp_path / "edited", edit)
    with pytest.raises(UserError, match=sentence):
        load_tokenizer(folder)


def test_word_pieces_and_missing_files_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="text is cut by BPE or Unigram here, not by WordPiece; give token ids"):
        load_tokenizer(wordpiece(tmp_path / "words"))
    with pytest.raises(UserError, match=r"tokenizer\.json: no such file"):
        load_tokenizer(tmp_path)
