"""Questions on what was held out, put to a model: with the passage given, closed book, unanswerable, calculations.

The closed-book questions are the questions with a passage, word for word, less the documents, so that the two can be
compared pairwise. The model is a callable from conversations to answers; nothing here knows how it generates.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from groundup.errors import UserError
from groundup.evaluate.answers import is_exact_match, is_refusal, is_same_number, token_f1
from groundup.evaluate.statistics import (
    Interval,
    bootstrap_interval,
    mcnemar_test,
    minimum_detectable_effect,
    sign_flip_test,
    wilson_interval,
)

Message = Mapping[str, str]
Answer = Callable[[Sequence[Sequence[Message]]], Sequence[str]]

MODES = ("with passage", "closed book", "unanswerable", "calculator")
# A question for a quote from the text means nothing without the text.
_KINDS_THAT_NEED_A_DOCUMENT = frozenset({"about", "quote"})


@dataclass(frozen=True)
class Question:
    """prompt: the messages up to the question, the last of which is the user's; the closed-book twin keeps the id."""

    id: str
    kind: str
    mode: str
    prompt: tuple[Message, ...]
    reference: str

    @property
    def text(self) -> str:
        """As the user put it."""
        return self.prompt[-1]["content"]


@dataclass(frozen=True)
class Answered:
    """A question, what the model said, and how right that is; `is_correct` means what the mode asks for."""

    question: Question
    prediction: str
    is_correct: bool
    f1: float

    def row(self) -> dict[str, Any]:
        """A row of answers.parquet."""
        return {
            "id": self.question.id,
            "mode": self.question.mode,
            "kind": self.question.kind,
            "question": self.question.text,
            "reference": self.question.reference,
            "prediction": self.prediction,
            "is_correct": self.is_correct,
            "f1": self.f1,
        }


def read_questions(path: Path) -> list[Question]:
    """The held-out questions of conversations.parquet that stand alone: those without an earlier turn.

    Raises UserError if the file is absent, truncated or of another kind.
    """
    columns = ["id", "kind", "mode", "messages", "answer"]
    try:
        table = pq.read_table(path, columns=columns, filters=[("split", "=", "heldout")])
    except (FileNotFoundError, pa.ArrowInvalid, pa.ArrowKeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: expected the conversations that `groundup sft` writes: {reason}") from None
    questions = []
    for row in table.to_pylist():
        turns = [index for index, message in enumerate(row["messages"]) if message["role"] == "user"]
        if len(turns) == 1:
            # Up to the question there is no tool call; Parquet has a null for it.
            prompt = tuple({"role": one["role"], "content": one["content"]} for one in row["messages"][: turns[0] + 1])
            questions.append(Question(row["id"], row["kind"], row["mode"], prompt, row["answer"]))
    return questions


def choose_questions(questions: Iterable[Question], count: int) -> list[Question]:
    """`count` questions of each mode (fewer if there are fewer), and the closed-book twins of those with a passage.

    Chosen in the order of their ids, which are hashes, so the choice depends neither on the order of the file nor on
    the model; a question that was put twice in the same words counts once.
    """
    chosen: dict[str, dict[str, Question]] = {mode: {} for mode in MODES}
    for question in sorted(questions, key=lambda question: question.id):
        of_mode = chosen.get(question.mode)
        if of_mode is not None and question.mode != "closed book" and len(of_mode) < count:
            of_mode.setdefault(question.text, question)
    twins = [_without_documents(question) for question in chosen["with passage"].values()]
    chosen["closed book"] = {twin.text: twin for twin in twins if twin.kind not in _KINDS_THAT_NEED_A_DOCUMENT}
    return [question for mode in MODES for question in chosen[mode].values()]


def ask(questions: Sequence[Question], answer: Answer) -> list[Answered]:
    """Put the questions to a model and mark its answers, in the order of the questions."""
    predictions = answer([question.prompt for question in questions])
    return [mark(question, prediction) for question, prediction in zip(questions, predictions, strict=True)]


def mark(question: Question, prediction: str) -> Answered:
    """Right is: the same words for a quote, "I don't know" where nobody could know, the same number for a sum."""
    if question.mode == "unanswerable":
        is_correct = is_refusal(prediction)
    elif question.mode == "calculator":
        is_correct = is_same_number(prediction, question.reference)
    else:
        is_correct = is_exact_match(prediction, question.reference)
    return Answered(question, prediction, is_correct, token_f1(prediction, question.reference))


def score_answers(answered: Sequence[Answered], model: str) -> dict[str, Any]:
    """What scores.json says of one model, each figure with its 95 % interval.

    questions: one row for each mode that was asked, with the share answered right (`exact_match`: for unanswerable
    questions the share refused), mean token F1 where there is something to quote, and `refused`, the share of
    "I don't know", which is wrong everywhere else; kinds: the same by kind of question; comparisons: with passage
    against closed book; calculator: the share of right results.
    """
    by_mode = {mode: [one for one in answered if one.question.mode == mode] for mode in MODES}
    rows = [{"model": model, "mode": mode, **_figures(by_mode[mode])} for mode in MODES[:3] if by_mode[mode]]
    kinds = [
        {"model": model, "mode": mode, "kind": kind, **_figures(of_kind)}
        for mode in MODES[:2]
        for kind in sorted({one.question.kind for one in by_mode[mode]})
        if (of_kind := [one for one in by_mode[mode] if one.question.kind == kind])
    ]
    scores: dict[str, Any] = {
        "questions": rows,
        "kinds": kinds,
        "comparisons": compare_answers("with passage − closed book", by_mode["with passage"], by_mode["closed book"]),
    }
    if by_mode["calculator"]:
        figures = _figures(by_mode["calculator"])
        scores["calculator"] = {"n": figures["n"], "accuracy": figures["exact_match"]}
    return scores


def compare_answers(name: str, first: Sequence[Answered], second: Sequence[Answered]) -> list[dict[str, Any]]:
    """How much better the first answers are on the questions that both were asked: exact match and F1.

    Each with the interval of the mean paired difference, the p-value of its test (McNemar, sign flips) and
    `detectable`, the smallest true difference that so many questions would show four times in five.
    Questions are paired by id; none in common gives no row.
    """
    others = {one.question.id: one for one in second}
    pairs = [(one, others[one.question.id]) for one in first if one.question.id in others]
    if not pairs:
        return []
    right = [one.is_correct for one, _ in pairs], [other.is_correct for _, other in pairs]
    f1 = [one.f1 for one, _ in pairs], [other.f1 for _, other in pairs]
    return [
        _comparison(
            f"{name}, exact match", [float(a) - float(b) for a, b in zip(*right, strict=True)], mcnemar_test(*right)
        ),
        _comparison(f"{name}, F1", [a - b for a, b in zip(*f1, strict=True)], sign_flip_test(*f1)),
    ]


def _without_documents(question: Question) -> Question:
    prompt = tuple(message for message in question.prompt if message["role"] != "document")
    return replace(question, mode="closed book", prompt=prompt)


def _figures(answered: Sequence[Answered]) -> dict[str, Any]:
    n = len(answered)
    figures: dict[str, Any] = {
        "n": n,
        "exact_match": _interval(wilson_interval(sum(one.is_correct for one in answered), n)),
        "refused": _interval(wilson_interval(sum(is_refusal(one.prediction) for one in answered), n)),
    }
    if answered[0].question.mode in ("with passage", "closed book"):
        figures["f1"] = _interval(bootstrap_interval([one.f1 for one in answered]))
    return figures


def _comparison(name: str, differences: Sequence[float], p_value: float) -> dict[str, Any]:
    interval = bootstrap_interval(differences)
    n = len(differences)
    deviation = (sum((one - interval.estimate) ** 2 for one in differences) / n) ** 0.5
    return {
        "name": name,
        "n": n,
        "difference": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "p_value": p_value,
        "detectable": minimum_detectable_effect(deviation, n),
    }


def _interval(interval: Interval) -> dict[str, float]:
    return {"value": interval.estimate, "low": interval.low, "high": interval.high}
