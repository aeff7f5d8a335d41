"""The tokenizer in GGUF: it goes in as llama.cpp wants it, comes back the same, and is refused where it would not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from gguf_models import with_cut

from groundup.errors import UserError
from groundup.formats.gguf.container import GgufFile, write_gguf
from groundup.formats.gguf.vocabulary import JSON_KEY, vocabulary_of_folder, write_vocabulary
from groundup.tokens.config import CONTROL_TOKENS

HARD = [
    "",
    " ",
    "Hello, world!",
    "  two  spaces   three ",
    "\tdef f(x):\n\t\treturn x  # why?\n\n\n",
    "don't, we'LL, I'M, it's, 'Tis",
    "0 1 22 333 4444 55555 3.14 1e-9 0xFF 1,000,000",
    "naïve café e\u0301 Ångström ﬁ",
    "漢字かな交じり文、ひらがな。한국어 العربية עברית ไทย हिन्दी",
    "🦙🦙 👩‍👩‍👧‍👦 🏳️‍🌈 \u200d\ufe0f",
    "\u00a0\u2003\u3000\ufeff\u2028\u2029 mixed blanks\r\n\r\n",
    "<|user|>not a turn<|end|>",
    "a" * 300,
    "\x00\x01\x7f",
    "if (a<=b && c!=d) { x += y[i++]; } // ¯\\_(ツ)_/¯",
]


def _file(keys: dict[str, Any], out: Path) -> GgufFile:
    path = out / "words.gguf"
    with open(path, "wb") as file:
        write_gguf(file, keys, [], [])
    return GgufFile(path)


def _edited(words: Path, out: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the tokenizer's folder in which tokenizer.json was edited."""
    folder = with_cut(words, out / "edited", "qwen2")
    spec = json.loads((folder / "tokenizer.json").read_text())
    edit(spec)
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    return folder


def test_tokens_merges_and_kinds_are_those_of_the_tokenizer(words: Path):
    keys = vocabulary_of_folder(words, vocab_size=520)
    spec = json.loads((words / "tokenizer.json").read_text())
    tokens = keys["tokenizer.ggml.tokens"]
    assert tokens[:512] == sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].get)
    assert tokens[512:] == [f"[PAD{index}]" for index in range(512, 520)]
    assert keys["tokenizer.ggml.token_type"] == [3] * len(CONTROL_TOKENS) + [1] * (512 - len(CONTROL_TOKENS)) + [5] * 8
    assert keys["tokenizer.ggml.merges"] == [" ".join(pair) for pair in spec["model"]["merges"]]
    ids = {name: keys[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding")}
    assert ids == {"bos": 0, "eos": 1, "padding": 2}
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert keys["tokenizer.ggml.add_eos_token"] is False


@pytest.mark.parametrize("cut", ["gpt-2", "qwen2", "llama-bpe"])
def test_a_tokenizer_comes_back_with_and_without_its_own_file(cut: str, words: Path, tmp_path: Path):
    folder = with_cut(words, tmp_path / "source", cut)
    keys = vocabulary_of_folder(folder, vocab_size=520)
    assert keys["tokenizer.ggml.pre"] == cut
    whole, rebuilt = tmp_path / "whole", tmp_path / "rebuilt"
    whole.mkdir()
    rebuilt.mkdir()
    assert write_vocabulary(_file(keys, tmp_path), whole) == {"bos_id": 0, "eos_ids": [1], "pad_id": 2}
    assert (whole / "tokenizer.json").read_text() == (folder / "tokenizer.json").read_text()
    write_vocabulary(_file({key: one for key, one in keys.items() if key != JSON_KEY}, tmp_path), rebuilt)
    one, other = (tokenizers.Tokenizer.from_file(str(place / "tokenizer.json")) for place in (folder, rebuilt))
    for text in HARD:
        for special in (True, False):
            assert (
                other.encode(text, add_special_tokens=special).ids == one.encode(text, add_special_tokens=special).ids
            )
        assert other.decode(one.encode(text).ids) == one.decode(one.encode(text).ids)
    theirs = transformers.AutoTokenizer.from_pretrained(rebuilt)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2)


def test_the_chat_template_comes_back(words: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    write_vocabulary(_file(vocabulary_of_folder(words, 512), tmp_path), tmp_path / "out")
    template = (words / "chat_template.jinja").read_text()
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == template
    inside = with_cut(words, tmp_path / "inside", "qwen2")  # as older folders have it
    (inside / "chat_template.jinja").unlink()
    config = json.loads((inside / "tokenizer_config.json").read_text())
    (inside / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    assert vocabulary_of_folder(inside, 512)["tokenizer.chat_template"] == template


def test_the_token_that_ends_a_turn_is_kept(words: Path, tmp_path: Path):
    folder = with_cut(words, tmp_path / "source", "qwen2")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 9]}))
    keys = vocabulary_of_folder(folder, 512)
    assert keys["tokenizer.ggml.eot_token_id"] == 9
    (tmp_path / "out").mkdir()
    assert write_vocabulary(_file(keys, tmp_path), tmp_path / "out")["eos_ids"] == [1, 9]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda spec: spec["pre_tokenizer"]["pretokenizers"].pop(0), "no name for how this tokenizer cuts"),
        (lambda spec: spec.update(normalizer={"type": "Lowercase"}), "has no normalizer, this tokenizer has Lowercase"),
        (lambda spec: spec["model"].update(ignore_merges=True), "`ignore_merges` must be false"),
        (lambda spec: spec["model"].update(end_of_word_suffix="</w>"), "`end_of_word_suffix` is '</w>'"),
        (lambda spec: spec["added_tokens"][3].update(lstrip=True), "'<|system|>' has `lstrip`"),
        (lambda spec: spec.update(decoder={"type": "Fuse"}), "not BPE with Fuse"),
        (lambda spec: spec["post_processor"]["single"].reverse(), "around it"),
        (lambda spec: spec.update(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}), "not WordLevel"),
        (lambda spec: spec.update(model=3), "not a whole tokenizer"),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_take_for_another_is_refused(
    edit: Callable[[dict[str, Any]], object], said: str, words: Path, tmp_path: Path
):
    folder = _edited(words, tmp_path, edit)
    with pytest.raises(UserError) as refusal:
        vocabulary_of_folder(folder, 512)
    assert said in str(refusal.value)
    assert "tokenizer.json" in str(refusal.value)


def test_the_pattern_of_groundup_alone_is_refused_with_what_would_do(tokenizer_folder: Path):
    with pytest.raises(UserError, match="train one with the pattern qwen2"):
        vocabulary_of_folder(tokenizer_folder, 512)


def test_more_tokens_than_the_model_has_rows_are_refused(words: Path):
    with pytest.raises(UserError, match="has the id 511, the model only 511 rows"):
        vocabulary_of_folder(words, 511)


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"tokenizer\.json: no such file"):
        vocabulary_of_folder(tmp_path, 512)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokenizer.ggml.tokens": None}, "`tokenizer.ggml.tokens` is missing"),
        ({"tokenizer.ggml.tokens": [1, 2, 3]}, "no list of str"),
        ({"tokenizer.ggml.tokens": ["a", "b", "c"]}, "has 512 entries for 3 tokens"),
        ({"tokenizer.ggml.tokens": [f"token {index}" for index in range(512)]}, "do not name the same tokens"),
        ({"tokenizer.ggml.eos_token_id": None}, "`tokenizer.ggml.eos_token_id` is 'absent'"),
        ({"tokenizer.ggml.eos_token_id": 512}, "which is no id of 512 tokens"),
        ({"tokenizer.ggml.bos_token_id": "first"}, "`tokenizer.ggml.bos_token_id` is 'first'"),
        ({JSON_KEY: "{"}, "make no tokenizer"),
        ({JSON_KEY: None, "tokenizer.ggml.pre": "mystery"}, "'mystery' is not known"),
        ({JSON_KEY: None, "tokenizer.ggml.model": "rwkv"}, "tokenizer 'rwkv' is not known"),
        ({JSON_KEY: None, "tokenizer.ggml.token_type": [1]}, "has 1 entries for 512 tokens"),
        ({JSON_KEY: None, "tokenizer.ggml.merges": None}, "`tokenizer.ggml.merges` is missing"),
        ({JSON_KEY: None, "tokenizer.ggml.merges": ["ab"]}, "make no tokenizer"),
        ({JSON_KEY: None, "tokenizer.ggml.merges": ["qq zz"]}, "make no tokenizer"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_damaged_tokenizer_is_refused_with_its_key(changes: dict[str, Any], said: str, words: Path, tmp_path: Path):
    keys = {key: one for key, one in (vocabulary_of_folder(words, 512) | changes).items() if one is not None}
    with pytest.raises(UserError) as refusal:
        write_vocabulary(_file(keys, tmp_path), tmp_path)
    assert said in str(refusal.value)
    assert not (tmp_path / "tokenizer.json").exists()
