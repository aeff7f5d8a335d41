"""A draft model: a smaller one of the same vocabulary, which guesses what the engine's model is going to say.

It writes on with the text's own chooser: the same settings, penalties and constraint, and for each token the number
that will decide about it. Where both models say the same about a token, so do they choose the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from os import PathLike

from groundup.engine.blocks import BlockPool, blocks_for
from groundup.engine.choose import Chooser
from groundup.engine.compiled import cache_dtype
from groundup.engine.guessing import LookupGuesser, PromptLookup, Speculation, require_counts
from groundup.engine.jobs import Writing
from groundup.engine.quantized import load_for_engine, use_kernels
from groundup.engine.rows import Logits, rows_of
from groundup.engine.runner import StepRunner, depends_on_the_longest, is_recurrent, reach
from groundup.engine.runners import block_size_of, runner_of
from groundup.engine.scheduler import Scheduler
from groundup.engine.sequence import Sequence as Text
from groundup.errors import UserError
from groundup.formats.folder import local_folder
from groundup.model.language_model import LanguageModel


@dataclass(frozen=True)
class DraftModel:
    """Guesses with a smaller model of the same vocabulary.

    model: a model folder, `hf:org/name`, or a decoder.
    guesses: at most, of a text in a step. step_guesses: of all texts of a step together.
    Raises ValueError for numbers below 1.
    """

    model: str | PathLike[str] | LanguageModel
    guesses: int = 4
    step_guesses: int = 32

    def __post_init__(self) -> None:
        require_counts(guesses=self.guesses, step_guesses=self.step_guesses)


@dataclass
class _Drafted:
    """A text as its draft goes on: by whose choice, and how many guesses are wanted yet."""

    chooser: Chooser
    wanted: int


class DraftGuesser:
    """A draft model with a scheduler of its own, in which each text that was ever guessed for is a sequence.

    What it has computed of a text stays; guesses that were wrong are taken back when the next ones are asked for. Each
    time it takes as many steps as there are guesses wanted: a text with a long prompt has none before the draft has
    read it, and nobody waits for that.
    """

    def __init__(self, runner: StepRunner, scheduler: Scheduler) -> None:
        self._runner, self._scheduler = runner, scheduler
        self._texts: dict[Writing, Text] = {}

    def guess(self, texts: Sequence[tuple[Writing, int]]) -> list[list[int]]:
        """At most so many tokens for each text: see `Guesser`."""
        drafted: dict[Text, _Drafted] = {}
        for text, count in texts:
            wanted = min(count, self._room(text))
            if wanted > 0:
                drafted[self._caught_up(text)] = _Drafted(text.chooser.fork(), wanted)
        for _ in range(max((one.wanted for one in drafted.values()), default=0)):
            self._step(drafted)
        drafts = [self._texts.get(text) for text, _ in texts]
        return [draft.guesses if draft in drafted else [] for draft in drafts]

    def forget(self, text: Writing) -> None:
        """There will be no more of this text."""
        if text in self._texts:
            self._scheduler.remove(self._texts.pop(text))

    def _room(self, text: Writing) -> int:
        """Guesses for which the draft model has positions."""
        return self._runner.model.config.max_positions - len(text.prompt) - text.written

    def _caught_up(self, text: Writing) -> Text:
        """The draft's sequence with the tokens that the text has; right guesses need not be computed again."""
        assert text.sequence is not None
        tokens = text.sequence.tokens
        if text not in self._texts:
            self._texts[text] = self._scheduler.add(tokens, text.most_tokens)
            return self._texts[text]
        draft = self._texts[text]
        pairs = zip(draft.guesses, tokens[draft.certain :], strict=False)
        self._scheduler.settle(draft, sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)))
        draft.tokens += tokens[len(draft.tokens) :]
        return draft

    def _step(self, drafted: dict[Text, _Drafted]) -> None:
        """One token more for each that is ready and wants one."""
        step = self._scheduler.schedule()
        if not step.chunks:
            return
        hidden_md = self._runner.run(step)
        self._scheduler.complete(step)
        ends = accumulate(chunk.length for chunk in step.chunks)
        ready = {
            chunk.sequence: end - 1
            for chunk, end in zip(step.chunks, ends, strict=True)
            if chunk.is_last and chunk.sequence in drafted and drafted[chunk.sequence].wanted
        }
        if not ready:
            return
        hidden_nd = hidden_md[list(ready.values())]
        logits_nv = self._runner.logits(hidden_nd, [sequence.adapter for sequence in ready])
        rows = rows_of(logits_nv, [drafted[sequence].chooser.draw() for sequence in ready])
        for sequence, logits in zip(ready, rows, strict=True):
            _guess(drafted[sequence], sequence, logits)


def _guess(drafted: _Drafted, sequence: Text, logits: Logits) -> None:
    try:
        token = drafted.chooser.choose(logits).token
    except ValueError:  # nothing may follow a guess: the text itself need not come by here
        drafted.wanted = 0
        return
    sequence.guess([token])
    drafted.wanted = 0 if drafted.chooser.has_ended else drafted.wanted - 1


def speculation_of(
    spec: PromptLookup | DraftModel, model: LanguageModel, cache_tokens: int, step_tokens: int, most_running: int
) -> Speculation:
    """What guesses for a model. cache_tokens, step_tokens, most_running: of its own engine.

    Raises ValueError for models whose tokens cannot be taken back, and for a draft of another vocabulary.
    """
    _require_taking_back(model)
    if isinstance(spec, PromptLookup):
        return Speculation(LookupGuesser(spec), spec.guesses, spec.step_guesses)
    if isinstance(spec.model, LanguageModel):
        draft = spec.model
    else:
        loaded = load_for_engine(local_folder(spec.model), None, str(model.device))
        if not isinstance(loaded, LanguageModel):
            raise UserError(f"{spec.model} holds a {loaded.config.family} model; a draft is a decoder, such as llama")
        draft = loaded
    _require_taking_back(draft)
    use_kernels(draft)
    if draft.config.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"a draft model needs the vocabulary of the model, which has {model.config.vocab_size} tokens; this one "
            f"has {draft.config.vocab_size}"
        )
    size = block_size_of(draft)
    pool = BlockPool(blocks_for(cache_tokens, size), block_size=size)
    runner = runner_of(draft, pool, step_tokens, most_running, cache_dtype(draft))
    guesser = DraftGuesser(runner, Scheduler(pool, step_tokens, most_running, reach=reach(draft)))
    return Speculation(guesser, spec.guesses, spec.step_guesses)


def _require_taking_back(model: LanguageModel) -> None:
    if is_recurrent(model) or depends_on_the_longest(model) or not model.config.causal:
        raise ValueError(
            f"no speculation with this {model.config.family} model: what it computed of a guess cannot be taken back; "
            "leave out `speculate`"
        )
