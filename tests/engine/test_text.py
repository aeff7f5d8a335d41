"""Text as it streams: whole characters, and no more of a stop string than must be shown."""

from hypothesis import given
from hypothesis import strategies as st

from groundup.engine.text import StoppingText
from groundup.tokens.config import CONTROL_TOKENS, PATTERNS
from groundup.tokens.tokenizer import Tokenizer, train

# Bytes alone are tokens, but for one of two letters.
WORDS = Tokenizer(train(iter([["ab ab ab ab"]]), len(CONTROL_TOKENS) + 257, PATTERNS["code"]))


def _searched(text: str, stops: list[str]) -> str:
    """The text before the stop string that is whole first, the longest of those that are at once; all if none is."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@given(st.text("abé✓😀", max_size=14), st.lists(st.text("abé✓", min_size=1, max_size=4), max_size=3))
def test_streamed_text_is_the_text_before_the_first_stop_string(text: str, stops: list[str]):
    stream, shown = StoppingText(WORDS, stops), ""
    written = ""
    for token in WORDS.encode(text):
        shown += stream.push(token)
        written += WORDS.decode([token]) if not stream.stopped else ""
        if stream.stopped:
            break
    expected = _searched(text, stops)
    assert expected.startswith(shown)
    assert shown + stream.finish() == expected
    assert stream.stopped == (expected != text or any(stop in text for stop in stops))


@given(st.text("abé✓", max_size=12), st.lists(st.text("abé", min_size=1, max_size=4), max_size=2))
def test_no_more_is_held_back_than_may_become_a_stop_string(text: str, stops: list[str]):
    stream, shown, seen = StoppingText(WORDS, stops), "", b""
    for token in WORDS.encode(text):
        shown += stream.push(token)
        if stream.stopped:
            return
        seen += WORDS.piece(token)
        held = seen.decode("utf-8", errors="ignore")[len(shown) :]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


def test_a_character_that_is_never_finished_is_shown_as_such():
    stream = StoppingText(WORDS, [])
    first, *_ = WORDS.encode("✓")
    assert stream.push(first) == ""
    assert stream.finish() == "�"
