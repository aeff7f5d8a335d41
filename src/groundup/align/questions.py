"""Questions that a passage answers, in varied wording, each with the answer quoted from the passage letter for letter.

The tasks keep few, constant shapes (what, how, which, where, quote), so that a small model can learn in minutes to find
the document that is meant and to copy the right part of it; variety lies in the wording and in the passages.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from random import Random

from groundup.align.passages import Passage, is_quotable, split_sentences


@dataclass(frozen=True)
class Question:
    """One question about one passage.

    subject: what tells the passage apart; a document that holds it could answer the question as well.
    follow_up: the same question where the passage is already being talked about, or '' if there is no such wording.
    answerable_alone: whether it makes sense when no document is given.
    """

    kind: str
    text: str
    answer: str
    subject: str
    follow_up: str = ""
    answerable_alone: bool = True


@dataclass(frozen=True)
class Uniqueness:
    """How often each summary and each last name occurs among all passages, to ask only what has one answer."""

    summaries: Mapping[str, int]
    last_names: Mapping[str, int]

    @classmethod
    def of(cls, passages: Iterable[Passage]) -> "Uniqueness":
        """Counted over these passages, which must be all that questions are asked about."""
        passages = list(passages)
        return cls(
            Counter(passage.summary for passage in passages),
            Counter(_last_name(passage) for passage in passages),
        )


def questions_about(passage: Passage, visible: str, uniqueness: Uniqueness, draw: Random) -> list[Question]:
    """One question of each kind that the passage answers, in the wording that `draw` picks.

    visible: the part of the passage that a conversation shows; nothing beyond it is asked for.
    """
    makers = _TEXT_KINDS if passage.is_text else _CODE_KINDS
    found = (maker(passage, visible, uniqueness, draw) for maker in makers)
    return [question for question in found if question is not None]


_Maker = Callable[[Passage, str, Uniqueness, Random], Question | None]


def _purpose(passage: Passage, visible: str, uniqueness: Uniqueness, draw: Random) -> Question | None:
    if not passage.summary:
        return None
    wordings = _CLASS_PURPOSE if passage.kind == "class" else _FUNCTION_PURPOSE
    # The passage from its start, as `help` shows it. An answer that begins with the name asked for is one that a model
    # can begin by copying; one that begins with the summary needs the passage found before the first word.
    answer = f"{passage.head}\n{passage.summary}" if passage.head else passage.summary
    return Question("purpose", _word(wordings, draw, passage), answer, passage.name, "And what does it do?")


def _signature(passage: Passage, visible: str, uniqueness: Uniqueness, draw: Random) -> Question | None:
    if passage.kind != "function" or "(" not in passage.head:
        return None
    return Question(
        "signature", _word(_SIGNATURE, draw, passage), passage.head, passage.name, "And what is its signature?"
    )


def _arguments(passage: Passage, visible: str, uniqueness: Uniqueness, draw: Random) -> Question | None:
    arguments = _argument_list(passage)
    if not arguments:
        return None
    follow_up = "And which arguments does it take?"
    return Question("arguments", _word(_ARGUMENTS, draw, passage), arguments, passage.name, follow_up)


def _which(passage: Passage, visible: str, uniqueness: Uniqueness, draw: Random) -> Question | None:
    if not passage.summary or uniqueness.summaries[passage.summary] > 1:
        return None
    return Question("which", _word(_WHICH, draw, passage), passage.name, passage.summary)


def _where(passage: Passage, visible: str, uniqueness: Uniqueness, draw: Random) -> Question | None:
    home, _, last = passage.name.rpartition(".")
    if not home or uniqueness.last_names[last] > 1:
        return None
    return Question("where", _word(_WHERE, draw, passage), home, f".{last}")


def _returns(passage: Passage, visible: str, uniqueness: Uniqueness, draw: Random) -> Question | None:
    later = _later_sentences(passage, visible)
    sentences = [sentence for sentence in later if re.match(r"Returns?\b", sentence) and is_quotable(sentence)]
    if passage.kind != "function" or len(sentences) != 1 or re.match(r"Returns?\b", passage.summary):
        return None
    return Question("returns", _word(_RETURNS, draw, passage), sentences[0], passage.name, "And what does it return?")


def _argument(passage: Passage, visible: str, uniqueness: Uniqueness, draw: Random) -> Question | None:
    """What is said about one argument: the only sentence after the summary that names it."""
    sentences = _later_sentences(passage, visible)
    names = re.findall(r"(?:^|[,(*] ?)([a-z_]\w{2,})", _argument_list(passage))
    told = [
        (name, one)
        for name in names
        if (one := _only_sentence_with(name, sentences, visible))
        # An argument that is an English word must be marked, or the sentence may not speak of it at all.
        and ("_" in name or re.search(rf"^{name}\b|[`'\"*]{name}[`'\"*]", one))
    ]
    if not told:
        return None
    name, sentence = draw.choice(told)
    text = draw.choice(_ARGUMENT).format(name=passage.name, argument=name)
    return Question("argument", text, sentence, passage.name, f"And what is said about `{name}`?")


def _about_name(passage: Passage, visible: str, uniqueness: Uniqueness, draw: Random) -> Question | None:
    """The only sentence with a proper name: up to three capitalised words inside a sentence."""
    names = sorted(set(re.findall(r"(?<=[a-z,] )[A-Z][a-z]{2,}\b(?: [A-Z][a-z]{2,}\b){0,2}", visible)) - _MONTHS)
    return _quote(names, _ABOUT, "about", visible, draw)


def _with_word(passage: Passage, visible: str, uniqueness: Uniqueness, draw: Random) -> Question | None:
    words = sorted(set(re.findall(r"\b[a-z]{6,}\b", visible)))
    return _quote(words, _WITH_WORD, "quote", visible, draw)


def _next_sentence(passage: Passage, visible: str, uniqueness: Uniqueness, draw: Random) -> Question | None:
    sentences = split_sentences(visible)
    pairs = [
        (one, following)
        for one, following in itertools.pairwise(sentences)
        if is_quotable(one) and is_quotable(following) and visible.count(one) == 1
    ]
    if not pairs:
        return None
    one, following = draw.choice(pairs)
    return Question("continue", draw.choice(_CONTINUE).format(sentence=one), following, one)


_CODE_KINDS: tuple[_Maker, ...] = (_purpose, _signature, _arguments, _which, _where, _returns, _argument)
_TEXT_KINDS: tuple[_Maker, ...] = (_about_name, _with_word, _next_sentence)

# How often a kind is asked beside the others; what a thing does is what people ask most.
KIND_WEIGHT = {"purpose": 3}


def _quote(words: list[str], wordings: tuple[str, ...], kind: str, visible: str, draw: Random) -> Question | None:
    sentences = split_sentences(visible)
    told = [(word, one) for word in words if (one := _only_sentence_with(word, sentences, visible))]
    if not told:
        return None
    word, sentence = draw.choice(told)
    return Question(kind, draw.choice(wordings).format(word=word), sentence, word, answerable_alone=False)


def _only_sentence_with(word: str, sentences: list[str], visible: str) -> str:
    """The one quotable, complete sentence that holds the word, or ''."""
    holding = [sentence for sentence in sentences if re.search(rf"\b{re.escape(word)}\b", sentence)]
    if len(holding) != 1 or not is_quotable(holding[0]) or holding[0][-1] not in ".!?" or visible.count(holding[0]) > 1:
        return ""
    return holding[0]


def _later_sentences(passage: Passage, visible: str) -> list[str]:
    """The sentences that are shown after the first line and the summary."""
    return split_sentences(visible.removeprefix(passage.head).strip().removeprefix(passage.summary))


def _argument_list(passage: Passage) -> str:
    """What stands between the outer parentheses of a function's signature, `self` and `cls` left out; '' for none."""
    if passage.kind != "function" or "(" not in passage.head:
        return ""
    start = depth = passage.head.index("(")
    depth = 0
    for end in range(start, len(passage.head)):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(passage.head[end], 0)
        if depth == 0:
            return re.sub(r"^(?:self|cls)\b(?:, )?(?:/, |/$)?", "", passage.head[start + 1 : end])
    return ""


def _last_name(passage: Passage) -> str:
    return passage.name.rpartition(".")[2]


def _word(wordings: tuple[str, ...], draw: Random, passage: Passage) -> str:
    kind = "class" if passage.kind == "class" else "method" if _is_method(passage) else "function"
    return draw.choice(wordings).format(
        name=passage.name, last=_last_name(passage), kind=kind, summary=passage.summary.rstrip(".")
    )


def _is_method(passage: Passage) -> bool:
    return bool(re.search(r"\((?:self|cls)\b", passage.head))


# "What do we learn about March?" is no question of anyone's.
_MONTHS = frozenset(
    "January February March April May June July August September October November December "
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
)

_FUNCTION_PURPOSE = (
    "What does {name} do?",
    "What is {name} for?",
    "What is the purpose of {name}?",
    "Explain {name} to me.",
    "Can you tell me what {name} does?",
    "I found {name} in some code. What does it do?",
    "Describe {name} in one sentence.",
    "When would I use {name}?",
)
_CLASS_PURPOSE = (
    "What is {name}?",
    "What is {name} for?",
    "What is the class {name} for?",
    "What is the purpose of {name}?",
    "Explain the class {name}.",
    "Can you tell me what {name} is?",
    "Describe {name} in one sentence.",
    "I found the class {name} in some code. What is it?",
)
_SIGNATURE = (
    "What is the signature of {name}?",
    "How is {name} called?",
    "How do I call {name}?",
    "Show me the signature of {name}.",
    "How is the {kind} {name} declared?",
)
_ARGUMENTS = (
    "Which arguments does {name} take?",
    "What are the arguments of {name}?",
    "Which parameters does {name} accept?",
    "What can I pass to {name}?",
    "List the arguments of {name}.",
)
_WHICH = (
    'Which {kind} is described as "{summary}"?',
    'Which {kind} has this description: "{summary}"?',
    'I am looking for a {kind}: "{summary}". What is its name?',
    'What is the {kind} called whose documentation says "{summary}"?',
    'Name the {kind} for this: "{summary}".',
)
_WHERE = (
    "Where is {last} defined?",
    "Where do I find {last}?",
    "Where does {last} come from?",
    "Which module or class holds {last}?",
    "I am looking for {last}. Where is it?",
)
_RETURNS = (
    "What does {name} return?",
    "What is the result of {name}?",
    "What do I get back from {name}?",
    "What comes back when I call {name}?",
)
_ARGUMENT = (
    "What does the documentation of {name} say about `{argument}`?",
    "What is `{argument}` in {name}?",
    "Quote the sentence about `{argument}` from the documentation of {name}.",
    "In {name}, what is said about `{argument}`?",
    "Tell me about the argument `{argument}` of {name}.",
)
_ABOUT = (
    "What is said about {word}?",
    "What does the text say about {word}?",
    "Quote the sentence about {word}.",
    "Find the sentence that mentions {word}.",
    "What do we learn about {word}?",
)
_WITH_WORD = (
    'Quote the sentence with the word "{word}".',
    'Which sentence has the word "{word}" in it?',
    'Where does the text use the word "{word}"?',
    'Find the sentence that contains "{word}".',
)
_CONTINUE = (
    'What comes after "{sentence}"',
    'Which sentence follows this one: "{sentence}"',
    'Continue this text: "{sentence}"',
    'How does it go on after "{sentence}"',
    'Go on from here: "{sentence}"',
)
