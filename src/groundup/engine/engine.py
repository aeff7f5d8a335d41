"""`groundup.Engine`: a model that serves many requests at a time, whoever they come from.

Chat, evaluation, reinforcement learning and a server ask the same engine; requests that overlap in time are computed
together, and beginnings that they share are computed once. What a request gets does not depend on the others
(docs/engine.md, "Equal texts").
"""

import asyncio
from asyncio import wrap_future
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Generator, Iterator, Sequence
from contextlib import aclosing, closing, contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from torch import Tensor

from groundup.engine.asking import Desk, Listen, asked, of_one_text
from groundup.engine.assembly import assemble, require_limits
from groundup.engine.choose import Choice
from groundup.engine.compiled import CacheType
from groundup.engine.completion import (
    AwaitedInboxes,
    Completion,
    Gathering,
    Heard,
    Inboxes,
    Score,
    awaited_pieces_of,
    completions,
    from_other_thread,
    pieces_of,
)
from groundup.engine.constrain import Constraint
from groundup.engine.conversing import Conversing
from groundup.engine.draft import DraftModel, speculation_of
from groundup.engine.embedding import Pooling, in_order
from groundup.engine.guessing import PromptLookup
from groundup.engine.jobs import Piece
from groundup.engine.loading import loaded, require_adapter
from groundup.engine.loop import Loop
from groundup.engine.model_matrices import activation_dtype
from groundup.engine.pairs import reader_of
from groundup.engine.prompts import Prompt
from groundup.engine.runner import decoder_of
from groundup.engine.sampling import Sampling
from groundup.engine.worker import Worker
from groundup.formats.peft import read_adapter
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.language_model import LanguageModel
from groundup.model.lora import Adapter
from groundup.tokens.text import TextTokenizer


class Engine(Conversing):
    """A model, and all that is asked of it; what it answers to conversations is in `conversing.py`.

    model: a model folder, `hf:org/name`, or a model; decoders write and score, encoder-decoders do for a source,
        encoders only embed.
    tokenizer: of a model that is given as such; a folder has its own, whoever trained it. Token ids need none.
    stop_ids: tokens that end a text; by default those of the folder's generation settings, or of the tokenizer.
    cache_tokens: how many tokens the cache holds for all requests together; by default as many as fit into 1 GiB, but
        at least one text of the model's full length.
    host_tokens: how many more it keeps in the host's memory, of texts that had to give way and of shared beginnings;
        they come back instead of being computed again. By default as many on a GPU, none on a CPU.
    step_tokens: most tokens of one step: fewer make running texts smoother, more make prompts faster.
    most_running: texts that are computed at a time.
    cache_type: in which keys and values are kept, see `cache_dtype`.
    quantize: "w8", "w4" or "w4_g32" for a folder whose weights are to be rounded to so many bits, and activations to 8;
        `groundup quantize` does it once and says what it costs. "fp8" on GPUs that can.
    speculate: who guesses tokens, which are computed together and kept if they are right: `PromptLookup(...)`, in texts
        that repeat, or `DraftModel(...)`. What is written is the same with and without, but for rounding.
    device: where a folder's model is computed: "cpu" (the default) or "cuda", there in bfloat16 unless its weights are
        float16. A model that is given as such is computed where it lies, in its own type.
    compile_layers: have `torch.compile` make kernels for the layers of a model on a GPU, which takes about a minute.
    Raises UserError for a folder that cannot be read or holds a model of another kind, and for a device that is not
    there; ValueError for limits that nothing can be computed in, for more `cache_tokens` or `host_tokens` than there is
    memory for, and for a model that does not go with `speculate`.
    """

    def __init__(
        self,
        model: str | PathLike[str] | LanguageModel | EncoderDecoder,
        tokenizer: TextTokenizer | None = None,
        *,
        stop_ids: Collection[int] | None = None,
        cache_tokens: int | None = None,
        host_tokens: int | None = None,
        step_tokens: int = 512,
        most_running: int = 64,
        cache_type: CacheType | None = None,
        quantize: str | None = None,
        speculate: PromptLookup | DraftModel | None = None,
        device: str | None = None,
        compile_layers: bool = False,
    ) -> None:
        require_limits(step_tokens, most_running, cache_tokens, host_tokens)
        if tokenizer is not None and not isinstance(tokenizer, TextTokenizer):
            raise ValueError(f"`tokenizer` must be a `Tokenizer`, not {tokenizer!r}")
        self.model, folder = loaded(model, quantize, device)
        self._reader = reader_of(self.model.config, folder, tokenizer)
        self.stop_ids = frozenset(self._reader.stops(stop_ids))
        self._pool, scheduler, runner = assemble(
            self.model,
            step_tokens,
            most_running,
            cache_tokens=cache_tokens,
            host_tokens=host_tokens,
            cache_type=cache_type,
            compile_layers=compile_layers,
        )
        speculation = None
        if speculate is not None:
            speculation = speculation_of(speculate, self.model, self._pool.tokens, step_tokens, most_running)
        self._loop = Loop(runner, scheduler, speculation)
        self._worker = Worker(self._loop)
        self._desk = Desk(self.model, self._reader, self._loop, self._worker, self._pool, step_tokens, most_running)

    @property
    def tokenizer(self) -> TextTokenizer:
        """Raises UserError, saying why, where there is none: token ids are then all that the engine understands."""
        return self._reader.tokenizer

    @property
    def max_positions(self) -> int:
        """Tokens of prompt and answer together that the model is meant for; texts end there. A source has its own."""
        return self.model.config.max_positions

    def add_adapter(self, name: str, folder: str | PathLike[str]) -> None:
        """Load a LoRA adapter that PEFT saved, for requests that name it; others run on meanwhile and afterwards.

        Raises UserError for a folder that cannot be read or is for another model, ValueError if the name is taken or no
        text, and for an encoder-decoder.
        """
        require_adapter(name, folder)
        if isinstance(self.model, EncoderDecoder):
            family = self.model.config.family
            raise ValueError(f"adapters are for decoders and encoders; a {family} model is both and can have none here")
        changes = read_adapter(Path(folder), self.model.config, activation_dtype(self.model), self.model.device)
        self._worker.result_of(partial(self._loop.adapters.add, Adapter(name, changes))).result()

    def drop_adapter(self, name: str) -> None:
        """Forget an adapter. Raises ValueError if there is none of this name, or while texts with it are written."""
        self._worker.result_of(partial(self._loop.drop_adapter, name)).result()

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | None = None,
        *,
        constraint: Constraint | None = None,
        adapter: str | None = None,
        echo: bool = False,
        **options: Any,
    ) -> list[Completion]:
        """What follows each prompt: `n` texts for the first, then for the second, …

        prompts: to encoder-decoders a prompt is a source, or a `Pair` of one and of how the text for it begins.
        sampling, or options that are its fields: without `stop_token_ids` texts end at the engine's own.
        constraint: the form that each text must have, see `engine/constrain.py`.
        adapter: the name of the one that the model is to have for these texts.
        echo: whether the prompts' own log-probabilities are wanted, too, with as many of the likeliest tokens.
        Raises ValueError, naming the prompt, before anything is computed if one is empty, too long or not of this
        vocabulary.
        """
        wanted = asked(sampling, options, self.stop_ids)
        texts, echoes = Inboxes[Sequence[Piece]](), Inboxes[list[Choice]]()
        listen, listen_to_prompt = lambda: Gathering(texts.open()), echoes.open if echo else None
        all_ids, jobs = self._desk.begin(prompts, listen, wanted, constraint, adapter, echo=listen_to_prompt)
        with self._desk.awaited(jobs):
            return completions(all_ids, texts.heard(), wanted, self._reader.spell, echoes.heard())

    def stream(self, prompt: Prompt, sampling: Sampling | None = None, **options: Any) -> Iterator[str]:
        """The text that follows a prompt, as soon as it is certain; closing the stream ends it.

        sampling, options: as for `generate`, of one text.
        """
        with closing(self.pieces(prompt, sampling, **options)) as pieces:
            yield from (piece.text for piece in pieces if piece.text)

    def pieces(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        *,
        constraint: Constraint | None = None,
        adapter: str | None = None,
        **options: Any,
    ) -> Generator[Piece, None, None]:
        """The same token by token, with log-probabilities and, in the last piece, why the text ends."""
        inbox: SimpleQueue[Heard] = SimpleQueue()
        wanted = of_one_text(asked(sampling, options, self.stop_ids), "a stream")
        with self.telling([prompt], lambda: inbox.put, wanted, constraint, adapter):
            yield from pieces_of(inbox)

    @contextmanager
    def telling(
        self,
        prompts: Sequence[Prompt],
        listen: Listen,
        sampling: Sampling,
        constraint: Constraint | None = None,
        adapter: str | None = None,
    ) -> Iterator[None]:
        """Within it texts are written, and what they gain is told in the engine's thread itself, which wakes nobody up.

        listen: gives for each text in turn what is told its pieces, and the error if one ends it; it must not raise.
        sampling: as it stands, so that no text ends at other stop tokens than it has.
        What is not finished is given up where an error leaves this. Raises ValueError as `generate` does.
        """
        _, jobs = self._desk.begin(prompts, listen, sampling, constraint, adapter, streams=True)
        with self._desk.awaited(jobs):
            yield

    def score(self, texts: Sequence[Prompt], adapter: str | None = None, logprobs: int = 0) -> list[Score]:
        """How likely each text is, token by token; summed, it is the trainer's loss, negated.

        texts: to encoder-decoders a `Pair` each, whose target is scored. adapter: as for `generate`.
        logprobs: of how many of the likeliest tokens the log-probabilities are told with each token.
        Raises ValueError as `generate` does.
        """
        scores = Inboxes[list[Choice]]()
        jobs = self._desk.begin_scores(texts, adapter, scores.open, logprobs)
        with self._desk.awaited(jobs):
            return [Score(job.prompt, choices) for job, choices in zip(jobs, scores.heard(), strict=True)]

    def embed(self, texts: Sequence[Prompt], pooling: Pooling = "mean", adapter: str | None = None) -> Tensor:
        """A vector for each text, (texts, width), of what leaves the layers: the mean over its tokens, or its last.

        Where there is an encoder, it is what leaves that. adapter: as for `generate`.
        Raises ValueError as `generate` does.
        """
        batches, found = self._desk.begin_embedding(texts, pooling, adapter)
        try:
            return in_order([future.result() for future in found], batches, decoder_of(self.model).width)
        finally:
            for future in found:
                future.cancel()

    async def agenerate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | None = None,
        *,
        constraint: Constraint | None = None,
        adapter: str | None = None,
        echo: bool = False,
        **options: Any,
    ) -> list[Completion]:
        """As `generate`. If the task that awaits it is cancelled, so is all of it, and its memory is free at once."""
        wanted = asked(sampling, options, self.stop_ids)
        texts, echoes = AwaitedInboxes[Sequence[Piece]](), AwaitedInboxes[list[Choice]]()
        listen, listen_to_prompt = lambda: Gathering(texts.open()), echoes.open if echo else None
        all_ids, jobs = self._desk.begin(prompts, listen, wanted, constraint, adapter, echo=listen_to_prompt)
        with self._desk.awaited(jobs):
            return completions(all_ids, await texts.heard(), wanted, self._reader.spell, await echoes.heard())

    async def ascore(self, texts: Sequence[Prompt], adapter: str | None = None, logprobs: int = 0) -> list[Score]:
        """As `score`. If the task that awaits it is cancelled, so is what is not yet computed."""
        scores = AwaitedInboxes[list[Choice]]()
        jobs = self._desk.begin_scores(texts, adapter, scores.open, logprobs)
        with self._desk.awaited(jobs):
            return [Score(job.prompt, choices) for job, choices in zip(jobs, await scores.heard(), strict=True)]

    async def aembed(self, texts: Sequence[Prompt], pooling: Pooling = "mean", adapter: str | None = None) -> Tensor:
        """As `embed`. If the task that awaits it is cancelled, so are the batches that have not begun."""
        batches, found = self._desk.begin_embedding(texts, pooling, adapter)
        try:
            return in_order([await wrap_future(future) for future in found], batches, decoder_of(self.model).width)
        finally:
            for future in found:
                future.cancel()

    async def astream(self, prompt: Prompt, sampling: Sampling | None = None, **options: Any) -> AsyncIterator[str]:
        """As `stream`; it ends when it is closed, or with the task that reads it."""
        async with aclosing(self.apieces(prompt, sampling, **options)) as pieces:
            async for piece in pieces:
                if piece.text:
                    yield piece.text

    async def apieces(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        *,
        constraint: Constraint | None = None,
        adapter: str | None = None,
        **options: Any,
    ) -> AsyncGenerator[Piece, None]:
        """As `pieces`."""
        inbox: asyncio.Queue[Heard] = asyncio.Queue()
        tell = from_other_thread(inbox)
        wanted = of_one_text(asked(sampling, options, self.stop_ids), "a stream")
        with self.telling([prompt], lambda: tell, wanted, constraint, adapter):
            async for piece in awaited_pieces_of(inbox):
                yield piece
