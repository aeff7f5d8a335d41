"""A prompt whose likeliest answers are looked for, by the rule in `beams.py`.

Each beginning that is followed is a sequence of its own, beside those of other requests. What two of them have in
common lies in blocks that they share until one writes to them. Beginnings can be computed in different steps, when one
of them had to give way; the search goes on when the logits of all are there.

Shape suffixes: b beams, v vocabulary.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from groundup.engine.beams import Beam, BeamSearch, Tokens
from groundup.engine.blocks import BlockPool
from groundup.engine.choose import Choice, Chooser
from groundup.engine.draws import Draw
from groundup.engine.jobs import Piece, next_piece
from groundup.engine.rows import Logits, kept
from groundup.engine.sequence import Sequence
from groundup.engine.source import Source
from groundup.engine.text import StoppingText
from groundup.model.lora import Adapter


@dataclass(eq=False)
class Branch:
    """A beginning that is followed: its tokens as the engine computes, chooses and spells them."""

    sequence: Sequence
    chooser: Chooser
    text: StoppingText | None
    choices: list[Choice]
    logits: Logits | None = None
    _waits: bool = False

    def chosen(self, token: int) -> tuple[Chooser, list[Choice]]:
        """What was chosen if `token` follows. Raises ValueError where the constraint cannot be followed any further."""
        assert self.logits is not None
        chooser = self.chooser.fork()
        return chooser, [*self.choices, chooser.take(self.logits, token)]

    def wait(self) -> None:
        """Keep the logits, if they are there, until those of other beginnings are."""
        if self.logits is not None and not self._waits:
            self.logits, self._waits = kept(self.logits), True

    def longer_text(self, token: int) -> StoppingText | None:
        """What the beginning and `token` spell."""
        text = None if self.text is None else self.text.copy()
        if text is not None:
            text.push(token)
        return text

    def stops_by(self, token: int) -> bool:
        """Whether a stop string is whole with `token`."""
        text = self.longer_text(token)
        return text is not None and text.stopped


class Beaming:
    """The search as the engine's loop computes it.

    prompt: its token ids. limit: tokens that an answer may get.
    text: what the tokens of an answer spell; None where there is no tokenizer.
    tells: one for each answer that is wanted, from the best on; given its pieces when the search is over, or an error.
    adapter: that the model has meanwhile, if any. source: see `Writing`.
    """

    def __init__(
        self,
        prompt: list[int],
        limit: int,
        chooser: Chooser,
        text: StoppingText | None,
        tells: list[Callable[[Piece | Exception], None]],
        adapter: Adapter | None = None,
        source: Source | None = None,
    ) -> None:
        sampling = chooser.sampling
        self.prompt, self._limit, self._tells = prompt, limit, tells
        self.adapter, self.source = adapter, source
        self.beams, self._has_stops = sampling.beams, len(sampling.stop) > 0
        self._chooser, self._text = chooser, text
        self._search = BeamSearch(sampling.beams, chooser.end_ids, limit, sampling.length_penalty)
        self._branches: dict[Tokens, Branch] = {}
        self._choices: dict[Tokens, list[Choice]] = {}

    @property
    def most_tokens(self) -> int:
        """Tokens of an answer that may have to be computed, and the prompt: all but the last."""
        return len(self.prompt) + self._limit - 1

    def most_blocks(self, pool: BlockPool) -> int:
        """With so many blocks, and as many places, the search comes to its end whatever it shares.

        A sequence is admitted when there is a block left for each that runs. The source of all is one.
        """
        source = 0 if self.source is None else self.source.blocks
        return self.beams * pool.blocks_for(self.most_tokens) + self.beams - 1 + source

    @property
    def sequences(self) -> list[Sequence]:
        return [branch.sequence for branch in self._branches.values()]

    def begin(self, sequence: Sequence) -> None:
        """The prompt is to be computed as this sequence."""
        text = None if self._text is None else self._text.copy()
        self._branches = {(): Branch(sequence, self._chooser, text, [])}

    def draws(self, count: int) -> list[Draw | None]:
        """Nothing is drawn: what follows is searched for."""
        return [None] * count

    def hear(self, sequence: Sequence, logits: Logits) -> None:
        """What follows one of the beginnings; again, if it gave way since and was computed anew."""
        for branch in self._branches.values():
            if branch.sequence is sequence and branch.logits is None:
                branch.logits = logits

    def follow(self, fork: Callable[[Sequence], Sequence], drop: Callable[[Sequence], None]) -> bool:
        """If what follows is known of all beginnings, go on by one token; returns whether the search is over.

        fork: gives another sequence with the same tokens. drop: ends one.
        """
        before = self._branches
        known = [(branch.chooser, branch.logits) for branch in before.values() if branch.logits is not None]
        if len(known) < len(before):
            for branch in before.values():
                branch.wait()
            return False
        scores_bv = np.stack([chooser.scores(logits) for chooser, logits in known])

        def ends(tokens: Tokens) -> bool:
            return self._has_stops and before[tokens[:-1]].stops_by(tokens[-1])

        self._search.advance(scores_bv, ends)
        fresh = [beam.tokens for beam in (*self._search.live, *self._search.finished) if beam.tokens[:-1] in before]
        chosen = {tokens: before[tokens[:-1]].chosen(tokens[-1]) for tokens in fresh}
        self._choices |= {tokens: choices for tokens, (_, choices) in chosen.items()}
        if self._search.live:
            self._branch({tokens: chooser for tokens, (chooser, _) in chosen.items()}, fork, drop)
            return False
        self._tell()
        return True

    def fail(self, error: Exception) -> None:
        """Tell that nothing was found."""
        for tell in self._tells:
            tell(error)

    def _branch(
        self,
        choosers: Mapping[Tokens, Chooser],
        fork: Callable[[Sequence], Sequence],
        drop: Callable[[Sequence], None],
    ) -> None:
        """Sequences for the beginnings that are followed now: the first of each goes on as it is, others are forks."""
        before, after = self._branches, dict[Tokens, Branch]()
        followers: dict[Tokens, list[Tokens]] = defaultdict(list)
        for beam in self._search.live:
            followers[beam.tokens[:-1]].append(beam.tokens)
        # Those that end make room for the forks.
        for tokens, branch in before.items():
            if tokens not in followers:
                drop(branch.sequence)
        for tokens, longer in followers.items():
            branch = before[tokens]
            sequences = [branch.sequence, *(fork(branch.sequence) for _ in longer[1:])]
            for sequence, one in zip(sequences, longer, strict=True):
                sequence.tokens.append(one[-1])
                after[one] = Branch(sequence, choosers[one], branch.longer_text(one[-1]), self._choices[one])
        self._branches = {beam.tokens: after[beam.tokens] for beam in self._search.live}
        kept = {beam.tokens for beam in (*self._search.live, *self._search.finished)}
        self._choices = {tokens: choices for tokens, choices in self._choices.items() if tokens in kept}

    def _tell(self) -> None:
        found = self._search.finished
        if len(found) < len(self._tells):
            wanted = len(self._tells)
            self.fail(ValueError(f"beam search found {len(found)} answers where `n` asks for {wanted}: no more exist"))
            return
        for tell, beam in zip(self._tells, found, strict=False):
            for piece in self._pieces(beam):
                tell(piece)

    def _pieces(self, beam: Beam) -> Iterator[Piece]:
        text = None if self._text is None else self._text.copy()
        cached = self.sequences[0].cached or 0
        for written, choice in enumerate(self._choices[beam.tokens], start=1):
            ends = choice.token in self._chooser.end_ids
            yield next_piece(choice, text, ends=ends, is_full=written == self._limit, cached=cached)
