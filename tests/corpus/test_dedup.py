"""Near-duplicates: against brute-force Jaccard similarity, and on copies planted among real modules."""

import itertools
import random

import numpy as np
import pytest

from groundup.corpus.dedup import (
    PERMUTATIONS,
    RECALL_AT_THRESHOLD,
    jaccard,
    near_duplicates,
    rows_per_band,
    shingles,
    signatures,
)
from groundup.corpus.words import Chunk


def words_of(text: str) -> list[str]:
    return "".join(letter.lower() if letter.isalnum() else " " for letter in text).split()


def brute_force(a: str, b: str) -> float:
    sets = [{tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (words_of(a), words_of(b))]
    return len(sets[0] & sets[1]) / max(len(sets[0] | sets[1]), 1)


def random_text(source: random.Random, words: int) -> list[str]:
    return [f"w{source.randrange(5000)}" for _ in range(words)]


def with_edits(source: random.Random, words: list[str], share: float) -> list[str]:
    """Every word replaced with probability `share`."""
    return [f"x{source.randrange(5000)}" if source.random() < share else word for word in words]


def find(texts: list[str], threshold: float) -> dict[int, tuple[int, float]]:
    chunk = Chunk([text.encode() for text in texts])
    sets = shingles(chunk)
    found = near_duplicates(signatures(chunk), lambda indices: {index: sets[index] for index in indices}, threshold)
    return {document: (duplicate.keeper, duplicate.similarity) for document, duplicate in found.items()}


@pytest.fixture(scope="module")
def planted() -> tuple[list[str], list[tuple[int, int, float]]]:
    """400 originals and a more or less edited copy of each; (original, copy, true similarity)."""
    source = random.Random(5)
    originals = [random_text(source, source.randrange(60, 600)) for _ in range(400)]
    copies = [with_edits(source, words, 0.12 * source.random() ** 2) for words in originals]
    texts = [" ".join(words) for words in originals + copies]
    return texts, [(i, i + 400, brute_force(texts[i], texts[i + 400])) for i in range(400)]


def test_jaccard_of_shingles_is_that_of_brute_force(planted):
    texts, pairs = planted
    sets = shingles(Chunk([text.encode() for text in texts]))
    for a, b, similarity in pairs[:100]:
        assert jaccard(sets[a], sets[b]) == pytest.approx(similarity)


def test_signatures_agree_as_often_as_the_jaccard_similarity(planted):
    """Unbiased, with the spread of PERMUTATIONS independent coins (Broder 1997)."""
    texts, pairs = planted
    rows = signatures(Chunk([text.encode() for text in texts]))
    errors = np.array([(rows[a] == rows[b]).mean() - similarity for a, b, similarity in pairs])
    expected = np.sqrt(np.mean([similarity * (1 - similarity) / PERMUTATIONS for _, _, similarity in pairs]))
    assert abs(errors.mean()) < 4 * expected / np.sqrt(len(errors))
    assert np.sqrt((errors**2).mean()) == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.9])
def test_planted_copies_are_found_and_nothing_else(planted, threshold: float):
    texts, pairs = planted
    found = find(texts, threshold)
    truth = {copy: (original, similarity) for original, copy, similarity in pairs if similarity >= threshold}
    assert len(truth) > 50
    # Precision is exact: every pair is compared shingle by shingle.
    for document, (keeper, similarity) in found.items():
        assert truth[document] == (keeper, pytest.approx(similarity))
    assert len(found) / len(truth) >= RECALL_AT_THRESHOLD


def test_copies_planted_in_the_standard_library_are_found():
    import argparse
    import inspect
    import json.decoder
    import shutil
    import textwrap

    source = random.Random(1)
    originals = [inspect.getsource(module) for module in (argparse, json.decoder, shutil, textwrap)]
    copies = []
    for text in originals:
        lines = text.splitlines()
        del lines[source.randrange(len(lines) // 2) :][: len(lines) // 50]
        copies.append("\n".join(f"    {line.upper()}" for line in lines))
    found = find(originals + copies, 0.8)
    assert {document: keeper for document, (keeper, _) in found.items()} == {4: 0, 5: 1, 6: 2, 7: 3}


def test_the_first_stays_and_every_removed_one_is_like_one_that_stays():
    """In a chain a ≈ b ≈ c with a ≉ c, b goes and c stays: what it was like is gone."""
    source = random.Random(3)
    first = random_text(source, 400)
    chain = [" ".join(first[shift : shift + 300]) for shift in (0, 20, 40, 60, 80)]
    threshold = 0.85
    found = find(chain, threshold)
    assert found
    for document, (keeper, similarity) in found.items():
        assert keeper < document and keeper not in found
        assert brute_force(chain[document], chain[keeper]) == pytest.approx(similarity)
    staying = [index for index in range(len(chain)) if index not in found]
    assert all(brute_force(chain[a], chain[b]) < threshold for a, b in itertools.combinations(staying, 2))
    assert len(staying) >= 2


def test_families_of_copies_are_thinned_as_by_comparing_all_pairs():
    source = random.Random(9)
    texts = []
    for _ in range(40):
        original = random_text(source, 150)
        texts += [" ".join(with_edits(source, original, 0.02 * source.random())) for _ in range(5)]
    threshold = 0.8
    removed: set[int] = set()
    for later, earlier in ((b, a) for b in range(200) for a in range(b // 5 * 5, b)):
        if earlier not in removed and brute_force(texts[later], texts[earlier]) >= threshold:
            removed.add(later)
    assert 50 < len(removed) < 160
    assert len(removed.symmetric_difference(find(texts, threshold))) <= 0.03 * len(removed)


def test_many_copies_of_one_text_leave_one():
    text = " ".join(random_text(random.Random(0), 200))
    assert {keeper for keeper, _ in find([text] * 50, 0.8).values()} == {0}
    assert len(find([text] * 50, 0.8)) == 49


def test_documents_too_short_for_a_shingle_match_nothing():
    assert find(["one two three four", "one two three four", "", ""], 0.5) == {}


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95])
def test_bands_are_the_longest_that_keep_the_recall(threshold: float):
    def recall(rows: int) -> float:
        return 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows)

    rows = rows_per_band(threshold)
    assert recall(rows) >= RECALL_AT_THRESHOLD
    assert all(recall(more) < RECALL_AT_THRESHOLD for more in range(rows + 1, PERMUTATIONS + 1))
