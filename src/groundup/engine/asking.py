"""From what is asked of the engine to the jobs that its thread is given; mistakes come out here, where it is asked."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from reprlib import repr as shortened
from typing import Any

from torch import Tensor

from groundup.engine.beaming import Beaming
from groundup.engine.blocks import BlockPool
from groundup.engine.choose import Choice, Chooser, make_chooser
from groundup.engine.completion import Heard
from groundup.engine.constrain import Constraint
from groundup.engine.embedding import EMBED_BATCH, POOLINGS, Pooling, batches_of
from groundup.engine.jobs import Scoring, Writing
from groundup.engine.loop import Job, Loop
from groundup.engine.prompts import Pair, Prompt, Reader
from groundup.engine.ranges import NATURAL
from groundup.engine.runner import decoder_of, depends_on_the_longest
from groundup.engine.sampling import Sampling
from groundup.engine.source import Source
from groundup.engine.text import StoppingText
from groundup.engine.worker import Worker
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.language_model import LanguageModel
from groundup.model.lora import Adapter

# What a text's tokens, all but the first, are told to as choices.
ScoreListener = Callable[[list[Choice] | Exception], None]
# What a text's pieces are told to, one after the other.
Listener = Callable[[Heard], None]
# Gives a new one for whoever waits for a text.
Listen = Callable[[], Listener]


class Desk:
    """Takes what is asked in the thread that asks, checks it, and hands it as jobs to the one that computes."""

    def __init__(
        self,
        model: LanguageModel | EncoderDecoder,
        reader: Reader,
        loop: Loop,
        worker: Worker,
        pool: BlockPool,
        step_tokens: int,
        most_running: int,
    ) -> None:
        self._model, self._reader, self._loop, self._worker = model, reader, loop, worker
        self._pool, self._step_tokens, self._most_running = pool, step_tokens, most_running

    def begin(
        self,
        prompts: Sequence[Prompt],
        listen: Listen,
        sampling: Sampling,
        constraint: Constraint | None,
        adapter: str | None,
        streams: bool = False,
        echo: Callable[[], ScoreListener] | None = None,
    ) -> tuple[list[list[int]], list[Job]]:
        """Have texts written; returns the prompts' token ids, and the jobs.

        streams: whether somebody reads the text as it comes; otherwise it is spelled at its end.
        echo: gives a new listener for the tokens of each prompt, if somebody wants these as choices too.
        """
        require_decoder(self._model)
        if constraint is not None and not isinstance(constraint, Constraint):
            raise ValueError(f"`constraint` must be made by a `GrammarCompiler`, not {constraint!r}")
        vocab_size = self._model.config.vocab_size
        sampling.require_vocabulary(vocab_size)
        if constraint is not None:
            constraint.require_vocabulary(vocab_size)
        adapted = self._adapter(adapter)
        groups: list[list[Writing | Beaming]] = []
        for index, prompt in enumerate(listed(prompts, "prompts")):
            ids, source = self._reader.read(prompt, f"prompts[{index}]", room=1)
            limit = min(sampling.max_tokens, self._model.config.max_positions - len(ids))
            text = self._reader.text(sampling.stop) if streams or sampling.stop else None
            chooser = make_chooser(sampling, ids, constraint)
            groups.append(jobs_for(ids, limit, chooser, text, listen, adapted, source))
            require_room(groups[-1][0], self._pool, self._most_running)
        leaders, jobs = [leader for leader, *_ in groups], [job for group in groups for job in group]
        if echo is None:
            self.submit(leaders)
            return [leader.prompt for leader in leaders], [*jobs]
        scorings = [self._before(leader, echo(), sampling.logprobs) for leader in leaders]
        self.submit(scorings)
        return [leader.prompt for leader in leaders], [*scorings, *jobs]

    def begin_scores(
        self,
        texts: Sequence[Prompt],
        adapter: str | None,
        listen: Callable[[], ScoreListener],
        top: int,
    ) -> list[Scoring]:
        """Have texts scored; listen: gives a new listener for each. top: see `Scoring`."""
        require_decoder(self._model)
        NATURAL.require("`logprobs`", top)
        texts = listed(texts, "texts")
        read = [self._reader.read(text, f"texts[{index}]", room=0) for index, text in enumerate(texts)]
        adapted = self._adapter(adapter)
        jobs = [Scoring(ids, listen(), adapted, source, top=top) for ids, source in read]
        for job in jobs:
            require_room(job, self._pool, self._most_running)
        self.submit(jobs)
        return jobs

    def begin_embedding(
        self, texts: Sequence[Prompt], pooling: Pooling, adapter: str | None
    ) -> "tuple[list[list[int]], list[Future[Tensor]]]":
        """Have texts embedded; returns which are in each batch, and its vectors to come.

        A batch has no more tokens than a step, so that running texts do not wait long between two of theirs.
        """
        if pooling not in POOLINGS:
            raise ValueError(f"`pooling` must be one of {', '.join(POOLINGS)}, not {pooling!r}")
        adapted = self._adapter(adapter)
        texts = listed(texts, "texts")
        all_ids = [self._reader.ids(text, f"texts[{index}]", room=0) for index, text in enumerate(texts)]
        most_texts = 1 if depends_on_the_longest(decoder_of(self._model)) else EMBED_BATCH
        batches = batches_of(all_ids, most_texts, self._step_tokens)
        return batches, [
            self._worker.result_of(
                partial(self._loop.embed, self._model, [all_ids[index] for index in batch], pooling, adapted)
            )
            for batch in batches
        ]

    def submit(self, jobs: Sequence[Job]) -> None:
        """Have the jobs of one call begun, all before the same step: nothing then depends on which thread is faster."""

        def begin() -> None:
            for place, job in enumerate(jobs):
                self._loop.begin(job, place)

        self._worker.do(begin)

    @contextmanager
    def awaited(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Within it somebody waits for jobs: if he stops before they are finished, they are given up."""
        try:
            yield
        except BaseException:
            for job in jobs:
                self._worker.do(partial(self._loop.cancel, job))
            raise

    def _before(self, leader: Writing | Beaming, tell: ScoreListener, top: int) -> Scoring:
        """Scores a prompt and then has its answer begun, which finds the prompt's whole blocks in the cache."""

        def told(found: list[Choice] | Exception) -> None:
            tell(found)
            if isinstance(found, Exception):
                leader.fail(found)
            else:
                self._loop.begin(leader)

        return Scoring(leader.prompt, told, leader.adapter, leader.source, top=top)

    def _adapter(self, name: str | None) -> Adapter | None:
        """Raises ValueError if there is none of this name."""
        return None if name is None else self._loop.adapters.named(name)


def require_decoder(model: LanguageModel | EncoderDecoder) -> None:
    """Raises ValueError for a model that reads both ways and has no part that writes."""
    if not decoder_of(model).config.causal:
        raise ValueError(f"a {model.config.family} model cannot go on from a text; this engine only embeds")


def asked(sampling: Sampling | None, options: Mapping[str, Any], stop_ids: Collection[int]) -> Sampling:
    """What is asked for, as a whole; without `stop_token_ids` of its own, it has `stop_ids`."""
    known = [field.name for field in fields(Sampling)]
    for name in options:
        if name not in known:
            raise ValueError(
                f"there is no option `{name}` here: besides `constraint` and `adapter`, accepted are {', '.join(known)}"
            )
    if sampling is None:
        sampling = Sampling(**options)
    elif not isinstance(sampling, Sampling):
        raise ValueError(f"`sampling` must be a `Sampling`, or its fields be given by name, not {sampling!r}")
    elif options:
        raise ValueError(f"give `sampling` or its fields ({', '.join(options)}), not both")
    return sampling if sampling.stop_token_ids else replace(sampling, stop_token_ids=tuple(stop_ids))


def of_one_text(sampling: Sampling, what: str) -> Sampling:
    """What is asked of a stream or a reply. Raises ValueError if it is several texts, or the best of several."""
    texts = max(sampling.n, sampling.best_of or 1, sampling.beams)
    if texts > 1:
        raise ValueError(f"{what} is of one text, not of {texts}: `n`, `best_of` and `beams` are for `generate`")
    return sampling


def listed(texts: Sequence[Prompt], name: str) -> Sequence[Prompt]:
    """The same. Raises ValueError, by their name, for what is no list, as a text is none though it has letters."""
    if isinstance(texts, str | Mapping) or not isinstance(texts, Iterable):
        what = "one text" if isinstance(texts, str | Pair) else shortened(texts)
        raise ValueError(f"`{name}` must be a list of texts, not {what}")
    return texts


def jobs_for(
    prompt: list[int],
    limit: int,
    chooser: Chooser,
    text: StoppingText | None,
    listen: Listen,
    adapter: Adapter | None = None,
    source: Source | None = None,
) -> list[Writing | Beaming]:
    """The jobs that answer a prompt; the first of them is begun, and begins the others.

    limit: tokens of an answer. chooser, text: of the first answer, others have copies of them. adapter: that the model
    has for all of them, if any. source: that they are written for, if the model has an encoder.
    """
    sampling = chooser.sampling
    if sampling.beams > 1:
        return [Beaming(prompt, limit, chooser, text, [listen() for _ in range(sampling.n)], adapter, source)]
    leader = Writing(prompt, limit, chooser, text, listen(), adapter, source)
    for copy in range(1, sampling.written):
        own_text = None if text is None else text.copy()
        leader.copies.append(Writing(prompt, limit, chooser.fork(copy), own_text, listen(), adapter, source))
    return [leader, *leader.copies]


def require_room(job: Writing | Beaming | Scoring, pool: BlockPool, most_running: int) -> None:
    """Raises ValueError for a job that could never come to its end in this pool."""
    source = job.source
    blocks, texts = pool.blocks_for(job.most_tokens) + (0 if source is None else source.blocks), "a text"
    if isinstance(job, Beaming):
        if job.beams > most_running:
            raise ValueError(f"`beams` must be at most {most_running}, the texts that this engine computes at a time")
        blocks, texts = job.most_blocks(pool), f"a search with {job.beams} beams"
    if blocks > pool.count:
        texts += f" of up to {job.most_tokens} tokens" + ("" if source is None else f" for a source of {source.length}")
        raise ValueError(
            f"{texts} does not fit into the cache of this engine, which holds "
            f"{pool.tokens}; ask for fewer `max_tokens` or give it more `cache_tokens`"
        )
