"""Quotes of held-out passages: planted ones are found and cut, innocent lookalikes are left alone."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.corpus.decontaminate import (
    IDIOM_GROUPS,
    SHORTEST_QUOTE,
    Quote,
    QuoteIndex,
    cut,
    idioms,
    merge,
    widen_to_sentences,
)
from groundup.corpus.words import Chunk, word_grams

PASSAGE = (
    "Walk a directory tree and call the function for each file in it; the order of the files is the one in which "
    "the operating system lists them, unless a key to sort by is given."
)
SHORT_PASSAGE = "Return the absolute path of the symbolic link given."
INDEX = QuoteIndex([PASSAGE, SHORT_PASSAGE, "Close the file."], quote_words=13)


def quotes(text: str) -> list[str]:
    encoded = text.encode()
    return [encoded[quote.start : quote.end].decode() for quote in merge(INDEX.find(Chunk([encoded])))]


def test_a_quote_is_found_whatever_its_case_wrapping_and_punctuation():
    wrapped = PASSAGE.upper().replace(" ", "\n    # ").replace(";", " –")
    assert quotes(f"x = 1  # {wrapped} y") == [wrapped.rstrip(".")]


def test_a_run_of_thirteen_words_is_a_quote_and_one_of_twelve_is_not():
    words = PASSAGE.split()
    assert quotes("see " + " ".join(words[3:16]) + " there") == [" ".join(words[3:16])]
    assert quotes("see " + " ".join(words[3:15]) + " there") == []


def test_a_short_passage_counts_as_a_whole_only():
    assert len(SHORT_PASSAGE.split()) == 9 >= SHORTEST_QUOTE
    assert quotes(f"'''{SHORT_PASSAGE}'''") == [SHORT_PASSAGE.rstrip(".")]
    assert quotes("It must return the absolute path of the symbolic link.") == []


def test_passages_of_few_words_are_idiom():
    assert quotes("Close the file.") == []


def test_words_of_a_passage_in_another_order_are_no_quote():
    words = PASSAGE.split()
    random.Random(0).shuffle(words)
    assert quotes(" ".join(words)) == []


def test_a_run_across_two_documents_is_no_quote():
    words = PASSAGE.split()
    halves = [" ".join(words[:10]).encode(), " ".join(words[10:20]).encode()]
    assert INDEX.find(Chunk(halves)) == []


@given(st.lists(st.text("ab ", max_size=80), min_size=1, max_size=8), st.text("ab ", max_size=80))
@settings(deadline=None)
def test_suspects_are_the_documents_that_share_a_run_of_words_with_a_passage(texts: list[str], passage: str):
    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[start : start + SHORTEST_QUOTE]) for start in range(len(words) - SHORTEST_QUOTE + 1)}

    grams = word_grams(Chunk([text.encode() for text in texts]).words, SHORTEST_QUOTE)
    suspects = QuoteIndex([passage], quote_words=13).suspects(grams.hashes, grams.first)
    assert suspects.tolist() == [document for document, text in enumerate(texts) if runs(text) & runs(passage)]


def test_recall_and_precision_on_quotes_planted_in_noise():
    """Every planted quote of 13 to 40 words is found to the byte; nothing else is touched."""
    source = random.Random(7)
    vocabulary = [f"word{number}" for number in range(3000)]
    passages = [" ".join(source.choices(vocabulary, k=source.randrange(40, 120))) for _ in range(200)]
    index = QuoteIndex(passages, quote_words=13)
    texts, planted = [], []
    for passage in passages:
        words = passage.split()
        start = source.randrange(len(words) - 13)
        quote = " ".join(words[start : start + source.randrange(13, 41)])
        before = " ".join(source.choices(vocabulary, k=200))
        texts.append(f"{before}. new {quote} new. {before}".encode())
        planted.append(quote.encode())
    texts += [" ".join(source.choices(vocabulary, k=400)).encode() for _ in range(200)]
    found: dict[int, list[Quote]] = {}
    matches = index.find(Chunk(texts))
    for document in range(len(texts)):
        found[document] = merge(match for match in matches if match.document == document)
    for document, quote in enumerate(planted):
        assert [texts[document][span.start : span.end] for span in found[document]] == [quote]
    assert not any(found[document] for document in range(200, 400))


def test_what_many_groups_say_is_idiom_and_what_few_say_is_a_quote():
    template = "is a species of beetle in the family described by the naturalist in the year"
    index = QuoteIndex([f"This {template} of the fire."], quote_words=13)
    texts = [f"Beetle {number} {template} {number}".encode() for number in range(IDIOM_GROUPS + 1)]
    matches = index.find(Chunk(texts))
    assert {match.document for match in matches} == set(range(IDIOM_GROUPS + 1))
    assert idioms((f"group {match.document}", match) for match in matches) == {match.run for match in matches}
    few = [match for match in matches if match.document < IDIOM_GROUPS]
    assert idioms((f"group {match.document}", match) for match in few) == set()
    # Many documents of one group are one voice.
    assert idioms(("the same", match) for match in matches) == set()


def test_rows_of_numbers_are_no_quotes():
    numbers = "The first are 2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47."
    said = "They come in this order, one after the other and none left out: 2, 3, 5, 7, 11, 13."
    index = QuoteIndex([numbers, said], quote_words=13)
    found = [merge(index.find(Chunk([f"primes = [{numbers}]".encode()]))), merge(index.find(Chunk([said.encode()])))]
    assert [len(quotes) for quotes in found] == [0, 1]


def test_cutting_leaves_every_other_byte():
    text = "ä [one two] and [three] ö".encode()
    spans = [Quote(text.index(b"one"), text.index(b"]")), Quote(text.index(b"three"), text.rindex(b"]"))]
    assert cut(text, spans).decode() == "ä [] and [] ö"
    assert cut(text, []) == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("One is first. Two <is it>, they say! Three comes last.", "One is first. Three comes last."),
        ("One.\n\nTwo <is\nit>, they say\n\nThree.", "One.\n\nThree."),
        ("One\nTwo <is it> so\nThree", "One\nThree"),
        ("One. Two <is it. Three is> it. Four.", "One. Four."),
        ("One <is>. Two <is>. Three.", "Three."),
    ],
)
def test_prose_loses_whole_sentences(text: str, left: str):
    bare, spans = "", []
    for letter in text:
        if letter == "<":
            start = len(bare)
        elif letter == ">":
            spans.append(Quote(start, len(bare)))
        else:
            bare += letter
    encoded = bare.encode()
    assert cut(encoded, widen_to_sentences(encoded, spans)).decode() == left


def test_no_passages_means_no_quotes():
    assert QuoteIndex([], quote_words=13).find(Chunk([PASSAGE.encode()])) == []
