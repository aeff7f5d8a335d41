"""Hidden text: what is hidden, how much of it, and that nothing but seed, row number and place decides."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ListStream

from groundup.tokens.batches import IGNORE, PackedDocuments, Rows
from groundup.tokens.corruption import (
    CorruptedRows,
    CorruptedSpans,
    Corruption,
    MaskedTokens,
    hide_spans,
    target_width,
)

PAD, BOS, EOS, MASK = 0, 1, 2, 3
SENTINELS = tuple(range(4, 20))
TEXT = np.arange(100, 1100, dtype=np.int64)
CONTEXT = 32


def _documents(lengths: Sequence[int]) -> ListStream:
    """Documents of text that ends, as shards hold them; each token tells where it comes from."""
    starts = np.cumsum([100, *lengths])
    return ListStream([[*range(start, start + n - 1), EOS] for start, n in zip(starts, lengths, strict=False)])


def _packed(lengths: Sequence[int], seed: int = 0) -> PackedDocuments:
    return PackedDocuments(_documents(lengths), CONTEXT, BOS, seed)


def _masked(fraction: float = 0.15, seed: int = 0) -> MaskedTokens:
    return MaskedTokens(fraction, MASK, BOS, TEXT, seed)


def _spans(seed: int = 0, sentinels: tuple[int, ...] = SENTINELS) -> CorruptedSpans:
    return CorruptedSpans(sentinels, BOS, EOS, PAD, seed)


LENGTHS = st.lists(st.integers(1, 60), min_size=3, max_size=25).filter(lambda lengths: sum(lengths) >= 2 * CONTEXT)


# Both kinds


@pytest.mark.parametrize("corruption", [_masked(), _spans()], ids=["masked", "spans"])
def test_what_is_hidden_depends_on_seed_and_row_number_alone(corruption: Corruption):
    source = CorruptedRows(_packed([50, 3, 40, 7, 90, 31]), corruption)
    assert source.rows_per_epoch == source.source.rows_per_epoch
    numbers = np.arange(3 * source.rows_per_epoch)
    whole = source.rows(numbers)
    for number in reversed(numbers.tolist()):
        alone = source.rows(np.array([number]))
        for one, many in zip(_all_arrays(alone), _all_arrays(whole), strict=True):
            assert one.tolist() == many[number : number + 1].tolist()


def _all_arrays(rows: Rows) -> list[np.ndarray]:
    return [*rows.arrays(), *(() if rows.source is None else rows.source.arrays())]


@pytest.mark.parametrize("kind", [_masked, _spans], ids=["masked", "spans"])
def test_other_seeds_and_rows_hide_other_places_of_the_same_text(kind):
    packed = _packed([1000])
    rows = packed.rows(np.zeros(1, dtype=np.int64))
    hidden = set()
    for seed, number in itertools.product(range(4), range(4)):
        found = kind(seed=seed)(rows, np.array([number]))
        hidden.add(tuple(found.targets[0].tolist()))
    assert len(hidden) > 12


@pytest.mark.parametrize("corruption", [_masked(), _spans()], ids=["masked", "spans"])
def test_micro_batches_keep_every_array_of_their_rows(corruption: Corruption):
    rows = CorruptedRows(_packed([50, 3, 40, 7, 90, 31]), corruption).rows(np.arange(6))
    parts = list(rows.split(4))
    assert [len(part.input_ids) for part in parts] == [4, 2]
    for arrays in zip(_all_arrays(rows), *map(_all_arrays, parts), strict=True):
        whole, *pieces = arrays
        assert np.array_equal(np.concatenate(pieces), whole)


# Masked tokens


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, fraction=st.floats(0.01, 0.9), seed=st.integers(0, 2**40))
def test_a_share_of_each_rows_tokens_is_guessed_where_it_stands(lengths: list[int], fraction: float, seed: int):
    packed = _packed(lengths, seed)
    plain = packed.rows(np.arange(packed.rows_per_epoch))
    rows = _masked(fraction, seed)(plain, np.arange(packed.rows_per_epoch))
    guessed = rows.targets != IGNORE
    assert np.array_equal(rows.targets[guessed], plain.input_ids[guessed])
    assert np.array_equal(rows.input_ids[~guessed], plain.input_ids[~guessed])
    assert not (guessed & (plain.input_ids == BOS)).any()
    for row, open_places in zip(guessed, (plain.input_ids != BOS).sum(1), strict=True):
        assert row.sum() == min(open_places, max(1, round(fraction * open_places)))
    assert rows.positions is plain.positions and rows.segments is plain.segments
    assert rows.source is None


def test_eight_of_ten_become_the_mask_one_another_token_and_one_stays():
    packed = _packed([40_000])
    numbers = np.arange(600)
    plain = packed.rows(numbers)
    rows = _masked(0.3)(plain, numbers)
    guessed = rows.targets != IGNORE
    became, was = rows.input_ids[guessed], rows.targets[guessed]
    total = guessed.sum()
    # Three standard deviations of a share of this many.
    tolerance = 3 * (0.8 * 0.2 / total) ** 0.5
    assert (became == MASK).mean() == pytest.approx(0.8, abs=tolerance)
    assert (became == was).mean() == pytest.approx(0.1, abs=tolerance)
    others = became[(became != MASK) & (became != was)]
    assert set(others.tolist()) <= set(TEXT.tolist())
    # Random tokens are as often from either half of the vocabulary, and hardly any twice as often as it should be.
    assert (others < 600).mean() == pytest.approx(0.5, abs=3 * (0.25 / len(others)) ** 0.5)


def test_every_place_of_a_row_is_masked_equally_often():
    packed = _packed([4000])
    row = packed.rows(np.zeros(1, dtype=np.int64))
    hidden = sum((_masked(0.25)(row, np.array([number])).targets[0] != IGNORE).astype(int) for number in range(2000))
    places = hidden[1:]  # the first is the beginning of text
    expected = 2000 * round(0.25 * (CONTEXT - 1)) / (CONTEXT - 1)
    statistic = ((places - expected) ** 2 / (expected * 0.75)).sum()
    assert statistic < len(places) + 5 * (2 * len(places)) ** 0.5


# Corrupted spans


def _restore(source: Sequence[int], target: Sequence[int]) -> list[int]:
    """The text, from what is left of it and the spans behind their sentinels."""
    spans: dict[int, list[int]] = {}
    for token in target:
        if token in SENTINELS:
            spans[token] = []
            current = spans[token]
        else:
            current.append(token)
    return [token for one in source for token in (spans[one] if one in SENTINELS else [one])]


@settings(max_examples=200, deadline=None)
@given(length=st.integers(1, 300), seed=st.integers(0, 2**40))
def test_spans_and_what_is_left_make_up_the_text(length: int, seed: int):
    text = np.arange(100, 100 + length)
    source, target = hide_spans(text, SENTINELS, np.random.Philox(key=seed).random_raw(2 * length).reshape(2, length))
    assert _restore(source, target) == text.tolist()
    if length == 1:
        assert (source, target) == ([100], [])
        return
    hidden = min(max(1, round(length * 0.15)), length - 1)
    spans = min(max(1, round(hidden / 3)), len(SENTINELS))
    assert len(target) == hidden + spans
    assert len(source) == length - hidden + spans
    assert [token for token in source if token in SENTINELS] == list(SENTINELS[:spans])
    assert [token for token in target if token in SENTINELS] == list(SENTINELS[:spans])
    # What is kept comes first, and stands between any two spans.
    assert source[0] not in SENTINELS
    assert source[-1] in SENTINELS
    assert not any(one in SENTINELS and other in SENTINELS for one, other in itertools.pairwise(source))


def test_every_way_to_cut_a_text_into_spans_is_equally_likely():
    """20 tokens: 3 hidden in one span; 40: 6 hidden in 2 spans, of lengths 1 to 5, behind 1 to 33 kept tokens."""
    draws = [np.random.Philox(key=number).random_raw(80).reshape(2, 40) for number in range(6600)]
    targets = [hide_spans(np.arange(100, 140), SENTINELS, chance)[1] for chance in draws]
    first_lengths = np.array([target.index(SENTINELS[1]) - 1 for target in targets])
    first_kept = np.array([target[1] - 100 for target in targets])
    for found, ways in ((first_lengths, range(1, 6)), (first_kept, range(1, 34))):
        counts = np.array([(found == way).sum() for way in ways])
        assert counts.sum() == len(targets)
        expected = len(targets) / len(ways)
        assert ((counts - expected) ** 2 / expected).sum() < len(ways) + 5 * (2 * len(ways)) ** 0.5


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 2**40))
def test_each_document_of_a_row_is_a_text_of_its_own_for_encoder_and_decoder(lengths: list[int], seed: int):
    packed = _packed(lengths, seed)
    numbers = np.arange(packed.rows_per_epoch)
    plain, rows = packed.rows(numbers), _spans(seed)(packed.rows(numbers), numbers)
    assert rows.source is not None
    assert rows.source.input_ids.shape == (len(numbers), CONTEXT)
    assert rows.targets.shape == (len(numbers), target_width(CONTEXT, len(SENTINELS)))
    for row in range(len(numbers)):
        for segment in np.unique(plain.segments[row]):
            text = plain.targets[row][plain.segments[row] == segment].tolist()
            read, written = rows.source.segments[row] == segment, rows.segments[row] == segment
            source, target = rows.source.input_ids[row][read].tolist(), rows.targets[row][written].tolist()
            assert rows.source.positions[row][read].tolist() == list(range(len(source)))
            if not target:  # too short, or no room left
                assert source == text
                continue
            assert target[-1] == EOS
            assert rows.input_ids[row][written].tolist() == [BOS, *target[:-1]]
            assert rows.positions[row][written].tolist() == list(range(len(target)))
            # The end of a document is read, not hidden.
            assert (source[-1] == EOS) == (text[-1] == EOS)
            assert _restore(source, target[:-1]) == text
        for array, padding in ((rows.targets, IGNORE), (rows.input_ids, PAD), (rows.positions, 0)):
            assert (array[row][rows.segments[row] == -1] == padding).all()
        assert (rows.source.input_ids[row][rows.source.segments[row] == -1] == PAD).all()
        assert (rows.targets[row] != IGNORE).any() == any(
            (plain.segments[row] == segment).sum() - (plain.targets[row][plain.segments[row] == segment][-1] == EOS) > 1
            for segment in np.unique(plain.segments[row])
        )


def test_a_row_of_one_text_fits_whatever_its_size_and_leaves_little_room():
    for context in (2, 3, 8, 64, 512, 4096):
        width = target_width(context, 100)
        text = np.arange(100, 100 + context)
        _, target = hide_spans(text, tuple(range(100)), np.random.Philox(key=0).random_raw(2 * context).reshape(2, -1))
        assert len(target) + 1 <= width
        assert width - len(target) - 1 <= max(4, context / 32)


def test_texts_for_which_there_is_no_room_are_read_whole():
    packed = _packed([3] * 60)  # each would need three places of the decoder for its two tokens
    rows = _spans()(packed.rows(np.arange(3)), np.arange(3))
    assert rows.source is not None
    for row in range(3):
        read, written = (set(one[row].tolist()) - {-1} for one in (rows.source.segments, rows.segments))
        assert written < read
        whole = read - written
        for segment in whole:
            assert not set(rows.source.input_ids[row][rows.source.segments[row] == segment]) & set(SENTINELS)


def test_there_are_never_more_spans_than_sentinels():
    text = np.arange(100, 400)
    chance = np.random.Philox(key=1).random_raw(600).reshape(2, 300)
    source, target = hide_spans(text, SENTINELS[:3], chance)
    assert [token for token in source if token in SENTINELS] == list(SENTINELS[:3])
    assert _restore(source, target) == text.tolist()
    assert len(target) == 45 + 3
