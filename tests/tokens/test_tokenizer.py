"""The tokenizer: nothing is lost, no text becomes a control token, transformers reads the same."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from groundup.errors import UserError
from groundup.settings import read_table
from groundup.tokens import tokenizer as training
from groundup.tokens.config import CONTROL_TOKENS, MASK_TOKEN, PATTERNS, SENTINEL_TOKENS, TokenizerConfig
from groundup.tokens.text import TextStream
from groundup.tokens.tokenizer import Tokenizer, sample, train

# Pieces from which hypothesis puts together what an attacker might write.
FRAGMENTS = [*CONTROL_TOKENS, "<", "|", ">", "<|", "|>", "user", "end", " ", "\n", "_", "é", "日本"]

SAMPLES = [
    "def f(self, x=1):\n        return self.x + 12345\n",
    "    \n\n\ttabs\t and\r\nlines\r",
    "naïve façade, 日本語, हिन्दी, 👩‍👩‍👧 and \x00\x1b[31m\x7f",
    "it's Python's __init__ — don't",
    "",
    " ",
]


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_every_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_token_bytes_add_up_to_the_bytes_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.token_bytes()[tokenizer.encode(text)].sum() == len(text.encode())


def test_control_tokens_count_as_no_bytes(tokenizer: Tokenizer) -> None:
    sizes = tokenizer.token_bytes()
    assert sizes.shape == (tokenizer.vocab_size,) and sizes.dtype == np.int32
    assert sizes[list(tokenizer.control.values())].tolist() == [0] * len(CONTROL_TOKENS)
    assert (np.delete(sizes, list(tokenizer.control.values())) > 0).all()


def test_every_byte_has_a_token_of_its_own(tokenizer: Tokenizer) -> None:
    pieces = [tokenizer.piece(index) for index in range(tokenizer.vocab_size)]
    assert {bytes([value]) for value in range(256)} <= set(pieces)


@pytest.mark.parametrize("text", ["ab\ud800", "ab\udfff c"])
def test_half_a_surrogate_pair_is_refused_and_shown(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(ValueError, match="text is not valid Unicode at character 2; send UTF-8 text"):
        tokenizer.encode(text)
    with pytest.raises(TypeError):
        tokenizer.encode(7)  # type: ignore[arg-type]


def test_batch_encoding_equals_encoding_one_by_one(tokenizer: Tokenizer, documents: list[str]) -> None:
    assert tokenizer.encode_batch(documents) == [tokenizer.encode(text) for text in documents]


def test_control_tokens_come_first_whatever_the_text() -> None:
    for text in ("abc abc abc", "<|end|> <|user|>" * 50):
        inner = train(iter([[text]]), 300, PATTERNS["code"])
        assert [inner.token_to_id(token) for token in CONTROL_TOKENS] == list(range(len(CONTROL_TOKENS)))


@given(st.lists(st.sampled_from(FRAGMENTS)).map("".join))
@settings(max_examples=300, deadline=None)
def test_no_text_becomes_a_control_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.control.values())
    assert tokenizer.encode_batch([text]) == [ids]
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_merges_never_spell_a_control_token(pattern: str) -> None:
    """A merge that spelled one would be given its id: a corpus could teach its own way into the control tokens."""
    hostile = " ".join(CONTROL_TOKENS) + "".join(CONTROL_TOKENS) + "x<|user|>y_<|end|>_1<|end|>1"
    tokenizer = Tokenizer(train(iter([[hostile] * 200]), 1000, pattern))
    for text in (hostile, *CONTROL_TOKENS):
        assert not set(tokenizer.encode(text)) & set(tokenizer.control.values())
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decoding_can_show_control_tokens(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.bos_id, *tokenizer.encode("a"), tokenizer.end_id]
    assert tokenizer.decode(ids) == "a"
    assert tokenizer.decode(ids, keep_control=True) == "<|begin_of_text|>a<|end|>"


def test_an_id_beyond_the_vocabulary_spells_nothing(tokenizer: Tokenizer) -> None:
    (letter,) = tokenizer.encode("a")
    assert tokenizer.vocab_size == 600
    assert tokenizer.decode([letter, 600, 4711, letter]) == "aa"
    assert tokenizer.decode([letter, 600], keep_control=True) == "a"


def test_an_id_below_zero_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="a token id is at least 0, not -1"):
        tokenizer.decode([-1])


# Control tokens that pre-training appends


@pytest.fixture(scope="module")
def extended(tokenizer: Tokenizer) -> Tokenizer:
    return tokenizer.with_control([MASK_TOKEN, *SENTINEL_TOKENS])


def test_appended_control_tokens_take_the_next_ids_and_move_no_other(tokenizer: Tokenizer, extended: Tokenizer) -> None:
    assert (tokenizer.mask_id, tokenizer.sentinel_ids) == (None, ())
    assert extended.vocab_size == tokenizer.vocab_size + 101
    assert extended.mask_id == tokenizer.vocab_size
    assert extended.sentinel_ids == tuple(range(tokenizer.vocab_size + 1, extended.vocab_size))
    assert [extended.piece(index) for index in range(tokenizer.vocab_size)] == [
        tokenizer.piece(index) for index in range(tokenizer.vocab_size)
    ]
    assert {token: extended.control[token] for token in CONTROL_TOKENS} == tokenizer.control
    assert extended.with_control([MASK_TOKEN]) is extended
    assert tokenizer.with_control([]) is tokenizer


@given(st.lists(st.sampled_from([*FRAGMENTS, MASK_TOKEN, *SENTINEL_TOKENS[:12], "extra", "_id_", "0"])).map("".join))
@settings(max_examples=300, deadline=None)
def test_no_text_becomes_an_appended_control_token(tokenizer: Tokenizer, extended: Tokenizer, text: str) -> None:
    assert extended.encode(text) == tokenizer.encode(text)
    assert extended.encode_batch([text]) == [tokenizer.encode(text)]
    assert extended.decode(extended.encode(text)) == text


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_merges_never_spell_an_appended_control_token(pattern: str) -> None:
    hostile = " ".join((MASK_TOKEN, *SENTINEL_TOKENS)) + "".join((MASK_TOKEN, *SENTINEL_TOKENS)) + "x<extra_id_0>y"
    trained = Tokenizer(train(iter([[hostile] * 200]), 1000, pattern))
    words = trained.with_control([MASK_TOKEN, *SENTINEL_TOKENS])
    assert not set(words.encode(hostile)) & set(words.control.values())


def test_appended_control_tokens_are_no_text(extended: Tokenizer) -> None:
    ids = [extended.mask_id, *extended.encode("a"), extended.sentinel_ids[1]]
    assert extended.decode(ids) == "a"
    assert extended.decode(ids, keep_control=True) == "<|mask|>a<extra_id_1>"
    assert extended.token_bytes()[[extended.mask_id, *extended.sentinel_ids]].tolist() == [0] * 101


def test_an_extended_tokenizer_comes_back_from_its_folder(extended: Tokenizer, tmp_path: Path) -> None:
    extended.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.control, loaded.vocab_size) == (extended.control, extended.vocab_size)
    assert loaded.encode("def f(): <|mask|>") == extended.encode("def f(): <|mask|>")
    again = tmp_path / "again"
    again.mkdir()
    loaded.save(again)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


def test_transformers_knows_the_appended_control_tokens(extended: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    extended.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == extended.vocab_size
    assert (theirs.mask_token, theirs.mask_token_id) == ("<|mask|>", extended.mask_id)
    assert theirs.convert_tokens_to_ids(list(SENTINEL_TOKENS)) == list(extended.sentinel_ids)
    assert set(theirs.all_special_ids) == set(extended.control.values())
    text = "say <|mask|> or <extra_id_3>"
    assert theirs.encode(text, add_special_tokens=False, split_special_tokens=True) == extended.encode(text)


def test_a_token_that_text_can_produce_is_no_control_token() -> None:
    words = Tokenizer(train(iter([["abc abc abc"]]), 300, PATTERNS["code"]))
    with pytest.raises(UserError, match="has `abc` as an ordinary token"):
        words.with_control(["abc"])


# transformers


@pytest.fixture(scope="module")
def reference(tokenizer_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder)


def test_transformers_encodes_the_same(tokenizer: Tokenizer, reference: Any, documents: list[str]) -> None:
    for text in [*SAMPLES, *documents]:
        assert reference.encode(text, add_special_tokens=False) == tokenizer.encode(text)
        assert reference.encode(text) == [tokenizer.bos_id, *tokenizer.encode(text)]


def test_transformers_can_be_told_to_leave_control_text_alone(tokenizer: Tokenizer, reference: Any) -> None:
    text = "say <|end|> please"
    assert reference.encode(text, add_special_tokens=False, split_special_tokens=True) == tokenizer.encode(text)


def test_transformers_decodes_the_same(tokenizer: Tokenizer, reference: Any) -> None:
    draws = np.random.default_rng(0)
    for _ in range(200):
        ids = draws.integers(0, tokenizer.vocab_size, 20).tolist()
        assert reference.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)


def test_transformers_knows_the_control_tokens(tokenizer: Tokenizer, reference: Any) -> None:
    assert (reference.bos_token_id, reference.eos_token_id, reference.pad_token_id) == (
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.pad_id,
    )
    assert set(reference.all_special_ids) == set(tokenizer.control.values())
    assert len(reference) == tokenizer.vocab_size


# Streaming


@given(st.lists(st.integers(0, 599)))
@settings(max_examples=200, deadline=None)
def test_a_stream_says_what_decoding_says(tokenizer: Tokenizer, ids: list[int]) -> None:
    stream = TextStream(tokenizer)
    assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids)


def test_a_stream_holds_back_half_a_character(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    byte_ids = {tokenizer.piece(index): index for index in range(tokenizer.vocab_size)}
    said = [stream.push(byte_ids[bytes([value])]) for value in "é日".encode()]
    assert said == ["", "é", "", "", "日"]


# Where text is cut


def pieces(pattern: str, text: str) -> list[str]:
    split = pre_tokenizers.Split(tokenizers.Regex(PATTERNS[pattern]), behavior="isolated")
    return [piece for piece, _ in split.pre_tokenize_str(text)]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_each_digit_stands_alone(pattern: str) -> None:
    assert pieces(pattern, "x=2048") == ["x", "=", "2", "0", "4", "8"]


def test_indentation_goes_with_the_line_break_but_for_its_last_blank() -> None:
    text = "def __init__(self):\n        self.x_y = 0\n\n    return"
    expected = ["def", " __init__", "(self", "):\n       ", " self", ".x_y", " =", " ", "0", "\n\n   ", " return"]
    assert pieces("code", text) == expected


@given(
    st.lists(st.sampled_from([" ", "\n", "\t", "a", "_", ".", "(", "1", "\r", "é", "\u3000", "\u093f"])).map("".join)
)
@settings(max_examples=300, deadline=None)
def test_pieces_are_the_whole_text(text: str) -> None:
    for pattern in PATTERNS:
        assert "".join(pieces(pattern, text)) == text


def test_code_pattern_needs_fewer_tokens_for_python(documents: list[str]) -> None:
    counts = {
        pattern: sum(map(len, Tokenizer(train(iter([documents]), 600, PATTERNS[pattern])).encode_batch(documents)))
        for pattern in PATTERNS
    }
    assert counts["code"] < 0.97 * counts["qwen2"]


# Training


def test_training_does_not_depend_on_batches(documents: list[str]) -> None:
    together = train(iter([documents]), 600, PATTERNS["code"]).to_str()
    one_by_one = train(([text] for text in documents), 600, PATTERNS["code"]).to_str()
    assert together == one_by_one


def test_equal_runs_write_equal_files(tokenizer_folder: Path, corpus: Path, tmp_path: Path) -> None:
    training.run(TokenizerConfig(vocab_size=600), tmp_path, corpus=corpus)
    for path in tokenizer_folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("documents_in", [1, 40], ids=["one long document", "many documents"])
def test_a_sample_is_spread_evenly(tmp_path: Path, documents_in: int) -> None:
    """Each word fills a quarter of the text, so a fair half of the text holds it half as often."""
    words = ["apricot ", "blueberry ", "cherry ", "date "]
    text = "".join(word * (400_000 // len(word)) for word in words)
    size = -(-len(text) // documents_in)
    texts = [text[start : start + size] for start in range(0, len(text), size)]
    pq.write_table(
        pa.table({"id": [str(number) for number in range(len(texts))], "text": texts}), tmp_path / "a.parquet"
    )
    heard = "".join(passage for batch in sample(tmp_path / "a.parquet", 0.5) for passage in batch)
    for word in words:
        assert heard.count(word) / text.count(word) == pytest.approx(0.5, abs=0.1)


def test_a_limited_sample_is_what_is_learned_from(tmp_path: Path) -> None:
    """The corpus says another word every 16,384 characters: half of it teaches one word of the two."""
    text = "".join((word * 16_384)[:16_384] for word in ("apricot ", "blueberry ") * 10)
    pq.write_table(pa.table({"id": ["0"], "text": [text]}), tmp_path / "train.parquet")
    training.run(TokenizerConfig(vocab_size=300, sample_bytes=len(text) // 2), tmp_path, corpus=tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert sorted(len(tokenizer.encode(word)) == 1 for word in (" apricot", " blueberry")) == [False, True]


def test_a_text_with_little_to_merge_gives_a_smaller_vocabulary() -> None:
    assert Tokenizer(train(iter([["aaaa"]]), 4096, PATTERNS["code"])).vocab_size < 280


def test_an_interruption_while_reading_ends_the_training() -> None:
    def interrupted() -> Iterator[list[str]]:
        yield ["some text"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(interrupted(), 300, PATTERNS["code"])


# What the user can mend


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"vocab_size": 200}, "`vocab_size` must be at least 266"),
        ({"sample_bytes": 2**31}, "`sample_bytes` must be between 100000 and 2147483647"),
        ({"pattern": "gpt"}, "`pattern` must be code|qwen2, not 'gpt'"),
    ],
)
def test_settings_out_of_range_are_refused(table: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError) as refusal:
        read_table(TokenizerConfig, table, "pocket.toml [tokenizer]")
    assert sentence in str(refusal.value)


def test_a_corpus_without_text_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [], "text": pa.array([], pa.string())}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"train\.parquet: no text to learn a tokenizer from"):
        training.run(TokenizerConfig(), tmp_path, corpus=tmp_path)


def test_a_truncated_corpus_is_refused(corpus: Path, tmp_path: Path) -> None:
    whole = (corpus / "train.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"train\.parquet: not a whole Parquet file"):
        training.run(TokenizerConfig(), tmp_path, corpus=tmp_path)


def test_a_corpus_without_the_columns_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["0"], "content": ["text"]}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match="no column `text`"):
        training.run(TokenizerConfig(), tmp_path, corpus=tmp_path)


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json: no such file"):
        Tokenizer.load(tmp_path)


def test_a_truncated_tokenizer_is_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    whole = (tokenizer_folder / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"tokenizer\.json: not a whole tokenizer"):
        Tokenizer.load(tmp_path)


def test_a_foreign_tokenizer_is_refused(tmp_path: Path) -> None:
    foreign = tokenizers.Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    foreign.decoder = decoders.ByteLevel()
    foreign.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"has no control token `<\|begin_of_text\|>`"):
        Tokenizer.load(tmp_path)
