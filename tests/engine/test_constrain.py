"""Constraints: what may come next against all texts of the form, and texts made under them against other parsers."""

import itertools
import json
import re
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.engine.choose import make_chooser
from groundup.engine.constrain import Constraint, GrammarCompiler
from groundup.engine.sampling import Sampling
from groundup.engine.speculate import verify
from groundup.errors import UserError
from groundup.tokens.config import PATTERNS
from groundup.tokens.tokenizer import Tokenizer, train

CORPUS = ['{"name": "Zoë 😀", "age": 12, "tags": ["ab", "abc"], "ok": true}\n'] * 20 + [
    "abcabc caba ab bc (a + b) "
] * 20
TOKENIZER = Tokenizer(train(iter([CORPUS]), 320, PATTERNS["code"]))
COMPILER = GrammarCompiler(TOKENIZER)
ENDS = (TOKENIZER.eos_id, TOKENIZER.end_id)
PIECES = [TOKENIZER.piece(index) for index in range(TOKENIZER.vocab_size)]


def _random_text(constraint: Constraint, seed: int, max_tokens: int = 300, **chosen: Any) -> tuple[str, bool]:
    """What random logits write under the constraint, and whether they came to its end."""
    chooser = make_chooser(Sampling(temperature=1.0, seed=seed, **chosen), [0], constraint)
    generator = torch.Generator().manual_seed(seed)
    while not chooser.has_ended and len(chooser.answer) < max_tokens:
        chooser.choose(2 * torch.randn(TOKENIZER.vocab_size, generator=generator))
    return TOKENIZER.decode(chooser.answer), chooser.has_ended


def _require_mask(constraint: Constraint, said: bytes, language: list[bytes]) -> None:
    """A token may come next if some text of the language begins with all that; the end, if what was said is one.

    Where all texts go on in the same way, one token of that way is enough.
    """
    expected = _next_tokens(said, language)
    found = np.flatnonzero(constraint.allowed()).tolist()
    if found != expected:
        assert len(found) == 1
        assert found[0] in expected
        ahead = said + PIECES[found[0]]
        assert all(text.startswith(ahead) for text in language if text.startswith(said))
    assert constraint.may_end == (said in language)


def _next_tokens(said: bytes, language: list[bytes]) -> list[int]:
    tokens = []
    for index, piece in enumerate(PIECES):
        if (index in ENDS and said in language) or (piece and any(text.startswith(said + piece) for text in language)):
            tokens.append(index)
    return tokens


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text('ab"\\{.*|é😀\n', min_size=1, max_size=5), min_size=1, max_size=4), st.integers(0, 2**32))
def test_of_choices_exactly_what_leads_to_one_of_them_may_come_next(texts: list[str], seed: int):
    language = [text.encode() for text in texts]
    constraint, said, generator = COMPILER.choices(texts), b"", np.random.default_rng(seed)
    while True:
        _require_mask(constraint, said, language)
        token = int(generator.choice(np.flatnonzero(constraint.allowed())))
        constraint.accept(token)
        if token in ENDS:
            break
        said += PIECES[token]
    assert said in language


@pytest.mark.parametrize("pattern", ["a{1,3}(b|c)?", "(ab){0,2}c", "[ab]{2}", "(a|ab)(c|bca)?", "a?(bc|b)+a"])
def test_of_a_pattern_exactly_what_leads_to_a_match_may_come_next(pattern: str):
    """Against Python's `re` on all texts of three letters, which is another implementation."""
    letters = ("".join(text) for length in range(8) for text in itertools.product("abc", repeat=length))
    language = [text.encode() for text in letters if re.fullmatch(pattern, text)]
    for seed in range(3):
        constraint, said, generator = COMPILER.regex(pattern), b"", np.random.default_rng(seed)
        while len(said) < 4:
            _require_mask(constraint, said, language)
            token = int(generator.choice(np.flatnonzero(constraint.allowed())))
            if token in ENDS:
                break
            constraint.accept(token)
            said += PIECES[token]


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["ab", "abc", "é"]}, "minItems": 1, "maxItems": 3},
        "ok": {"type": ["boolean", "null"]},
    },
    "required": ["name", "age", "tags", "ok"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("schema", [SCHEMA, json.dumps(SCHEMA)], ids=["mapping", "text"])
def test_random_text_under_a_schema_meets_it(schema: Any):
    constraint = COMPILER.json_schema(schema)
    seen = set()
    for seed in range(20):
        text, has_ended = _random_text(constraint, seed)
        assert has_ended, text
        found = json.loads(text)
        assert set(found) == set(SCHEMA["required"])
        assert isinstance(found["name"], str)
        assert len(found["name"]) <= 6
        assert isinstance(found["age"], int)
        assert 0 <= found["age"] <= 150
        assert 1 <= len(found["tags"]) <= 3
        assert set(found["tags"]) <= {"ab", "abc", "é"}
        assert found["ok"] in (True, False, None)
        seen.add(text)
    assert len(seen) > 15


def test_between_the_parts_of_json_there_is_no_endless_space():
    constraint = COMPILER.json_schema({})
    text = "[1,\n" + 21 * " "
    with pytest.raises(ValueError, match="the constraint forbids it"):
        for index in TOKENIZER.encode(text):
            constraint.accept(index)
    indented = COMPILER.json_schema(SCHEMA)
    value = {"name": "Zoë 😀", "age": 7, "tags": ["é"], "ok": None}
    for style in ({"indent": 2}, {"indent": None}, {"separators": (",", ":")}):
        written = indented.fork()
        for index in TOKENIZER.encode(json.dumps(value, ensure_ascii=False, **style)):
            written.accept(index)
        assert written.must_end


def test_random_text_under_a_grammar_is_in_its_language():
    constraint = COMPILER.lark('start: "a" | "(" start " + " start ")"')
    ended = 0
    for seed in range(20):
        text, has_ended = _random_text(constraint, seed, max_tokens=60)
        if has_ended:
            ended += 1
            while "(a + a)" in text:
                text = text.replace("(a + a)", "a")
            assert text == "a"
    assert ended > 5


@pytest.mark.parametrize("pattern", ["(?s:.*)", "(?s:.)+x"])
def test_no_control_token_may_come_next_but_the_end_where_the_text_may_end(pattern: str):
    constraint = COMPILER.regex(pattern)
    constraint.accept(TOKENIZER.encode("é")[0])
    allowed = set(np.flatnonzero(constraint.allowed()).tolist())
    assert not allowed & set(TOKENIZER.control.values()), "within a character nothing ends"
    constraint = COMPILER.regex(pattern)
    constraint.accept(TOKENIZER.encode("a")[0])
    allowed = set(np.flatnonzero(constraint.allowed()).tolist())
    assert allowed & set(TOKENIZER.control.values()) == (set(ENDS) if pattern == "(?s:.*)" else set())
    for name in ("<|user|>", "<|pad|>", "<|tool_call|>"):
        with pytest.raises(ValueError, match="the constraint forbids it"):
            constraint.accept(TOKENIZER.control[name])


def test_a_grammar_cannot_ask_for_a_control_token():
    user = TOKENIZER.control["<|user|>"]
    with pytest.raises(UserError, match="the grammar cannot be compiled"):
        COMPILER.lark("start: <|user|> /a/")
    with pytest.raises(UserError, match="the grammar cannot be followed: no text of ordinary tokens meets it"):
        COMPILER.lark(f"start: <[{user}]> /a/")
    later = make_chooser(Sampling(), [0], COMPILER.lark(f"start: /a/ <[{user}]>"))
    later.choose(torch.zeros(TOKENIZER.vocab_size))
    with pytest.raises(ValueError, match="leave no token"):
        later.choose(torch.zeros(TOKENIZER.vocab_size))


def test_only_the_tokens_that_were_named_end_a_text():
    compiler = GrammarCompiler(TOKENIZER, end_ids=[TOKENIZER.end_id])
    constraint = compiler.choices(["a"])
    constraint.accept(TOKENIZER.encode("a")[0])
    assert np.flatnonzero(constraint.allowed()).tolist() == [TOKENIZER.end_id]
    assert constraint.must_end


@pytest.mark.parametrize("end_ids", [[], [TOKENIZER.encode("a")[0]], [TOKENIZER.end_id, 9999]])
def test_an_end_that_is_no_control_token_is_refused(end_ids: list[int]):
    with pytest.raises(ValueError, match="`end_ids` must be one or more control tokens"):
        GrammarCompiler(TOKENIZER, end_ids)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["accept", "undo", "fork", "forbidden"]), max_size=25), st.integers(0, 2**32))
def test_after_any_way_there_and_back_a_constraint_is_as_new(steps: list[str], seed: int):
    """Accepted, undone and refused tokens in any order, the end among them: only what was said counts."""
    texts = ["aba", "abcab", "cab", "(a + b)"]
    language = [text.encode() for text in texts]
    constraint, said, generator = COMPILER.choices(texts), list[int](), np.random.default_rng(seed)
    for step in steps:
        has_ended = len(said) > 0 and said[-1] in ENDS
        if step == "accept" and not has_ended:
            said.append(int(generator.choice(np.flatnonzero(constraint.allowed()))))
            constraint.accept(said[-1])
        elif step == "undo":
            count = int(generator.integers(len(said) + 1))
            constraint.undo(count)
            del said[len(said) - count :]
        elif step == "fork":
            left, constraint = constraint, constraint.fork()
            left.undo(len(said))
        elif step == "forbidden":
            possible = [] if has_ended else _next_tokens(b"".join(PIECES[index] for index in said), language)
            with pytest.raises(ValueError, match="the constraint forbids it"):
                constraint.accept(int(generator.choice(np.setdiff1d(np.arange(-1, 330), possible))))
    if said and said[-1] in ENDS:
        assert not constraint.allowed().any()
    else:
        _require_mask(constraint, b"".join(PIECES[index] for index in said), language)


def test_a_constraint_can_be_used_for_many_texts():
    constraint = COMPILER.choices(["ab", "abc"])
    assert {_random_text(constraint, seed)[0] for seed in range(20)} == {"ab", "abc"}


def test_speculation_and_undoing_under_a_constraint_give_the_text_without_them():
    constraint = COMPILER.json_schema(SCHEMA)

    def row(place: int) -> torch.Tensor:
        return 2 * torch.randn(TOKENIZER.vocab_size, generator=torch.Generator().manual_seed(place))

    sampling = Sampling(temperature=1.0, seed=3, top_k=40, stop_token_ids=ENDS)
    plain = make_chooser(sampling, [0], constraint)
    while not plain.has_ended:
        plain.choose(row(len(plain.answer)))
    chooser = make_chooser(sampling, [0], constraint)
    while not chooser.has_ended:
        place = len(chooser.answer)
        right = plain.answer[place : place + place % 4]
        guesses = [*right, *([5] if place % 3 else [])]
        list(verify(chooser, torch.stack([row(place + ahead) for ahead in range(len(guesses) + 1)]), guesses))
        if place % 2 and not chooser.has_ended:
            chooser.undo(1)
            chooser.fork().choose(row(place))
            chooser.choose(row(len(chooser.answer)))
    assert chooser.answer == plain.answer


def test_a_whole_text_ends_although_more_tokens_were_asked_for():
    chooser = make_chooser(Sampling(min_tokens=9, stop_token_ids=ENDS), [0], COMPILER.choices(["a"]))
    for _ in range(2):
        chooser.choose(torch.zeros(TOKENIZER.vocab_size))
    assert chooser.has_ended
    longer = make_chooser(Sampling(min_tokens=9, stop_token_ids=ENDS), [0], COMPILER.regex("a*"))
    for _ in range(9):
        assert longer.choose(torch.zeros(TOKENIZER.vocab_size)).token not in ENDS


def test_logits_beyond_the_tokenizer_are_never_chosen_and_fewer_are_refused():
    logits_v = torch.zeros(TOKENIZER.vocab_size + 50)
    logits_v[TOKENIZER.vocab_size :] = 100
    chooser = make_chooser(Sampling(), [0], COMPILER.choices(["ab"]))
    while not chooser.has_ended:
        chooser.choose(logits_v)
    assert TOKENIZER.decode(chooser.answer) == "ab"
    with pytest.raises(ValueError, match="the constraint is for a tokenizer of 306 tokens, but the model has only 300"):
        make_chooser(Sampling(), [0], COMPILER.choices(["ab"])).choose(torch.zeros(300))


@pytest.mark.parametrize(
    ("form", "what", "message"),
    [
        ("regex", "(a", "the regular expression cannot be compiled: .*unclosed group"),
        ("regex", r"[^\s\S]", "the regular expression cannot be followed: "),
        ("lark", "start: foo", 'the grammar cannot be compiled: .*unknown name: "foo"'),
        ("lark", "nothing", "the grammar cannot be compiled: "),
        ("json_schema", {"type": "bar"}, "the JSON schema cannot be compiled: Invalid type: bar"),
        ("json_schema", {"enum": []}, "the JSON schema cannot be compiled: Unsatisfiable schema"),
        ("json_schema", "{", "the JSON schema cannot be read: "),
        ("json_schema", "[1]", "the JSON schema cannot be read: "),
        ("choices", [], r"choices must be a list of texts that are not empty, not \[\]"),
        ("choices", ["a", ""], r"choices must be a list of texts that are not empty, not \['a', ''\]"),
        ("choices", "ab", "choices must be a list of texts that are not empty, not 'ab'"),
        ("choices", 5, "choices must be a list of texts that are not empty, not 5"),
        ("regex", None, "the regular expression must be a text, not None"),
        ("regex", 5, "the regular expression must be a text, not 5"),
        ("regex", "a\ud800", "the regular expression is not valid Unicode at character 1"),
        ("lark", None, "the grammar must be a text, not None"),
        (
            "json_schema",
            {"enum": {1, 2}},
            "the JSON schema cannot be read: Object of type set is not JSON serializable",
        ),
        ("json_schema", {(1, 2): {}}, "the JSON schema cannot be read: keys must be str"),
        ("json_schema", False, "the JSON schema cannot be compiled: Unsatisfiable schema"),
        ("json_schema", "false", "the JSON schema cannot be compiled: Unsatisfiable schema"),
        ("json_schema", None, "a JSON schema must be a mapping, true, false, or their text, not None"),
        ("json_schema", [1], r"a JSON schema must be a mapping, true, false, or their text, not \[1\]"),
    ],
)
def test_what_cannot_be_compiled_is_refused_in_one_sentence(form: str, what: Any, message: str):
    with pytest.raises(UserError, match=f"^{message}") as refused:
        getattr(COMPILER, form)(what)
    assert "backtrace" not in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("schema", [True, "true", " true\n", {}])
def test_a_schema_that_asks_for_nothing_is_met_by_any_json(schema: Any):
    for text in ('{"a": [1, null]}', "12", '"abc"'):
        constraint = COMPILER.json_schema(schema)
        for token in TOKENIZER.encode(text):
            constraint.accept(token)
        assert constraint.may_end


def test_choices_that_can_be_read_once_are_those_that_are_in_a_list():
    assert _random_text(COMPILER.choices(text for text in ("a", "b")), 0)[0] in ("a", "b")


def test_what_is_no_tokenizer_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="`tokenizer` must be a `Tokenizer`, not 5"):
        GrammarCompiler(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`end_ids`: 5 is no list of token ids"):
        GrammarCompiler(TOKENIZER, 5)  # type: ignore[arg-type]


def test_without_the_library_it_is_said_what_brings_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UserError, match=r"constrained decoding needs llguidance; pip install 'groundup\[constrain\]'"):
        GrammarCompiler(TOKENIZER)


def test_nothing_follows_the_end():
    constraint = COMPILER.choices(["a"])
    for index in (*TOKENIZER.encode("a"), TOKENIZER.eos_id):
        constraint.accept(index)
    with pytest.raises(ValueError, match="the constraint forbids it"):
        constraint.accept(TOKENIZER.eos_id)
    with pytest.raises(ValueError, match="the constraint cannot take back 9 tokens"):
        constraint.undo(9)
