"""How whoever waits hears of a text."""

from groundup.engine.choose import Choice
from groundup.engine.completion import Gathering
from groundup.engine.jobs import Piece


def _piece(token: int, ending: str | None = None) -> Piece:
    return Piece(Choice(token, -1.0, []), -1.0, "", ending, 0)


def test_a_text_that_nobody_streams_is_told_once_and_whole():
    told: list = []
    gathering = Gathering(told.append)
    pieces = [_piece(1), _piece(2), _piece(3, "length")]
    for piece in pieces[:-1]:
        gathering(piece)
    assert told == []
    gathering(pieces[-1])
    assert told == [pieces]


def test_what_goes_wrong_is_told_at_once():
    told: list = []
    gathering, error = Gathering(told.append), ValueError("no token")
    gathering(_piece(1))
    gathering(error)
    assert told == [error]
