"""Questions against passages whose right answers are known to a reader."""

from random import Random

import pyarrow as pa

from groundup.align.passages import Passage
from groundup.align.questions import Question, Uniqueness, questions_about

DUMPS = Passage(
    "id",
    "function",
    "json.dumps",
    "(obj, *, sort_keys=False, sep=(',', ':'), **kw)",
    "Serialize obj to a JSON formatted string.\n\nIf sort_keys is true, keys are sorted. Returns the string without a "
    "final line end. Raises TypeError for foreign objects.",
    "json",
)
METHOD = Passage("id2", "function", "cmd.Cmd.close", "(self, force=True)", "Close the shell for good.", "cmd")
STORY = Passage(
    "id3",
    "text",
    "",
    "",
    "An old miller lived by the river. There he met Tobin Brook. They spoke of silver all night.",
    "1",
)


def _ask(passage: Passage, *others: Passage, seed: int = 0) -> dict[str, Question]:
    uniqueness = Uniqueness.of([passage, *others])
    return {one.kind: one for one in questions_about(passage, passage.shown(1000), uniqueness, Random(seed))}


def test_a_function_is_asked_about_in_every_way_its_documentation_answers() -> None:
    answers = {kind: question.answer for kind, question in _ask(DUMPS).items()}
    head = "json.dumps(obj, *, sort_keys=False, sep=(',', ':'), **kw)"
    assert answers == {
        "purpose": f"{head}\nSerialize obj to a JSON formatted string.",
        "signature": head,
        "arguments": "obj, *, sort_keys=False, sep=(',', ':'), **kw",
        "which": "json.dumps",
        "where": "json",
        "returns": "Returns the string without a final line end.",
        "argument": "If sort_keys is true, keys are sorted.",
    }


def test_self_is_no_argument_and_a_method_lives_in_its_class() -> None:
    questions = _ask(METHOD)
    assert questions["arguments"].answer == "force=True"
    assert questions["where"].answer == "cmd.Cmd"
    assert "method" in {word for seed in range(20) for word in _ask(METHOD, seed=seed)["which"].text.split()}


def test_what_has_two_right_answers_is_not_asked() -> None:
    twin = Passage("id4", "function", "simplejson.dumps", "(obj)", DUMPS.text, "simplejson")
    assert {"which", "where"}.isdisjoint(_ask(DUMPS, twin))
    assert "purpose" in _ask(DUMPS, twin)


def test_a_text_is_asked_for_quotes_and_for_what_follows() -> None:
    for seed in range(10):
        questions = _ask(STORY, seed=seed)
        assert questions["about"].subject == "Tobin Brook"
        assert questions["about"].answer == "There he met Tobin Brook."
        assert questions["quote"].subject in questions["quote"].answer
        assert questions["quote"].subject in questions["quote"].text
        one, following = questions["continue"].subject, questions["continue"].answer
        assert f"{one} {following}" in STORY.text


def test_nothing_is_asked_about_what_is_not_shown() -> None:
    shown = DUMPS.shown(100)
    kinds = {one.kind for one in questions_about(DUMPS, shown, Uniqueness.of([DUMPS]), Random(0))}
    assert "returns" not in kinds
    assert "purpose" in kinds


def test_wording_varies_and_each_wording_is_filled_in() -> None:
    texts = {question.text for seed in range(60) for question in _ask(DUMPS, seed=seed).values()}
    assert len(texts) > 25
    assert not any("{" in text or "}" in text for text in texts)


def test_every_answer_to_a_real_passage_is_a_literal_quote(code_passages: pa.Table, text_passages: pa.Table) -> None:
    passages = [Passage.from_row(row) for table in (code_passages, text_passages) for row in table.to_pylist()]
    uniqueness = Uniqueness.of(passages)
    asked = 0
    for passage in passages:
        visible = passage.shown(300)
        for question in questions_about(passage, visible, uniqueness, Random(passage.id)):
            asked += 1
            assert question.answer in visible
            assert question.subject in visible
    assert asked > 800
