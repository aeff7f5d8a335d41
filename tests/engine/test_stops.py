"""Stop strings: found wherever a text is cut into pieces, and never shown in part."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.engine.stops import StopMatcher
from groundup.tokens.config import PATTERNS
from groundup.tokens.text import TextStream
from groundup.tokens.tokenizer import Tokenizer, train

# Few letters, so that stop strings begin again within themselves; one of them has four bytes.
LETTERS = "ab😀"
STOPS = st.lists(st.text(LETTERS, min_size=1, max_size=5), max_size=3)


def _cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition: letter by letter, until the text ends with a stop string; the longest of several."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.text("aab😀", max_size=4), max_size=8),
    st.lists(st.tuples(st.integers(0, 12), st.integers(1, 5)), max_size=3),
    STOPS,
)
def test_the_text_ends_before_the_first_whole_stop_string(
    pieces: list[str], slices: list[tuple[int, int]], stops: list[str]
):
    """Among the stop strings are parts of the text, so that most texts hold one."""
    whole = "".join(pieces)
    stops += [part for start, length in slices if (part := whole[start : start + length])]
    expected, stop = _cut(whole, stops)
    matcher, shown = StopMatcher(stops), ""
    for count, piece in enumerate(pieces, 1):
        shown += matcher.push(piece)
        assert expected.startswith(shown)
        if matcher.found is not None:
            assert _cut("".join(pieces[:count]), stops)[1] == stop, "no later than possible"
            break
        # Nothing is held back that cannot become a stop string.
        text = "".join(pieces[:count])
        held = text[len(shown) :]
        assert held == "" or any(one.startswith(held) and one != held for one in stops)
    assert matcher.found == stop
    assert shown + matcher.finish() == expected


@settings(max_examples=100, deadline=None)
@given(st.text("aé😀\n", max_size=20), STOPS)
def test_characters_that_come_byte_by_byte_are_matched_whole(text: str, stops: list[str]):
    stream, matcher, shown = TextStream(_BYTES), StopMatcher(stops), ""
    for index in _BYTES.encode(text):
        shown += matcher.push(stream.push(index))
        if matcher.found is not None:
            break
    assert (shown + matcher.finish(), matcher.found) == _cut(text, stops)


# Every token is one byte.
_BYTES = Tokenizer(train(iter([["."]]), 266, PATTERNS["code"]))


def test_a_copy_goes_on_alone():
    matcher = StopMatcher(["abc"])
    assert matcher.push("xab") == "x"
    copied = matcher.copy()
    assert matcher.push("c") == ""
    assert matcher.found == "abc"
    assert copied.push("d") == "abd"
    assert copied.found is None


def test_nothing_can_follow_a_stop_string():
    matcher = StopMatcher(["."])
    assert matcher.push("a.b") == "a"
    assert matcher.finish() == ""
    with pytest.raises(ValueError, match=r"the text has ended before '\.'; nothing can follow"):
        matcher.push("c")
