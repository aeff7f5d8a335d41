"""WordPiece and SentencePiece's BPE in GGUF: written as llama.cpp wants them, back the same, or refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from gguf_tokenizers import edited, sentencepiece, wordpiece
from test_gguf_vocabulary import HARD, _file

from groundup.errors import UserError
from groundup.formats.gguf.vocabulary import JSON_KEY, vocabulary_of_folder, write_vocabulary

GGML = "tokenizer.ggml."
SIZES = {wordpiece: 520, sentencepiece: 1000}
BOTH = pytest.mark.parametrize("make", SIZES, ids=["WordPiece", "SentencePiece"])
Edit = Callable[[dict[str, Any]], object]
FEW: dict[str, Any] = {"tokens": [f"▁{index}" for index in range(90)], "token_type": [1] * 90}


def _keys(folder: Path, size: int = 1000) -> dict[str, Any]:
    return {key.removeprefix(GGML): value for key, value in vocabulary_of_folder(folder, size).items()}


def _spec(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text())
    return found


# Out


def test_pieces_are_marked_where_a_word_starts(tmp_path: Path):
    folder = wordpiece(tmp_path / "words")
    keys, vocab = _keys(folder), _spec(folder)["model"]["vocab"]
    tokens = keys["tokens"]
    assert tokens[vocab["r"]] == "▁r"
    assert tokens[vocab["##r"]] == "r"
    assert [tokens[vocab[name]] for name in ("[PAD]", "[CLS]")] == ["[PAD]", "[CLS]"]
    assert keys["token_type"] == [3] * 5 + [1] * (len(vocab) - 5) + [5] * (1000 - len(vocab))
    ids = {name: keys[f"{name}_token_id"] for name in ("bos", "seperator", "unknown", "padding", "mask")}
    assert ids == {"bos": 2, "seperator": 3, "unknown": 1, "padding": 0, "mask": 4}
    assert keys["model"] == "bert"
    assert keys["normalizer.lowercase"] is True
    assert "normalizer.strip_accents" not in keys


def test_scores_are_ranks_and_bytes_are_bytes(tmp_path: Path):
    folder = sentencepiece(tmp_path / "words")
    keys, model = _keys(folder), _spec(folder)["model"]
    first: dict[str, int] = {}
    for rank, (left, right) in enumerate(model["merges"]):
        first.setdefault(left + right, rank)
    made = {token: keys["scores"][model["vocab"][token]] for token in first}
    assert made == {token: -float(rank) for token, rank in first.items()}
    assert max(score for index, score in enumerate(keys["scores"]) if keys["tokens"][index] not in made) < min(
        made.values()
    )
    assert keys["token_type"][:3] == [2, 3, 3]
    assert keys["token_type"][3:259] == [6] * 256
    assert keys["tokens"][3 + 0x0A] == "<0x0A>"
    assert {keys["token_type"][model["vocab"][token]] for token in first} == {1}
    assert (keys["model"], keys["add_space_prefix"], keys["add_bos_token"]) == ("llama", True, True)
    assert _keys(sentencepiece(tmp_path / "other", prefix=False))["add_space_prefix"] is False


def test_a_second_name_of_a_byte_is_left_out(tmp_path: Path):
    """In Gemma's files a tab has the id of its byte."""
    folder = sentencepiece(tmp_path / "words")
    byte = _spec(folder)["model"]["vocab"]["<0x09>"]
    keys = _keys(edited(folder, tmp_path / "tab", lambda spec: spec["model"]["vocab"].update({"\t": byte})))
    assert (keys["tokens"][byte], keys["token_type"][byte]) == ("<0x09>", 6)


# Back


@BOTH
def test_a_tokenizer_comes_back_equal_with_and_without_its_own_file(make: Callable[..., Path], tmp_path: Path):
    folder = make(tmp_path / "words")
    keys = vocabulary_of_folder(folder, SIZES[make])
    whole, rebuilt = tmp_path / "whole", tmp_path / "rebuilt"
    whole.mkdir()
    rebuilt.mkdir()
    write_vocabulary(_file(keys, tmp_path), whole)
    assert (whole / "tokenizer.json").read_text() == (folder / "tokenizer.json").read_text()
    write_vocabulary(_file({key: one for key, one in keys.items() if key != JSON_KEY}, tmp_path), rebuilt)
    expected = _spec(folder)
    expected["model"]["vocab"] |= {one["content"]: one["id"] for one in expected["added_tokens"]}
    assert _spec(rebuilt) == expected
    names = ("bos_token", "eos_token", "unk_token", "cls_token", "sep_token", "pad_token", "mask_token")
    one, other = (transformers.AutoTokenizer.from_pretrained(place) for place in (folder, rebuilt))
    assert [getattr(one, name) for name in names] == [getattr(other, name) for name in names]


@pytest.mark.parametrize("prefix", [True, False])
def test_what_is_made_of_scores_alone_cuts_text_alike(prefix: bool, tmp_path: Path):
    """Scores of any size, in the order of SentencePiece's own files."""
    folder = sentencepiece(tmp_path / "words", prefix=prefix)
    keys = vocabulary_of_folder(folder, 1000)
    keys[GGML + "scores"] = [one / 7 - 3 for one in keys[GGML + "scores"]]  # type: ignore[union-attr]
    (tmp_path / "out").mkdir()
    write_vocabulary(_file({key: one for key, one in keys.items() if key != JSON_KEY}, tmp_path), tmp_path / "out")
    one, other = (tokenizers.Tokenizer.from_file(str(at / "tokenizer.json")) for at in (folder, tmp_path / "out"))
    for text in HARD:
        assert one.encode(text).ids == other.encode(text).ids
        assert one.decode(one.encode(text).ids) == other.decode(one.encode(text).ids)


@pytest.mark.parametrize("strip_accents", [None, True, False])
@pytest.mark.parametrize("lowercase", [True, False])
def test_the_rules_for_text_come_back(lowercase: bool, strip_accents: bool | None, tmp_path: Path):
    folder = wordpiece(tmp_path / "words", lowercase=lowercase, strip_accents=strip_accents)
    keys = {key: one for key, one in vocabulary_of_folder(folder, 520).items() if key != JSON_KEY}
    (tmp_path / "out").mkdir()
    assert write_vocabulary(_file(keys, tmp_path), tmp_path / "out") == {"bos_id": None, "eos_ids": None, "pad_id": 0}
    assert _spec(tmp_path / "out")["normalizer"] == _spec(folder)["normalizer"]


# Refused


WORDPIECE_REFUSED: list[tuple[Edit, str]] = [
    (lambda spec: spec["normalizer"].update(clean_text=False), "`normalizer.clean_text` is False"),
    (lambda spec: spec["normalizer"].update(handle_chinese_chars=False), "`normalizer.handle_chinese_chars` is False"),
    (lambda spec: spec.update(normalizer={"type": "Lowercase"}), "`normalizer.type` is 'Lowercase'"),
    (lambda spec: spec.update(pre_tokenizer={"type": "Whitespace"}), "`pre_tokenizer.type` is 'Whitespace'"),
    (lambda spec: spec["model"].update(continuing_subword_prefix="@@"), "`model.continuing_subword_prefix` is '@@'"),
    (lambda spec: spec["model"].update(max_input_chars_per_word=9), "`model.max_input_chars_per_word` is 9"),
    (lambda spec: spec["model"].update(unk_token="<none>"), "`model.unk_token` is no token"),
    (lambda spec: spec.update(post_processor=None), "text is encoded with [] around it"),
    (lambda spec: spec["model"]["vocab"].update({"##▁x": 510}), "'##▁x' would start a word"),
    (lambda spec: spec["model"]["vocab"].update({"[CLS]": 510, "##[CLS]": 511}), "two tokens would both be '[CLS]'"),
    (lambda spec: spec["added_tokens"][4].update(normalized=True), "'[MASK]' has `normalized`"),
    (lambda spec: _add(spec, "pad"), "'pad' would be found within words"),
]
SENTENCEPIECE_REFUSED: list[tuple[Edit, str]] = [
    (lambda spec: spec["model"]["vocab"].pop("<0x41>"), "token '<0x41>' is missing"),
    (lambda spec: spec["model"].update(ignore_merges=True), "`ignore_merges` is True"),
    (lambda spec: spec["model"].update(dropout=0.1), "`dropout` is 0.1"),
    (lambda spec: spec.update(normalizer={"type": "NFKC"}), "no way to make spaces into tokens"),
    (lambda spec: spec.update(pre_tokenizer={"type": "Whitespace"}), "no way to make spaces into tokens"),
    (lambda spec: spec["added_tokens"][3].update(normalized=True), "'<|turn|>' has `normalized`"),
    (lambda spec: spec["model"]["merges"].pop(_second_of_a_token(spec)), "which `model.merges` does not"),
    (
        lambda spec: spec["model"]["merges"].append(spec["model"]["merges"].pop(_second_of_a_token(spec))),
        "are apart in `model.merges`",
    ),
    (lambda spec: spec["post_processor"]["single"].reverse(), "around it"),
]


def _add(spec: dict[str, Any], token: str) -> None:
    spec["added_tokens"].append(spec["added_tokens"][4] | {"id": 511, "content": token})


def _second_of_a_token(spec: dict[str, Any]) -> int:
    """The place of a pair that makes the same token as the pair before it."""
    pairs = ["".join(pair) for pair in spec["model"]["merges"]]
    return next(place for place in range(1, len(pairs)) if pairs[place] == pairs[place - 1])


@pytest.mark.parametrize(
    ("make", "edit", "said"),
    [
        *((wordpiece, edit, said) for edit, said in WORDPIECE_REFUSED),
        *((sentencepiece, edit, said) for edit, said in SENTENCEPIECE_REFUSED),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_take_for_another_is_refused(
    make: Callable[..., Path], edit: Edit, said: str, tmp_path: Path
):
    folder = edited(make(tmp_path / "words"), tmp_path / "edited", edit)
    with pytest.raises(UserError) as refusal:
        vocabulary_of_folder(folder, 1000)
    assert said in str(refusal.value)
    assert "tokenizer.json" in str(refusal.value)


def test_tokens_of_several_words_need_text_that_is_not_cut(tmp_path: Path):
    def cut(split: bool) -> Edit:
        metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": split}

        def edit(spec: dict[str, Any]) -> None:
            spec.update(normalizer=None, pre_tokenizer=metaspace)
            spec["model"]["vocab"]["x▁"] = 990
            spec["model"]["merges"].append(["x", "▁"])

        return edit

    folder = sentencepiece(tmp_path / "words")
    assert _keys(edited(folder, tmp_path / "whole", cut(False)))["add_space_prefix"] is True
    with pytest.raises(UserError, match="'x▁' would join words"):
        _keys(edited(folder, tmp_path / "cut", cut(True)))


@pytest.mark.parametrize(
    ("make", "changes", "said"),
    [
        (wordpiece, {"seperator_token_id": None} | FEW, "`tokenizer.ggml.seperator_token_id` is 'absent'"),
        (wordpiece, {"bos_token_id": 9999}, "which is no id of 520 tokens"),
        (wordpiece, {"tokens": ["▁a"] * 520}, "do not name the same tokens"),
        (sentencepiece, {"scores": None}, "`tokenizer.ggml.scores` is missing"),
        (sentencepiece, {"scores": [0.5]}, "has 1 entries for 1000 tokens"),
        (sentencepiece, {"scores": [-1.0] * 1000}, "have equal scores"),
    ],
    ids=["no separator", "id too large", "same token twice", "no scores", "too few scores", "equal scores"],
)
def test_a_damaged_tokenizer_is_refused_with_its_key(
    make: Callable[..., Path], changes: dict[str, Any], said: str, tmp_path: Path
):
    folder = make(tmp_path / "words")
    keys = vocabulary_of_folder(folder, SIZES[make]) | {GGML + key: value for key, value in changes.items()}
    with pytest.raises(UserError) as refusal:
        write_vocabulary(
            _file({key: one for key, one in keys.items() if one is not None and key != JSON_KEY}, tmp_path), tmp_path
        )
    assert said in str(refusal.value)
