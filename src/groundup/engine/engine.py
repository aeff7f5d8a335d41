"""`groundup.Engine`: a model that serves many requests at a time, whoever they come from.

Chat, evaluation, reinforcement learning and a server ask the same engine; requests that overlap in time are computed
together, and beginnings that they share are computed once. What a request gets does not depend on the others.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing, closing
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import torch
from torch import Tensor

from groundup.engine.blocks import BLOCK_TOKENS, BlockPool, blocks_for
from groundup.engine.choose import make_chooser
from groundup.engine.completion import (
    Completion,
    Heard,
    Score,
    awaited_pieces_of,
    completion,
    from_other_thread,
    heard,
    pieces_of,
)
from groundup.engine.constrain import Constraint
from groundup.engine.embedding import POOLINGS, Pooling, embed
from groundup.engine.jobs import Job, Piece, Scoring, Writing
from groundup.engine.loop import Loop, Worker
from groundup.engine.prompts import Prompt, Reader
from groundup.engine.runner import Runner, depends_on_the_longest, is_recurrent, reach, token_bytes
from groundup.engine.sampling import Sampling
from groundup.engine.scheduler import Scheduler
from groundup.formats.folder import local_folder
from groundup.formats.huggingface import load_language_model
from groundup.formats.peft import read_adapter
from groundup.model.language_model import LanguageModel
from groundup.model.lora import Adapter
from groundup.tokens.chat import Message, Reply, parse_assistant, render, turn_ends
from groundup.tokens.tokenizer import Tokenizer

Result = TypeVar("Result")
Listen = Callable[[], Callable[[Heard], None]]

# What the cache may hold by default, of keys and values.
CACHE_BYTES = 2**30
# Texts that are embedded together.
EMBED_BATCH = 16


class Engine:
    """A model, and all that is asked of it.

    model: a model folder, `hf:org/name`, or a model of text; decoders write and score, encoders only embed.
    tokenizer: of a model that is given as such; a folder has its own. Token ids need none.
    stop_ids: tokens that end a text; by default those of the folder's generation settings, or of the tokenizer.
    cache_tokens: how many tokens the cache holds for all requests together; by default as many as fit into 1 GiB, but
        at least one text of the model's full length.
    host_tokens: how many more it keeps in the host's memory, of texts that had to give way and of shared beginnings;
        they come back instead of being computed again. By default as many on a GPU, none on a CPU.
    step_tokens: most tokens of one step: fewer make running texts smoother, more make prompts faster.
    most_running: texts that are computed at a time.
    Raises UserError for a folder that cannot be read or holds a model of another kind.
    """

    def __init__(
        self,
        model: str | PathLike[str] | LanguageModel,
        tokenizer: Tokenizer | None = None,
        *,
        stop_ids: Collection[int] | None = None,
        cache_tokens: int | None = None,
        host_tokens: int | None = None,
        step_tokens: int = 512,
        most_running: int = 64,
    ) -> None:
        folder = None if isinstance(model, LanguageModel) else local_folder(model)
        self.model = model if isinstance(model, LanguageModel) else load_language_model(local_folder(model))
        self._reader = Reader(self.model.config, folder, tokenizer)
        self.stop_ids = frozenset(self._reader.usual_stops() if stop_ids is None else stop_ids)
        cache_tokens = cache_tokens or _usual_cache_tokens(self.model, most_running)
        if host_tokens is None:
            host_tokens = 0 if self.model.device.type == "cpu" else cache_tokens
        self._pool = BlockPool(blocks_for(cache_tokens), host=blocks_for(host_tokens))
        scheduler = Scheduler(
            self._pool,
            step_tokens,
            most_running,
            recurrent=is_recurrent(self.model),
            whole_prompts=depends_on_the_longest(self.model),
            reach=reach(self.model),
        )
        self._loop = Loop(Runner(self.model, self._pool.count, self._pool.host), scheduler)
        self._worker = Worker(self._loop)

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises UserError, saying why, where there is none: token ids are then all that the engine understands."""
        return self._reader.tokenizer

    @property
    def max_positions(self) -> int:
        """Tokens of prompt and answer together that the model is meant for; texts end there."""
        return self.model.config.max_positions

    def add_adapter(self, name: str, folder: str | PathLike[str]) -> None:
        """Load a LoRA adapter that PEFT saved, for requests that name it; others run on meanwhile and afterwards.

        Raises UserError for a folder that cannot be read or is for another model, ValueError if the name is taken.
        """
        self._check_decoder()
        dtype = self.model.compute_dtype or next(self.model.parameters()).dtype
        changes = read_adapter(Path(folder), self.model.config, dtype, self.model.device)
        self._do(partial(self._loop.adapters.add, Adapter(name, changes))).result()

    def drop_adapter(self, name: str) -> None:
        """Forget an adapter. Raises ValueError if there is none of this name, or while texts with it are written."""
        self._do(partial(self._loop.drop_adapter, name)).result()

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | None = None,
        *,
        constraint: Constraint | None = None,
        adapter: str | None = None,
        **options: Any,
    ) -> list[Completion]:
        """What follows each prompt: `n` texts for the first, then for the second, …

        sampling, or options that are its fields: without `stop_token_ids` texts end at the engine's own.
        constraint: the form that each text must have, see `engine/constrain.py`.
        adapter: the name of the one that the model is to have for these texts.
        Raises ValueError, naming the prompt, before anything is computed if one is empty, too long or not of this
        vocabulary.
        """
        asked = self._asked(sampling, options)
        inboxes: list[SimpleQueue[Heard]] = []

        def listen() -> Callable[[Heard], None]:
            inboxes.append(SimpleQueue())
            return inboxes[-1].put

        jobs = self._begin(_listed(prompts), listen, asked, constraint, adapter)
        try:
            return [completion(job, list(pieces_of(inbox))) for job, inbox in zip(jobs, inboxes, strict=True)]
        except BaseException:
            self._cancel(jobs)
            raise

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
        asked = _of_one_text(self._asked(sampling, options))
        jobs = self._begin([prompt], lambda: inbox.put, asked, constraint, adapter)
        try:
            yield from pieces_of(inbox)
        except BaseException:
            self._cancel(jobs)
            raise

    def chat(self, messages: Sequence[Message], **options: Any) -> Reply:
        """The assistant's reply to a conversation, see `tokens/chat.py`; `reply.message()` continues it.

        Raises UserError where the messages are no conversation, ValueError where they are too long.
        """
        stops = tuple(turn_ends(self.tokenizer))
        (written,) = self.generate([self.chat_prompt(messages)], stop_token_ids=stops, **options)
        reply = parse_assistant(self.tokenizer, written.tokens)
        return replace(reply, complete=written.ending == "stop")

    def stream_chat(self, messages: Sequence[Message], **options: Any) -> Iterator[str]:
        """The words of the reply as they come, up to a tool call if it makes one."""
        stops = tuple(turn_ends(self.tokenizer) | {self.tokenizer.control["<|tool_call|>"]})
        return self.stream(self.chat_prompt(messages), stop_token_ids=stops, **options)

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens from which the assistant goes on."""
        return render(self.tokenizer, messages, add_generation_prompt=True).ids

    def score(self, texts: Sequence[Prompt], adapter: str | None = None) -> list[Score]:
        """How likely each text is, token by token; summed, it is the trainer's loss, negated.

        adapter: as for `generate`.

        Raises ValueError as `generate` does.
        """
        self._check_decoder()
        inboxes: list[SimpleQueue[list[float] | Exception]] = [SimpleQueue() for _ in texts]
        all_ids = [self._reader.ids(text, f"texts[{index}]", room=0) for index, text in enumerate(_listed(texts))]
        adapted = self._adapter(adapter)
        jobs = [Scoring(ids, inbox.put, adapted) for ids, inbox in zip(all_ids, inboxes, strict=True)]
        for job in jobs:
            self._check_fits(job)
        self._submit(jobs)
        try:
            return [Score(job.prompt, heard(inbox.get())) for job, inbox in zip(jobs, inboxes, strict=True)]
        except BaseException:
            self._cancel(jobs)
            raise

    def embed(self, texts: Sequence[Prompt], pooling: Pooling = "mean") -> Tensor:
        """A vector for each text, (texts, width), of what leaves the layers: the mean over its tokens, or its last.

        Raises ValueError as `generate` does.
        """
        if pooling not in POOLINGS:
            raise ValueError(f"`pooling` must be one of {', '.join(POOLINGS)}, not {pooling!r}")
        all_ids = [self._reader.ids(text, f"texts[{index}]", room=0) for index, text in enumerate(_listed(texts))]
        if not all_ids:
            return torch.empty(0, self.model.config.width)
        by_length = sorted(range(len(all_ids)), key=lambda index: len(all_ids[index]))
        size = 1 if depends_on_the_longest(self.model) else EMBED_BATCH
        batches = [by_length[start : start + size] for start in range(0, len(by_length), size)]
        found = [self._do(partial(embed, self.model, [all_ids[at] for at in batch], pooling)) for batch in batches]
        return torch.cat([future.result() for future in found])[torch.tensor(by_length).argsort()]

    async def agenerate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | None = None,
        *,
        constraint: Constraint | None = None,
        adapter: str | None = None,
        **options: Any,
    ) -> list[Completion]:
        """As `generate`. If the task that awaits it is cancelled, so is all of it, and its memory is free at once."""
        asked = self._asked(sampling, options)
        inboxes: list[asyncio.Queue[Heard]] = []

        def listen() -> Callable[[Heard], None]:
            inboxes.append(asyncio.Queue())
            return from_other_thread(inboxes[-1])

        jobs = self._begin(_listed(prompts), listen, asked, constraint, adapter)
        try:
            all_pieces = [[piece async for piece in awaited_pieces_of(inbox)] for inbox in inboxes]
            return [completion(job, pieces) for job, pieces in zip(jobs, all_pieces, strict=True)]
        except BaseException:
            self._cancel(jobs)
            raise

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
        asked = _of_one_text(self._asked(sampling, options))
        jobs = self._begin([prompt], lambda: tell, asked, constraint, adapter)
        try:
            async for piece in awaited_pieces_of(inbox):
                yield piece
        except BaseException:
            self._cancel(jobs)
            raise

    def _asked(self, sampling: Sampling | None, options: Mapping[str, Any]) -> Sampling:
        """What is asked for, as a whole. Raises ValueError for what this engine cannot do."""
        if sampling is None:
            sampling = Sampling(**options)
        elif options:
            raise ValueError(f"give `sampling` or its fields ({', '.join(options)}), not both")
        if sampling.beams > 1 or sampling.best_of is not None:
            raise ValueError("the engine has no `beams` and no `best_of` yet; ask for `n` texts")
        sampling.require_vocabulary(self.model.config.vocab_size)
        return sampling if sampling.stop_token_ids else replace(sampling, stop_token_ids=tuple(self.stop_ids))

    def _begin(
        self,
        prompts: Sequence[Prompt],
        listen: Listen,
        sampling: Sampling,
        constraint: Constraint | None,
        adapter: str | None,
    ) -> list[Writing]:
        """Check the prompts, then hand them to the thread; `n` jobs for each."""
        self._check_decoder()
        adapted = self._adapter(adapter)
        jobs: list[list[Writing]] = []
        for index, prompt in enumerate(prompts):
            ids = self._reader.ids(prompt, f"prompts[{index}]", room=1)
            limit = min(sampling.max_tokens, self.max_positions - len(ids))
            chooser = make_chooser(sampling, ids, constraint)
            choosers = [chooser, *(chooser.fork(copy) for copy in range(1, sampling.n))]
            jobs.append(
                [Writing(ids, limit, one, self._reader.text(sampling.stop), listen(), adapted) for one in choosers]
            )
            self._check_fits(jobs[-1][0])
        for leader, *copies in jobs:
            leader.copies = copies
        self._submit([leader for leader, *_ in jobs])
        return [job for of_prompt in jobs for job in of_prompt]

    def _adapter(self, name: str | None) -> Adapter | None:
        """Raises ValueError if there is none of this name."""
        return None if name is None else self._loop.adapters.named(name)

    def _submit(self, jobs: Sequence[Job]) -> None:
        """Have jobs begun, all before the same step: nothing then depends on which thread is faster."""

        def begin() -> None:
            for job in jobs:
                self._loop.begin(job)

        self._worker.do(begin)

    def _cancel(self, jobs: Sequence[Job]) -> None:
        """Give up what is not finished."""
        for job in jobs:
            self._worker.do(partial(self._loop.cancel, job))

    def _do(self, work: Callable[[], Result]) -> "Future[Result]":
        """Have something else done by the thread, between two steps."""
        future: Future[Result] = Future()

        def action() -> None:
            try:
                future.set_result(work())
            except Exception as error:  # whoever waits for the result gets it
                future.set_exception(error)

        self._worker.do(action)
        return future

    def _check_fits(self, job: Job) -> None:
        if blocks_for(job.most_tokens) > self._pool.count:
            raise ValueError(
                f"a text of up to {job.most_tokens} tokens does not fit into the cache of this engine, which holds "
                f"{self._pool.count * BLOCK_TOKENS}; ask for fewer `max_tokens` or give it more `cache_tokens`"
            )

    def _check_decoder(self) -> None:
        if not self.model.config.causal:
            raise ValueError(f"a {self.model.config.family} model cannot go on from a text; this engine only embeds")


def _listed(prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    if isinstance(prompts, str):
        raise ValueError("`prompts` must be a list of texts, not one text")
    return prompts


def _of_one_text(sampling: Sampling) -> Sampling:
    """What is asked of a stream. Raises ValueError if it is several texts."""
    if sampling.n > 1:
        raise ValueError(f"a stream is of one text, not of {sampling.n}: `n` is for `generate`")
    return sampling


def _usual_cache_tokens(model: LanguageModel, most_running: int) -> int:
    longest = model.config.max_positions
    return max(longest, min(CACHE_BYTES // token_bytes(model), most_running * longest))
