"""Quality rules: each is broken by what it is meant for, and by no real text that is good."""

import gzip
import itertools
import json
import lzma
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.corpus.config import CorpusConfig
from groundup.corpus.extract import extract_text
from groundup.corpus.filters import MEASURES, PROGRAM_RULES, PROSE_RULES, judge
from groundup.corpus.sources import read_documents
from groundup.corpus.words import Chunk

DATA = Path(__file__).parents[2] / "../shared/data"

PROSE = (
    "The harbour lay quiet in the morning, and the boats that had come in at night were still wet. A woman walked "
    "along the quay with a basket of bread; she stopped at each boat, asked after the catch, and went on.\n"
    "Nobody had caught much. The wind had been wrong for a week, old Anders said, and would be wrong for another.\n"
)

BROKEN_PROSE = {
    "words too short or too long": "a b c d e f g h " * 40,
    "too few alphabetic words": PROSE[:200] + " ".join(str(number) for number in range(300)),
    "too many symbols": PROSE + "# ## ### #### " * 12,
    "mostly a list": "".join(f"- item {word} of it\n" for word in PROSE.split()),
    "cut-off lines": "".join(f"{PROSE[start : start + 120]}...\n" for start in range(0, 180, 9)).replace("\n.", "."),
    "repeated lines": PROSE + "Click here to read more about it\n" * 8,
    "repeated phrases": (PROSE * 4).replace("\n", " "),
    "one phrase over and over": PROSE[:200] + "".join(f"buy now {word} " for word in PROSE.split()[:20]),
    "placeholder text": PROSE + "Lorem ipsum dolor sit amet.\n",
}
BROKEN_PROGRAMS = {
    "data rather than code": "x = [" + ",\n".join(f"{n}, {n * n}, {n**3}" for n in range(100)) + "]\n",
    "lines too long": "call(" + ", ".join(f"argument_{number}" for number in range(300)) + ")\n",
    "repeated phrases": "self.widget.set_value(self.value)\n" * 60,
}


def reasons(texts: list[str], programs: bool) -> list[str]:
    verdicts = judge(Chunk([text.encode() for text in texts]), [programs] * len(texts))
    return [verdict.reason for verdict in verdicts]


def test_every_rule_is_broken_by_what_it_is_meant_for():
    assert reasons(list(BROKEN_PROSE.values()), False) == list(BROKEN_PROSE)
    assert reasons(list(BROKEN_PROGRAMS.values()), True) == list(BROKEN_PROGRAMS)
    assert {rule.reason for rule in PROSE_RULES} == set(BROKEN_PROSE)
    assert {rule.reason for rule in PROGRAM_RULES} == set(BROKEN_PROGRAMS)
    assert {rule.measure for rule in PROSE_RULES + PROGRAM_RULES} == set(MEASURES)


def test_good_prose_breaks_none():
    assert reasons([PROSE], False) == [""]


def test_verdicts_do_not_depend_on_the_other_documents_of_the_chunk():
    texts = [PROSE, *BROKEN_PROSE.values(), "", *BROKEN_PROGRAMS.values(), PROSE]
    programs = [False] * 10 + [True] + [True] * 3 + [False]
    encoded = [text.encode() for text in texts]
    together = judge(Chunk(encoded), programs)
    alone = [judge(Chunk([text]), [program])[0] for text, program in zip(encoded, programs, strict=True)]
    assert together == alone


def test_scores_are_the_shares_they_say():
    text = "- one two\n- one two\nthree 44 #5...\n"
    (verdict,) = judge(Chunk([text.encode()]), [False])
    words = ["one", "two", "one", "two", "three", "44", "5"]
    assert verdict.scores == {
        "mean_word_length": pytest.approx(sum(map(len, words)) / 7, abs=1e-4),
        "alphabetic_words": pytest.approx(5 / 7, abs=1e-4),
        "symbols_per_word": pytest.approx(2 / 7, abs=1e-4),
        "bullet_lines": pytest.approx(2 / 3, abs=1e-4),
        "ellipsis_lines": pytest.approx(1 / 3, abs=1e-4),
        "repeated_lines": pytest.approx(1 / 3, abs=1e-4),
        "repeated_phrases": 0.0,
        "top_phrase": 0.0,
        "lorem_ipsum": 0.0,
    }


def test_repetition_is_that_of_brute_force():
    text = "the cat sat on the mat and the cat sat on the mat again " * 5 + PROSE
    (verdict,) = judge(Chunk([text.encode()]), [False])
    words = "".join(letter.lower() if letter.isalnum() else " " for letter in text).split()
    phrases = [tuple(words[start : start + 5]) for start in range(len(words) - 4)]
    pairs = Counter(itertools.pairwise(words))
    assert verdict.scores["repeated_phrases"] == pytest.approx(1 - len(set(phrases)) / len(phrases), abs=1e-4)
    assert verdict.scores["top_phrase"] == pytest.approx(2 * max(pairs.values()) / len(words), abs=1e-4)


@given(st.lists(st.text("ab1_ ,\n", max_size=60), min_size=1, max_size=6))
@settings(deadline=None)
def test_measures_of_words_are_those_of_brute_force_in_each_document(texts: list[str]):
    chunk = Chunk([text.encode() for text in texts])
    for document, text in enumerate(texts):
        words = text.replace(",", " ").split()
        phrases = [tuple(words[start : start + 5]) for start in range(len(words) - 4)]
        pairs = max(Counter(itertools.pairwise(words)).values(), default=0)
        expected = {
            "alphabetic_words": sum(not set(word).isdisjoint("ab") for word in words) / max(len(words), 1),
            "repeated_phrases": 1 - len(set(phrases)) / len(phrases) if phrases else 0.0,
            "top_phrase": min(2 * pairs / len(words), 1.0) if pairs > 3 else 0.0,
        }
        measured = {name: MEASURES[name](chunk)[document] for name in expected}
        assert measured == pytest.approx(expected)


def test_an_initialism_at_the_end_of_a_line_is_no_ellipsis():
    (verdict,) = judge(Chunk([b"Made in the U.S.\nShe wrote to the B.B.C.\n"]), [False])
    assert verdict.scores["ellipsis_lines"] == 0


def test_no_module_of_the_standard_library_and_no_topic_is_rejected():
    documents = list(read_documents(CorpusConfig(("python:stdlib", "python:topics"))))[::5]
    encoded = [document.text.encode() for document in documents]
    # Tables are stripped before the rules are asked; what is mostly table breaks them rightly here.
    verdicts = judge(Chunk(encoded), [document.kind == "python" for document in documents])
    rejected = [
        (document.path, verdict.reason)
        for document, verdict in zip(documents, verdicts, strict=True)
        if verdict.reason and "encodings/" not in document.path and document.path not in ("html/entities.py",)
    ]
    assert rejected == []


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("pretrain_wikipedia_en/enwiki_first_articles.jsonl.xz", "text"),
        ("pretrain_small/fairytales.jsonl.xz", "sections"),
    ],
)
def test_no_classic_tale_and_no_long_encyclopedia_article_is_rejected(name: str, column: str):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs {name} of the shared data")
    with lzma.open(path) as file:
        rows = [json.loads(line)[column] for line in file]
    texts = [row if isinstance(row, str) else "\n\n".join(row) for row in rows]
    assert [reason for reason in reasons([extract_text(text).text for text in texts], False) if reason] == []


def test_few_pages_of_a_cleaned_web_crawl_are_rejected():
    path = DATA / "curation/c4_demo_300.jsonl.gz"
    if not path.exists():
        pytest.skip("needs curation/c4_demo_300.jsonl.gz of the shared data")
    with gzip.open(path) as file:
        texts = [json.loads(line)["text"] for line in file]
    rejected = [reason for reason in reasons(texts, False) if reason]
    assert 1 <= len(rejected) <= 9
