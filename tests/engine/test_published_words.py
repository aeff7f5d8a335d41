"""Engines with the tokenizers of published folders: prompts, streams, stop strings, forms, and what is measured."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from published_tokenizers import HARD, MAKERS, byte_level, unigram
from tiny import hot_model

import groundup as gu
from groundup.assist.chat import load_writer
from groundup.cli import main
from groundup.cli.conversation import printable
from groundup.engine.constrain import GrammarCompiler
from groundup.errors import UserError
from groundup.evaluate.quantization import TextStream
from groundup.formats.published import load_tokenizer
from groundup.model.presets import build_config

SIZE = 1000  # no less than any of the tokenizers, of which some have fewer tokens
FORMABLE = [kind for kind in MAKERS if kind != "Unigram without bytes"]
KINDS = pytest.mark.parametrize("kind", MAKERS)


def _folder(root: Path, make: Callable[[Path], Path], preset: str = "llama") -> Path:
    """A model of random weights with this tokenizer."""
    config = build_config(preset, depth=1, vocab_size=SIZE, context=256, width=32, head_dim=16)
    folder = make(root)
    gu.save(hot_model(config, dtype=torch.float32), folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: _folder(root / str(number), make) for number, (kind, make) in enumerate(MAKERS.items())}


def _reference(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


@KINDS
def test_prompts_begin_as_the_tokenizer_has_it_and_texts_go_on_from_them(folders: dict[str, Path], kind: str):
    engine, reference = gu.Engine(folders[kind]), _reference(folders[kind])
    assert engine.stop_ids == {reference.eos_token_id}
    prompts = [text for text in HARD if "</s>" not in text and text.strip()]
    answers = engine.generate(prompts, max_tokens=12, temperature=1.0, seed=1)
    closing = len(load_tokenizer(folders[kind]).ending)
    for text, answer in zip(prompts, answers, strict=True):
        ids = reference.encode(text, split_special_tokens=True)
        assert answer.prompt == ids[: len(ids) - closing]
        if "byte-level" in kind:
            everything = reference.decode(answer.prompt + answer.tokens, skip_special_tokens=True)
            assert everything == text + answer.text
        assert "".join(engine.stream(text, max_tokens=12, temperature=1.0, seed=1)) == answer.text


@KINDS
def test_an_answer_keeps_the_space_before_it(folders: dict[str, Path], kind: str):
    engine = gu.Engine(folders[kind])
    token = engine.tokenizer.encode_behind(" running")[0]
    (answer,) = engine.generate(["runners"], max_tokens=3, logit_bias={token: 1e4})
    assert answer.tokens == [token] * 3
    assert answer.text == 3 * engine.tokenizer.piece(token).decode() and answer.text.startswith(" ")


@KINDS
def test_a_stop_string_ends_a_text_within_a_token(folders: dict[str, Path], kind: str):
    engine = gu.Engine(folders[kind])
    words = engine.tokenizer
    long = next(index for index in words.encode(HARD[0]) if len(words.piece(index).strip()) > 2)
    piece = words.piece(long).decode()
    stop, bias = piece[-2], {"logit_bias": {long: 1e4}, "max_tokens": 4}
    (answer,) = engine.generate(["a"], stop=[piece[-1] + piece + piece[:2]], **bias)
    assert (answer.text, answer.ending) == (piece[:-1], "stop")
    (answer,) = engine.generate(["a"], stop=[stop], **bias)
    assert (answer.text, answer.ending) == (piece[: piece.index(stop)], "stop")
    assert "".join(engine.stream("a", stop=[stop], **bias)) == answer.text


@pytest.mark.parametrize("kind", FORMABLE)
def test_characters_stream_whole_and_forms_are_met(folders: dict[str, Path], kind: str):
    pytest.importorskip("llguidance")
    engine, text = gu.Engine(folders[kind]), "∀😀 e\u0301, abc"
    compiler = GrammarCompiler(engine.tokenizer)
    asked = {"max_tokens": 60, "temperature": 1.0, "seed": 2}
    pieces = list(engine.pieces("Hello", constraint=compiler.choices([text]), **asked))
    assert "".join(piece.text for piece in pieces) == text
    assert pieces[0].text == "" and all(piece.text != "\ufffd" for piece in pieces)
    for seed in range(5):
        (one,) = engine.generate(["Hello"], constraint=compiler.regex("(yes|no) [a-d]{3}x"), **asked | {"seed": seed})
        assert one.ending == "stop" and one.text[:-4] in ("yes ", "no ") and one.text[-1] == "x"


def test_a_form_is_met_where_the_tokenizer_normalizes(tmp_path: Path):
    """Qwen composes characters first: a form of others cannot be written as the tokenizer would."""
    pytest.importorskip("llguidance")
    folder = _folder(tmp_path / "model", byte_level)
    spec = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(spec | {"normalizer": {"type": "NFC"}}))
    engine, text = gu.Engine(folder), "cafe\u0301 e\u0301lan"
    assert engine.tokenizer.decode(engine.tokenizer.encode(text)) != text
    (one,) = engine.generate(["a"], constraint=GrammarCompiler(engine.tokenizer).choices([text]), max_tokens=30)
    assert one.text == text


@pytest.mark.parametrize("kind", FORMABLE)
def test_a_form_that_leaves_no_choice_is_written_as_the_tokenizer_would(folders: dict[str, Path], kind: str):
    pytest.importorskip("llguidance")
    words = load_tokenizer(folders[kind])
    text = "allowed" if kind == "Unigram" else "items"
    expected, pieces = words.encode_behind(text), [words.piece(index) for index in range(words.vocab_size)]
    assert text[: len(pieces[expected[0]]) + 1].encode() in pieces  # it does not begin with the longest token
    form, written = GrammarCompiler(words).choices([text]), []
    while not form.must_end:
        (token,) = np.flatnonzero(form.allowed()).tolist()
        form.accept(token)
        written.append(token)
    assert written == expected


def test_a_form_needs_an_end(tmp_path: Path):
    pytest.importorskip("llguidance")
    folder = byte_level(tmp_path)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match=r"`end_ids` must be one or more control tokens of the tokenizer, not \(\)"):
        GrammarCompiler(load_tokenizer(folder))


def test_encoders_read_whole_texts(tmp_path: Path):
    for preset in ("bert", "t5"):
        folder = _folder(tmp_path / preset, unigram, preset)
        engine, texts = gu.Engine(folder), ["running runners", "a"]
        whole = [_reference(folder).encode(text) for text in texts]
        assert [ids[-1] for ids in whole] == [1, 1]
        torch.testing.assert_close(engine.embed(texts), engine.embed(whole))
        if preset == "t5":
            answers = engine.generate(texts, max_tokens=5)
            assert [one.tokens for one in answers] == [one.tokens for one in engine.generate(whole, max_tokens=5)]
            short = engine.generate([ids[:-1] for ids in whole], max_tokens=5)
            assert [one.logprobs for one in answers] != [one.logprobs for one in short]


def test_conversations_need_a_tokenizer_of_ours(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    engine = gu.Engine(folders["byte-level"])
    said = [{"role": "user", "content": "Hello"}]
    for ask in (engine.chat, engine.chat_prompt, lambda said: list(engine.stream_chat(said))):
        with pytest.raises(UserError, match="conversations are made of groundup's own control tokens"):
            ask(said)
    assert main(["chat", str(folders["byte-level"])]) == 2
    assert "has no control token `<|begin_of_text|>`; use one that groundup has trained" in capsys.readouterr().err


@KINDS
def test_documents_are_closed_and_begun_as_texts_are(folders: dict[str, Path], tmp_path: Path, kind: str):
    documents, reference = ["running runners", "A short one: ä ö ü."], _reference(folders[kind])
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    stream = TextStream([str(path)], load_tokenizer(folders[kind]), 10**6)
    expected = [[*reference.encode(text, add_special_tokens=False), reference.eos_token_id] for text in documents]
    assert stream.tokens(0, stream.total_tokens).tolist() == [*expected[0], *expected[1]]
    assert stream.offsets.tolist() == [0, len(expected[0]), stream.total_tokens]
    begins = "nothing before" not in kind and "Unigram" not in kind
    assert stream.bos_id == (reference.bos_token_id if begins else reference.eos_token_id)


def test_documents_need_a_first_token(folders: dict[str, Path], tmp_path: Path):
    folder = byte_level(tmp_path, begins=False)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="has no token that begins or ends a text"):
        TextStream([__file__], load_tokenizer(folder), 10**6)


@KINDS
def test_folders_are_measured_and_sampled(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
):
    texts, out = tmp_path / "heldout.txt", tmp_path / "out"
    texts.write_text("A short one: ä ö ü, and runners that are running.")
    command = ["quantize", str(folders[kind]), "--out", str(out), "--format", "w8", "--heldout", str(texts)]
    assert main(command) == 0
    record = json.loads((out / "quantization.json").read_text())
    assert record["measured"] and record["texts"]["heldout"]["bytes"] == len(texts.read_bytes())
    capsys.readouterr()
    assert load_writer(out).stop_ids == {_reference(out).eos_token_id}
    asked = ["--max-tokens", "6", "--temperature", "0"]
    assert main(["sample", str(out), "--prompt", "runners", *asked]) == 0
    (answer,) = gu.Engine(out).generate(["runners"], max_tokens=6)
    assert capsys.readouterr().out == f"runners{printable(answer.text)}\n"
    begins = "nothing before" not in kind and "Unigram" not in kind
    assert main(["sample", str(out), *asked]) == (0 if begins else 2)
    assert begins or "--prompt needs a text" in capsys.readouterr().err
