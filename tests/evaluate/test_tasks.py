"""Choosing, asking and scoring, with models whose answers are known."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from groundup.errors import UserError
from groundup.evaluate.statistics import mcnemar_test, wilson_interval
from groundup.evaluate.tasks import (
    Message,
    Question,
    ask,
    choose_questions,
    compare_answers,
    mark,
    read_questions,
    score_answers,
)


def _question(number: int, mode: str = "with passage", kind: str = "purpose", text: str = "") -> Question:
    prompt: list[Message] = [{"role": "user", "content": text or f"What does f{number} do?"}]
    if mode in ("with passage", "unanswerable"):
        prompt = [{"role": "document", "content": f"f{number}()\nReturn item {number}."}, *prompt]
    references = {"calculator": str(number), "unanswerable": "I don't know."}
    return Question(f"{number:032x}", kind, mode, tuple(prompt), references.get(mode, f"Return item {number}."))


def _reader(conversations: Sequence[Sequence[Message]]) -> list[str]:
    """A model that quotes the first document's second line and without a document says nothing useful."""
    documents = [[m["content"] for m in messages if m["role"] == "document"] for messages in conversations]
    return [given[0].split("\n")[1] if given else "I don't know." for given in documents]


QUESTIONS = [
    *[_question(number) for number in range(30)],
    *[_question(number, "unanswerable") for number in range(100, 120)],
    *[_question(number, "calculator") for number in range(200, 220)],
    *[_question(number, "closed book") for number in range(300, 310)],
    *[_question(number, "chat") for number in range(400, 410)],
]


def test_closed_book_questions_are_the_same_questions_without_documents() -> None:
    chosen = choose_questions(QUESTIONS, 10)
    given = {one.id: one for one in chosen if one.mode == "with passage"}
    closed = {one.id: one for one in chosen if one.mode == "closed book"}
    assert len(given) == 10
    assert given.keys() == closed.keys()
    for id, question in closed.items():
        assert question.prompt == given[id].prompt[1:]
        assert question.reference == given[id].reference


def test_a_quote_is_never_asked_for_without_its_text() -> None:
    chosen = choose_questions([_question(1), _question(2, kind="quote"), _question(3, kind="about")], 10)
    assert [one.id for one in chosen if one.mode == "closed book"] == [_question(1).id]
    assert sum(one.mode == "with passage" for one in chosen) == 3


def test_the_choice_does_not_depend_on_order_and_grows_by_adding() -> None:
    few, many = choose_questions(QUESTIONS, 5), choose_questions(reversed(QUESTIONS), 15)
    assert few == choose_questions(reversed(QUESTIONS), 5)
    assert set(map(str, few)) < set(map(str, many))
    assert {one.mode for one in few} == {"with passage", "closed book", "unanswerable", "calculator"}


def test_the_same_words_count_once() -> None:
    twice = [_question(1, text="What?"), _question(2, text="What?"), _question(3, text="Which?")]
    assert len([one for one in choose_questions(twice, 10) if one.mode == "with passage"]) == 2


def test_each_mode_is_marked_by_its_own_rule() -> None:
    assert mark(_question(1), "return item 1").is_correct
    assert not mark(_question(1), "I don't know.").is_correct
    assert mark(_question(1, "unanswerable"), "I don't know, sorry.").is_correct
    assert not mark(_question(1, "unanswerable"), "Return item 1.").is_correct
    assert mark(_question(12, "calculator"), "The answer is 12.").is_correct
    assert not mark(_question(12, "calculator"), "The answer is 13.").is_correct


def test_answers_must_be_as_many_as_questions() -> None:
    with pytest.raises(ValueError, match="zip"):
        ask(QUESTIONS[:2], lambda conversations: ["one"])


def test_scores_of_a_model_that_can_only_read() -> None:
    scores = score_answers(ask(choose_questions(QUESTIONS, 20), _reader), "reader")
    rows: dict[str, Any] = {row["mode"]: row for row in scores["questions"]}
    assert rows["with passage"]["exact_match"]["value"] == rows["with passage"]["f1"]["value"] == 1.0
    assert rows["with passage"]["exact_match"]["low"] == wilson_interval(20, 20).low
    assert rows["closed book"]["exact_match"]["value"] == 0.0
    assert rows["closed book"]["refused"]["value"] == 1.0
    assert rows["unanswerable"]["exact_match"]["value"] == 0.0
    assert "f1" not in rows["unanswerable"]
    assert scores["calculator"] == {
        "n": 20,
        "accuracy": {"value": 0.0, "low": 0.0, "high": wilson_interval(0, 20).high},
    }
    exact, f1 = scores["comparisons"]
    assert exact["difference"] == 1.0
    assert exact["p_value"] == mcnemar_test([True] * 20, [False] * 20) == 2 / 2**20
    assert 0.9 < f1["difference"] <= 1.0
    assert [(row["mode"], row["kind"], row["n"]) for row in scores["kinds"]] == [
        ("with passage", "purpose", 20),
        ("closed book", "purpose", 20),
    ]


def test_models_are_compared_on_the_questions_that_both_were_asked() -> None:
    first = [mark(_question(number), f"Return item {number}.") for number in range(12)]
    second = [mark(_question(number), f"Return item {number if number % 4 else -1}.") for number in range(4, 20)]
    exact, f1 = compare_answers("first − second", first, second)
    assert exact["n"] == f1["n"] == 8
    assert exact["difference"] == 2 / 8
    assert exact["p_value"] == 0.5  # two coins, both heads or both tails
    assert exact["low"] <= exact["difference"] <= exact["high"]
    # (z of 97.5 % + z of 80 %) times the deviation of 0.25 wins in 8, over the root of 8.
    assert exact["detectable"] == pytest.approx(2.801585 * (0.25 * 0.75) ** 0.5 / 8**0.5, rel=1e-5)
    assert compare_answers("nothing shared", first, [mark(_question(99), "")]) == []


def test_without_questions_there_are_no_scores() -> None:
    assert score_answers([], "model") == {"questions": [], "kinds": [], "comparisons": []}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    message = pa.struct([("role", pa.string()), ("content", pa.string()), ("tool_call", pa.string())])
    names = ("id", "kind", "mode", "split", "group", "answer")
    schema = pa.schema([*((name, pa.string()) for name in names), ("messages", pa.list_(message))])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def _row(id: str, split: str, *messages: dict[str, str]) -> dict[str, Any]:
    return {
        "id": id, "kind": "k", "mode": "with passage", "split": split, "group": "g", "answer": "A", "messages": messages
    }  # fmt: skip


def test_held_out_single_questions_are_read_up_to_the_question(tmp_path: Path) -> None:
    path = tmp_path / "conversations.parquet"
    user, reply = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
    call, result = {"role": "assistant", "content": "", "tool_call": "1 + 1"}, {"role": "tool", "content": "2"}
    document = {"role": "document", "content": "D"}
    _write(
        path,
        [
            _row("1", "train", user, reply),
            _row("2", "heldout", document, user, reply),
            _row("3", "heldout", user, reply, user, reply),
            _row("4", "heldout", user, call, result, reply),
        ],
    )
    questions = read_questions(path)
    assert [(one.id, one.prompt) for one in questions] == [("2", (document, user)), ("4", (user,))]
    assert questions[0].reference == "A"


def test_a_truncated_or_foreign_file_is_one_clear_sentence(tmp_path: Path) -> None:
    path = tmp_path / "conversations.parquet"
    _write(path, [_row("1", "heldout", {"role": "user", "content": "Q"})])
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"conversations\.parquet"):
        read_questions(path)
    pq.write_table(pa.table({"text": ["a"]}), path)
    with pytest.raises(UserError, match="groundup sft"):
        read_questions(path)
    with pytest.raises(UserError, match=r"absent\.parquet"):
        read_questions(tmp_path / "absent.parquet")
