"""Where the last tokens of a text stood before, kept up as the text grows: what `model/induction.py` defines.

That looks through a whole text at once; here each new token costs one look-up for each length, however long the text.
"""

from groundup.model.induction import NOWHERE
from groundup.model.specs import Induction


class EarlierPlaces:
    """Of one text: for each length, where the tokens up to each place stood last before it.

    Places can be taken back, the last first, as guesses at a text are.
    """

    def __init__(self, spec: Induction) -> None:
        self._spec = spec
        self._tokens: list[int] = []
        # For each length: the latest place of what stands there, and for each place the one before it, -1 for none.
        self._latest: list[dict[tuple[int, ...], int]] = [{} for _ in spec.lengths]
        self._previous: list[list[int]] = [[] for _ in spec.lengths]

    def __len__(self) -> int:
        return len(self._tokens)

    def append(self, token: int) -> None:
        """One token more at the end of the text. It costs as many look-ups as the spec has lengths."""
        self._tokens.append(token)
        place = len(self._tokens) - 1
        for length, latest, previous in zip(self._spec.lengths, self._latest, self._previous, strict=True):
            if place + 1 < length:
                previous.append(-1)
                continue
            key = tuple(self._tokens[place + 1 - length :])
            previous.append(latest.get(key, -1))
            latest[key] = place

    def shorten(self, count: int) -> None:
        """Take back all places but the first `count`."""
        while len(self._tokens) > count:
            place = len(self._tokens) - 1
            for length, latest, previous in zip(self._spec.lengths, self._latest, self._previous, strict=True):
                before = previous.pop()
                if place + 1 < length:
                    continue
                key = tuple(self._tokens[place + 1 - length :])
                if before < 0:
                    del latest[key]
                else:
                    latest[key] = before
            self._tokens.pop()

    def followers(self) -> list[int]:
        """Of the last place: what followed its earlier ones, as `induction.followers` has them."""
        found = []
        for previous in self._previous:
            at = len(self._tokens) - 1
            for _ in range(self._spec.places):
                at = previous[at] if at >= 0 else -1
                found.append(self._tokens[at + 1] if at >= 0 else NOWHERE)
        return found

    def followers_of(self, tokens: list[int], start: int, end: int) -> list[list[int]]:
        """Of each of the places start … end - 1 of the text, whose tokens these are.

        Nothing has changed in it before `start` since earlier calls.
        """
        self.shorten(start)
        for token in tokens[len(self) : start]:
            self.append(token)
        found = []
        for token in tokens[start:end]:
            self.append(token)
            found.append(self.followers())
        return found
