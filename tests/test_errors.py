"""A user's mistake is told in one line that no stranger's file can turn against the terminal."""

import pytest

from groundup.errors import UserError


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("plain ünïcode “text” … 日本語", "plain ünïcode “text” … 日本語"),
        ("two\nlines,\ttabs   and spaces ", "two lines, tabs and spaces"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("half a pair \ud800 and \u202eturned", "half a pair \\ud800 and \\u202eturned"),
    ],
)
def test_letters_that_steer_a_terminal_are_shown_as_escapes(message: str, shown: str):
    assert str(UserError(message)) == shown
    shown.encode("utf-8")


def test_of_an_endless_message_beginning_and_end_are_kept():
    shown = str(UserError("begin" + "x" * 10**6 + "end"))
    assert len(shown) < 2100
    assert shown.startswith("begin")
    assert shown.endswith("end")
