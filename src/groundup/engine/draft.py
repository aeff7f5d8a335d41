"""A draft model: a smaller one of the same vocabulary, which guesses what the engine's model is going to say.

It writes on with the text's own chooser: the same settings, penalties and constraint, and for each token the number
that will decide about it. Where both models say the same about a token, so do they choose the same. The draft of an
encoder-decoder is one too, and reads the same sources.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from os import PathLike
from weakref import WeakKeyDictionary

from groundup.engine.assembly import assemble
from groundup.engine.choose import Chooser
from groundup.engine.guessing import LookupGuesser, PromptLookup, Speculation
from groundup.engine.jobs import Writing
from groundup.engine.loading import load_for_engine, require_model
from groundup.engine.ranges import COUNT
from groundup.engine.rows import Logits, RowReader
from groundup.engine.runner import StepRunner, decoder_of, depends_on_the_longest, is_recurrent
from groundup.engine.scheduler import Scheduler
from groundup.engine.sequence import Sequence as Text
from groundup.engine.source import Source
from groundup.formats.folder import local_folder
from groundup.model.config import AudioConfig, StackConfig
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.language_model import LanguageModel


@dataclass(frozen=True)
class DraftModel:
    """Guesses with a smaller model of the same vocabulary.

    model: a model folder, `hf:org/name`, or a model; a decoder, or for an encoder-decoder one that reads the same.
    guesses: at most, of a text in a step. step_guesses: of all texts of a step together.
    Raises ValueError for what names no model, and for numbers below 1.
    """

    model: str | PathLike[str] | LanguageModel | EncoderDecoder
    guesses: int = 4
    step_guesses: int = 32

    def __post_init__(self) -> None:
        require_model(self.model)
        for name in ("guesses", "step_guesses"):
            COUNT.require(f"`{name}`", getattr(self, name))


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
        self._runner, self._scheduler, self._reader = runner, scheduler, RowReader()
        self._texts: dict[Writing, Text] = {}
        # Those of the texts, as the draft reads them: what it keeps of one lies in blocks of its own.
        self._sources: WeakKeyDictionary[Source, Source] = WeakKeyDictionary()

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
            source = None if text.source is None else self._own(text.source)
            self._texts[text] = self._scheduler.add(tokens, text.most_tokens, source=source)
            return self._texts[text]
        draft = self._texts[text]
        pairs = zip(draft.guesses, tokens[draft.certain :], strict=False)
        self._scheduler.settle(draft, sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)))
        draft.tokens += tokens[len(draft.tokens) :]
        return draft

    def _own(self, source: Source) -> Source:
        """The draft's counterpart of a source, one for all texts that are written for it."""
        if source not in self._sources:
            self._sources[source] = Source(source.content, source.length)
        return self._sources[source]

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
        rows = self._reader.read(logits_nv, [drafted[sequence].chooser.draw() for sequence in ready])
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
    spec: PromptLookup | DraftModel,
    model: LanguageModel | EncoderDecoder,
    cache_tokens: int,
    step_tokens: int,
    most_running: int,
) -> Speculation:
    """What guesses for a model. cache_tokens, step_tokens, most_running: of its own engine.

    Raises ValueError for models whose tokens cannot be taken back, and for a draft of another kind or vocabulary.
    """
    if not isinstance(spec, PromptLookup | DraftModel):
        raise ValueError(f"`speculate` must be a `PromptLookup` or a `DraftModel`, not {spec!r}")
    _require_taking_back(decoder_of(model))
    if isinstance(spec, PromptLookup):
        return Speculation(LookupGuesser(spec), spec.guesses, spec.step_guesses)
    draft = spec.model
    if not isinstance(draft, LanguageModel | EncoderDecoder):
        draft = load_for_engine(local_folder(draft), None, str(model.device))
    _require_alike(draft, model)
    _require_taking_back(decoder_of(draft))
    _, scheduler, runner = assemble(draft, step_tokens, most_running, cache_tokens=cache_tokens, host_tokens=0)
    return Speculation(DraftGuesser(runner, scheduler), spec.guesses, spec.step_guesses)


def _require_taking_back(model: LanguageModel) -> None:
    if is_recurrent(model) or depends_on_the_longest(model) or not model.config.causal:
        raise ValueError(
            f"no speculation with this {model.config.family} model: what it computed of a guess cannot be taken back; "
            "leave out `speculate`"
        )


def _require_alike(draft: LanguageModel | EncoderDecoder, model: LanguageModel | EncoderDecoder) -> None:
    """That the draft can read all that the model is given, and knows the same tokens."""
    ours, theirs = model.config.family, draft.config.family
    if isinstance(draft, EncoderDecoder) != isinstance(model, EncoderDecoder):
        kind = "an encoder-decoder" if isinstance(model, EncoderDecoder) else "a decoder"
        raise ValueError(f"a draft for this {ours} model must be {kind}, as it is; this one is a {theirs} model")
    if isinstance(draft, EncoderDecoder) and isinstance(model, EncoderDecoder):
        wanted, found = model.config.encoder, draft.config.encoder
        if not _reads_all_of(found, wanted):
            raise ValueError(f"a draft for this {ours} model must read {_content(wanted)}, not {_content(found)}")
    if draft.config.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"a draft model needs the vocabulary of the model, which has {model.config.vocab_size} tokens; this one "
            f"has {draft.config.vocab_size}"
        )


def _reads_all_of(encoder: StackConfig, other: StackConfig) -> bool:
    """Whether an encoder reads whatever another one does."""
    if isinstance(encoder, AudioConfig) and isinstance(other, AudioConfig):
        return encoder.mel_bins == other.mel_bins and encoder.positions >= other.positions
    return not isinstance(encoder, AudioConfig) and not isinstance(other, AudioConfig)


def _content(encoder: StackConfig) -> str:
    if isinstance(encoder, AudioConfig):
        return f"sound of {encoder.mel_bins} mel bins and up to {2 * encoder.positions} frames"
    return "text"
