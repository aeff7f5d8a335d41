"""What every conversation promises, checked on real docstrings and on a made-up text."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from groundup.align.config import SftConfig
from groundup.align.conversations import (
    REFUSAL,
    Conversation,
    Split,
    build_conversations,
    read_conversations,
    write_conversations,
)
from groundup.align.passages import Passage
from groundup.assist.tools import calculate
from groundup.errors import UserError

CONFIG = SftConfig(questions_per_passage=6)


@pytest.fixture(scope="module")
def train(code_passages: pa.Table) -> list[Conversation]:
    return list(build_conversations(code_passages, CONFIG, "train"))


@pytest.fixture(scope="module")
def heldout(code_passages: pa.Table) -> list[Conversation]:
    return list(build_conversations(code_passages, CONFIG, "heldout"))


def _documents(conversation: Conversation) -> list[str]:
    return [message["content"] for message in conversation.messages if message["role"] == "document"]


def _said(conversation: Conversation) -> str:
    return [message["content"] for message in conversation.messages if message["role"] == "user"][-1]


def test_the_passage_that_is_given_holds_the_answer_and_no_other_does(train: list[Conversation]) -> None:
    given = [conversation for conversation in train if conversation.mode == "with passage"]
    for conversation in given:
        holding = [document for document in _documents(conversation) if conversation.answer in document]
        assert holding
        assert conversation.messages[-1] == {"role": "assistant", "content": conversation.answer}
    places = Counter(
        (len(_documents(one)), next(i for i, d in enumerate(_documents(one)) if one.answer in d))
        for one in given
        if one.kind == "signature"
    )
    for documents in (2, 3, 4):
        assert all(places[documents, place] > 0 for place in range(documents)), "the right passage stands everywhere"


def test_refusals_are_given_where_no_document_speaks_of_it(train: list[Conversation], code_passages: pa.Table) -> None:
    refused = [conversation for conversation in train if conversation.mode == "unanswerable"]
    summaries = {passage.name: passage.summary for passage in map(Passage.from_row, code_passages.to_pylist())}
    assert refused
    for conversation in refused:
        assert conversation.answer == REFUSAL == conversation.messages[-1]["content"]
        assert _documents(conversation)
        named = [name for name in summaries if f"{name} " in _said(conversation) or f"{name}?" in _said(conversation)]
        for name in named:
            assert not any(f"{name}(" in document for document in _documents(conversation))
    assert not any(one.answer == REFUSAL for one in train if one.mode != "unanswerable")


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("groups", ["modules", "passages"])
def test_a_prompt_does_not_tell_that_its_question_is_unanswerable(
    code_passages: pa.Table, groups: str, split: Split
) -> None:
    """Documents are two to four, each as often, and small talk precedes them alike: within four standard errors."""
    table = code_passages
    if groups == "passages":  # each passage is alone in its own, where no other document can be drawn from
        table = table.set_column(table.column_names.index("group"), "group", table["id"])
    config = SftConfig(
        questions_per_passage=20, heldout_questions_per_passage=100, document_share=0.5, unanswerable_share=0.5
    )
    conversations = list(build_conversations(table, config, split))
    openings = {}
    for mode in ("with passage", "unanswerable"):
        asked = [one for one in conversations if one.mode == mode]
        counts = Counter(len(_documents(one)) for one in asked)
        error = (1 / 3 * 2 / 3 / len(asked)) ** 0.5
        assert counts.keys() == {2, 3, 4}
        assert all(len(set(_documents(one))) == len(_documents(one)) for one in asked)
        assert all(abs(count / len(asked) - 1 / 3) < 4 * error for count in counts.values())
        openings[mode] = np.array([one.messages[0]["role"] != "document" for one in asked], dtype=float)
    answered, refused = openings["with passage"], openings["unanswerable"]
    error = (answered.var() / answered.size + refused.var() / refused.size) ** 0.5
    assert abs(answered.mean() - refused.mean()) < 4 * error


def test_documents_of_unanswerable_questions_are_as_long_as_those_of_others(code_passages: pa.Table) -> None:
    """All of a prompt's characters, on average, to a twentieth: one document fewer is a third."""
    config = SftConfig(questions_per_passage=20, document_share=0.5, unanswerable_share=0.5)
    conversations = list(build_conversations(code_passages, config, "train"))
    answered, refused = (
        np.mean([len("".join(_documents(one))) for one in conversations if one.mode == mode])
        for mode in ("with passage", "unanswerable")
    )
    assert refused == pytest.approx(answered, rel=0.05)


def test_closed_book_questions_have_no_document(train: list[Conversation]) -> None:
    assert not any(_documents(one) for one in train if one.mode in ("closed book", "calculator", "chat"))


def test_modes_stand_in_the_proportions_that_were_asked_for(train: list[Conversation]) -> None:
    """Within four standard errors of each share."""
    counts = Counter(conversation.mode for conversation in train)
    about_passages = counts["with passage"] + counts["unanswerable"] + counts["closed book"]
    for mode, share in (("with passage", CONFIG.document_share), ("unanswerable", CONFIG.unanswerable_share)):
        error = (share * (1 - share) / about_passages) ** 0.5
        assert abs(counts[mode] / about_passages - share) < 4 * error  # type: ignore[index]
    assert counts["calculator"] == pytest.approx(CONFIG.calculator_share * len(train), abs=1)
    assert counts["chat"] == pytest.approx(CONFIG.chat_share * len(train), abs=1)
    turns = [sum(m["role"] == "user" for m in one.messages) for one in train if one.group]
    assert np.mean(np.array(turns) == 2) == pytest.approx(CONFIG.multi_turn_share, abs=0.05)


def test_heldout_passages_appear_in_no_training_conversation(
    train: list[Conversation], heldout: list[Conversation], code_passages: pa.Table
) -> None:
    passages = [(Passage.from_row(row), row["split"]) for row in code_passages.to_pylist()]
    for conversations, other in ((train, "heldout"), (heldout, "train")):
        shown = "\n".join(message["content"] for one in conversations for message in one.messages)
        heads = {p.head for p, split in passages if split == other} - {
            p.head for p, split in passages if split != other
        }
        assert heads
        assert not [head for head in heads if head in shown]
    assert {one.group for one in heldout} == {"csv", "textwrap", ""}


def test_heldout_calculations_are_not_trained_on(train: list[Conversation], code_passages: pa.Table) -> None:
    # Many, so that an expression drawn twice would come to light.
    config = replace(CONFIG, calculator_share=0.9)
    trained = {one.messages[1].get("tool_call") for one in build_conversations(code_passages, config, "train")} - {None}
    held_out = {one.messages[1].get("tool_call") for one in build_conversations(code_passages, config, "heldout")} - {
        None
    }
    assert len(trained) > 1000
    assert len(held_out) > 100
    assert trained.isdisjoint(held_out)


def test_calculations_go_through_the_tool(train: list[Conversation]) -> None:
    calculations = [one for one in train if one.mode == "calculator"]
    assert calculations
    for one in calculations:
        call, result, final = one.messages[1:]
        assert [m["role"] for m in one.messages] == ["user", "assistant", "tool", "assistant"]
        assert result["content"] == calculate(call["tool_call"]) == one.answer
        assert final["content"] == f"The answer is {one.answer}."


def test_a_conversation_fits_the_context(train: list[Conversation], code_passages: pa.Table) -> None:
    """At three characters a token and with the default settings, for all but a hundredth."""
    sizes = np.array([sum(len(m["content"]) for m in one.messages) for one in train])
    assert np.mean(sizes <= 3 * CONFIG.context) > 0.99
    tight = build_conversations(code_passages, replace(CONFIG, document_characters=500), "train")
    longest = [max(len("".join(_documents(one))) for one in several) for several in (train, tight)]
    assert longest[1] < longest[0]


def test_the_same_seed_gives_the_same_conversations_in_whatever_order_the_table_stands(code_passages: pa.Table) -> None:
    table = code_passages.slice(0, 120)
    shuffled = table.take(np.random.default_rng(0).permutation(table.num_rows))
    first = list(build_conversations(table, CONFIG, "train"))
    assert first == list(build_conversations(shuffled, CONFIG, "train"))
    other = list(build_conversations(table, replace(CONFIG, seed=1), "train"))
    assert {one.id for one in first}.isdisjoint(one.id for one in other)


def test_ids_are_unique_and_kinds_are_mixed_from_the_start(
    train: list[Conversation], heldout: list[Conversation]
) -> None:
    assert len({one.id for one in train + heldout}) == len(train) + len(heldout)
    assert len({one.mode for one in train[:100]}) >= 4


def test_the_number_of_passages_can_be_limited(code_passages: pa.Table) -> None:
    config = replace(CONFIG, passages=30, calculator_share=0.0, chat_share=0.0)
    few = list(build_conversations(code_passages, config, "train"))
    assert 0 < len(few) <= 30 * 6


def test_a_text_gives_quotes_continuations_and_refusals(text_passages: pa.Table) -> None:
    config = replace(CONFIG, questions_per_passage=40)
    conversations = list(build_conversations(text_passages, config, "train"))
    kinds = Counter((one.mode, one.kind) for one in conversations)
    assert {kind for mode, kind in kinds if mode == "closed book"} == {"continue"}
    assert {kind for mode, kind in kinds if mode == "with passage"} == {"about", "quote", "continue"}
    assert {kind for mode, kind in kinds if mode == "unanswerable"} <= {"about", "quote"}
    for one in conversations:
        if one.mode == "with passage":
            assert any(one.answer in document for document in _documents(one))
        if one.kind == "quote":
            # The stories repeat each other's words, so a careless distractor would hold the word too.
            word = re.findall(r'"(\w+)"', _said(one))[-1]
            assert sum(word in document for document in _documents(one)) == (one.mode == "with passage")
    assert not any("Python" in one.answer for one in conversations if one.mode == "chat")


def test_without_passages_there_are_no_conversations(code_passages: pa.Table) -> None:
    assert list(build_conversations(code_passages.slice(0, 0), CONFIG, "train")) == []


def test_a_lone_passage_is_asked_about_without_distractors(code_passages: pa.Table) -> None:
    config = replace(CONFIG, questions_per_passage=20, multi_turn_share=0.0)
    lone = code_passages.filter(pc.equal(code_passages["name"], "json.dumps"))
    conversations = list(build_conversations(lone, config, "train"))
    assert {len(_documents(one)) for one in conversations} == {0, 1}
    assert not any(one.mode == "unanswerable" for one in conversations)


def test_what_is_written_is_read_again(train: list[Conversation], tmp_path: Path) -> None:
    path = tmp_path / "conversations.parquet"
    write_conversations(path, train)
    assert read_conversations(path) == train
    write_conversations(path, [])
    assert read_conversations(path) == []


def test_a_truncated_or_foreign_file_is_one_clear_sentence(train: list[Conversation], tmp_path: Path) -> None:
    path = tmp_path / "conversations.parquet"
    write_conversations(path, train)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"conversations\.parquet"):
        read_conversations(path)
    pq.write_table(pa.table({"text": ["a"]}), path)
    with pytest.raises(UserError, match="expected a Parquet file of conversations"):
        read_conversations(path)
    with pytest.raises(UserError, match=r"absent\.parquet"):
        read_conversations(tmp_path / "absent.parquet")
