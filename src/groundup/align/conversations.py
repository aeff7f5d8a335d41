"""Conversations to learn from, made from the passages of the corpus: questions, documents, calculations, small talk.

Every choice is drawn from a hash of (seed, what is asked about), so a conversation does not depend on the order of the
table. Conversations about held-out passages are held out and show held-out documents only; calculations and small talk
are held out by a hash of what is asked, so no wording of a held-out calculation is trained on.

    document*  what is given: one passage that holds the answer among others, or others only, or nothing
    user       the question
    assistant  the answer: a literal quote, or REFUSAL where the documents given hold no answer
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from groundup.align.config import SftConfig
from groundup.align.exercises import FAREWELL, draw_calculation, small_talk
from groundup.align.passages import MAX_HEAD_CHARACTERS, Passage
from groundup.align.questions import KIND_WEIGHT, Question, Uniqueness, questions_about
from groundup.assist.tools import calculate
from groundup.errors import UserError

Split = Literal["train", "heldout"]
Mode = Literal["closed book", "with passage", "unanswerable", "calculator", "chat"]
Message = dict[str, str]

REFUSAL = "I don't know. The given documents do not say."
HELDOUT_SHARE = 0.1  # of calculations and small talk; passages bring their own split

_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("kind", pa.string()),
        ("mode", pa.string()),
        ("split", pa.string()),
        ("group", pa.string()),
        (
            "messages",
            pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("tool_call", pa.string())])),
        ),
        ("answer", pa.string()),
    ]
)


@dataclass(frozen=True)
class Conversation:
    """Messages as dicts (see tokens/chat.py), and what is needed to score the last answer.

    kind: what is asked ('purpose', 'signature', …); mode: what there is to answer from; group: the module or text that
    the question is about, '' where none is; answer: the reference, for a calculation the bare result.
    """

    id: str
    kind: str
    mode: Mode
    split: Split
    group: str
    messages: tuple[Message, ...]
    answer: str


def build_conversations(passages: pa.Table, config: SftConfig, split: Split) -> Iterator[Conversation]:
    """All conversations of one split, in an order that mixes their kinds and is itself fixed by the seed.

    passages: the columns of passages.parquet, both splits, in any order.
    """
    material = _gather(passages, config, split)
    questions = config.questions_per_passage if split == "train" else config.heldout_questions_per_passage
    conversations = [
        conversation
        for passage in material.passages
        if passage.is_text or passage.is_public  # private functions are only shown among others
        for number in range(questions)
        if (conversation := _about_passage(passage, number, material)) is not None
    ]
    total = len(conversations) / (1 - config.calculator_share - config.chat_share)
    conversations += _calculations(round(total * config.calculator_share), material)
    conversations += _small_talk(round(total * config.chat_share), material)
    # Ids are hashes: their order mixes everything and depends on nothing else.
    yield from sorted(conversations, key=lambda conversation: conversation.id)


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> None:
    """Write conversations as Parquet (zstd)."""
    rows = [{**vars(conversation), "messages": list(conversation.messages)} for conversation in conversations]
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), path, compression="zstd")


def read_conversations(path: Path) -> list[Conversation]:
    """Read what `write_conversations` wrote.

    Raises UserError if the file is absent, truncated or of another kind.
    """
    try:
        table = pq.read_table(path, columns=_SCHEMA.names)
    except (FileNotFoundError, pa.ArrowInvalid, pa.ArrowKeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: expected a Parquet file of conversations as `groundup sft` writes it: {reason}"
        ) from None
    return [_from_row(row) for row in table.to_pylist()]


@dataclass(frozen=True)
class _Material:
    """What the conversations of one split are made of.

    passages: those that can be asked about or shown, in the order of a hash; by_group: the same by module or text.
    exchanges: the small talk of this split, what is said and what is replied.
    """

    config: SftConfig
    split: Split
    passages: tuple[Passage, ...]
    by_group: Mapping[str, Sequence[Passage]]
    uniqueness: Uniqueness
    exchanges: Sequence[tuple[str, str]]


def _gather(table: pa.Table, config: SftConfig, split: Split) -> _Material:
    everything = [Passage.from_row(row) for row in table.to_pylist()]
    splits = table.column("split").to_pylist()
    ours = [passage for passage, its in zip(everything, splits, strict=True) if its == split and _is_usable(passage)]
    chosen = sorted(ours, key=lambda passage: _hash(config.seed, "passage", passage.id))[: config.passages]
    by_group: dict[str, list[Passage]] = {}
    for passage in chosen:
        by_group.setdefault(passage.group, []).append(passage)
    exchanges = small_talk(knows_python=any(not passage.is_text for passage in everything))
    return _Material(
        config,
        split,
        tuple(chosen),
        by_group,
        # Over both splits: what also stands in the other one has two right answers all the same.
        Uniqueness.of(everything),
        [exchange for exchange in exchanges if _split_of(exchange[0]) == split],
    )


def _is_usable(passage: Passage) -> bool:
    return passage.is_text or (bool(passage.summary) and len(passage.head) <= MAX_HEAD_CHARACTERS)


def _about_passage(passage: Passage, number: int, material: _Material) -> Conversation | None:
    """The `number`th conversation about a passage, or None if nothing can be asked about it in the mode drawn."""
    config = material.config
    key = _hash(config.seed, "question", passage.id, str(number))
    draw = Random(key)
    mode = _draw_mode(config, draw)
    limits = _draw_limits(config.document_characters, draw)
    visible = passage.shown(limits[0])
    questions = questions_about(passage, visible, material.uniqueness, draw)
    if mode == "closed book":
        questions = [question for question in questions if question.answerable_alone]
    if mode == "unanswerable":  # a text can be continued without a document, so it is never refused
        questions = [question for question in questions if question.kind != "continue"]
    if not questions:
        return None
    question = draw.choices(questions, [KIND_WEIGHT.get(question.kind, 1) for question in questions])[0]
    documents = [] if mode == "closed book" else _draw_documents(passage, question, mode, material, limits, draw)
    if mode != "closed book" and not documents:
        return None
    messages: list[Message] = [{"role": "document", "content": document} for document in documents]
    answer = REFUSAL if mode == "unanswerable" else question.answer
    has_earlier_turn = draw.random() < config.multi_turn_share
    earlier = _earlier_question(question, questions, draw) if has_earlier_turn else None
    if has_earlier_turn and earlier is None:
        openings = [exchange for exchange in material.exchanges if exchange[1] != FAREWELL]
        opening = _exchange(*draw.choice(openings)) if openings else []
        messages = [*opening, *messages, *_exchange(question.text, answer)]
    elif earlier is not None and mode != "unanswerable":
        messages += [*_exchange(earlier.text, earlier.answer), *_exchange(question.follow_up, answer)]
    else:  # where no document answers, an earlier question has no answer either, and small talk instead would tell
        messages += _exchange(question.text, answer)
    return Conversation(key, question.kind, mode, material.split, passage.group, tuple(messages), answer)


def _draw_mode(config: SftConfig, draw: Random) -> Mode:
    place = draw.random()
    if place < config.document_share:
        return "with passage"
    return "unanswerable" if place < config.document_share + config.unanswerable_share else "closed book"


def _draw_limits(characters: int, draw: Random) -> list[int]:
    """The characters that each of two to four documents may take, the first of them for the right one."""
    weights = [draw.uniform(1, 2) for _ in range(draw.randint(2, 4))]
    return [int(characters * weight / sum(weights)) for weight in weights]


def _draw_documents(
    passage: Passage, question: Question, mode: Mode, material: _Material, limits: Sequence[int], draw: Random
) -> list[str]:
    """The passage, as far as the first limit lets it be shown, among others that do not hold the question's subject.

    Of an unanswerable question, one more of the others in place of the passage, so that their number does not tell;
    nothing where there is no such document.
    """
    documents = _draw_others(passage, question, material, limits[1:], [], draw)
    in_place = [passage.shown(limits[0])]
    if mode == "unanswerable":
        in_place = _draw_others(passage, question, material, limits[:1], documents, draw)
    if not in_place:
        return []
    documents.insert(draw.randint(0, len(documents)), *in_place)
    return documents


def _draw_others(
    passage: Passage,
    question: Question,
    material: _Material,
    limits: Sequence[int],
    shown: Sequence[str],
    draw: Random,
) -> list[str]:
    """Documents without the question's subject and beside those `shown`, one for each limit if there are so many.

    About half come from the same group and look alike, where it has any.
    """
    documents: list[str] = []
    for limit in limits:
        near = [material.by_group[passage.group]] if draw.random() < 0.5 else []
        # Attempts: a common word may stand in all documents of a small group, or in all there are.
        for other in (draw.choice(pool) for pool in (*near, material.passages) for _ in range(10)):
            document = other.shown(limit)
            is_new = document not in documents and document not in shown
            if other.id != passage.id and question.subject not in document and is_new:
                documents.append(document)
                break
    return documents


def _earlier_question(question: Question, questions: Sequence[Question], draw: Random) -> Question | None:
    """Another question about the same passage, after which this one can be asked as a follow-up."""
    others = [other for other in questions if other.kind != question.kind and other.subject == question.subject]
    return draw.choice(others) if others and question.follow_up else None


def _exchange(said: str, reply: str) -> list[Message]:
    return [{"role": "user", "content": said}, {"role": "assistant", "content": reply}]


def _calculations(count: int, material: _Material) -> list[Conversation]:
    def build(key: str) -> Conversation | None:
        """Drawn by its key; None where the expression belongs to the other split."""
        asked = draw_calculation(Random(key))
        if _split_of(asked.expression) != material.split:
            return None
        result = calculate(asked.expression)
        messages: tuple[Message, ...] = (
            {"role": "user", "content": asked.text},
            {"role": "assistant", "content": "", "tool_call": asked.expression},
            {"role": "tool", "content": result},
            {"role": "assistant", "content": f"The answer is {result}."},
        )
        return Conversation(key, "calculation", "calculator", material.split, "", messages, result)

    return _numbered(f"{material.split} calculation", count, build, material.config.seed)


def _small_talk(count: int, material: _Material) -> list[Conversation]:
    def build(key: str) -> Conversation:
        said, reply = Random(key).choice(material.exchanges)
        return Conversation(key, "small talk", "chat", material.split, "", tuple(_exchange(said, reply)), reply)

    return _numbered(f"{material.split} small talk", count if material.exchanges else 0, build, material.config.seed)


def _numbered(name: str, count: int, build: Callable[[str], Conversation | None], seed: int) -> list[Conversation]:
    """The first `count` conversations that `build` makes of the keys (name, 0), (name, 1), …"""
    conversations: list[Conversation] = []
    number = 0
    while len(conversations) < count:
        conversation = build(_hash(seed, name, str(number)))
        if conversation is not None:
            conversations.append(conversation)
        number += 1
    return conversations


def _split_of(asked: str) -> Split:
    return "heldout" if xxhash.xxh3_64_intdigest(asked.encode()) < HELDOUT_SHARE * 2**64 else "train"


def _hash(seed: int, *parts: str) -> str:
    return xxhash.xxh3_128_hexdigest("\x1f".join((str(seed), *parts)).encode())


def _from_row(row: dict[str, Any]) -> Conversation:
    # Parquet gives every message a tool_call; absent ones are null and go again.
    messages = [{key: value for key, value in message.items() if value is not None} for message in row["messages"]]
    return Conversation(**{**row, "messages": tuple(messages)})
