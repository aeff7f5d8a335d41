"""From what is asked of the engine to the jobs that its thread is given; mistakes come out here, where it is asked."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from groundup.engine.beaming import Beaming
from groundup.engine.blocks import BlockPool
from groundup.engine.choose import Chooser
from groundup.engine.completion import Heard
from groundup.engine.jobs import Scoring, Writing
from groundup.engine.prompts import Prompt
from groundup.engine.sampling import Sampling
from groundup.engine.text import StoppingText
from groundup.model.lora import Adapter

# Gives a new way to tell a text's pieces to whoever waits for them.
Listen = Callable[[], Callable[[Heard], None]]


def asked(sampling: Sampling | None, options: Mapping[str, Any], stop_ids: Collection[int]) -> Sampling:
    """What is asked for, as a whole; without `stop_token_ids` of its own, it has `stop_ids`."""
    if sampling is None:
        sampling = Sampling(**options)
    elif options:
        raise ValueError(f"give `sampling` or its fields ({', '.join(options)}), not both")
    return sampling if sampling.stop_token_ids else replace(sampling, stop_token_ids=tuple(stop_ids))


def of_one_text(sampling: Sampling) -> Sampling:
    """What is asked of a stream. Raises ValueError if it is several texts, or known only when all is done."""
    texts = max(sampling.n, sampling.best_of or 1, sampling.beams)
    if texts > 1:
        raise ValueError(f"a stream is of one text, not of {texts}: `n`, `best_of` and `beams` are for `generate`")
    return sampling


def listed(prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """Raises ValueError for a text, which is a sequence of letters too."""
    if isinstance(prompts, str):
        raise ValueError("`prompts` must be a list of texts, not one text")
    return prompts


def jobs_for(
    prompt: list[int],
    limit: int,
    chooser: Chooser,
    text: StoppingText | None,
    listen: Listen,
    adapter: Adapter | None = None,
) -> list[Writing | Beaming]:
    """The jobs that answer a prompt; the first of them is begun, and begins the others.

    limit: tokens of an answer. chooser, text: of the first answer, others have copies of them. adapter: that the model
    has for all of them, if any.
    """
    sampling = chooser.sampling
    if sampling.beams > 1:
        return [Beaming(prompt, limit, chooser, text, [listen() for _ in range(sampling.n)], adapter)]
    leader = Writing(prompt, limit, chooser, text, listen(), adapter)
    for copy in range(1, sampling.written):
        own_text = None if text is None else text.copy()
        leader.copies.append(Writing(prompt, limit, chooser.fork(copy), own_text, listen(), adapter))
    return [leader, *leader.copies]


def require_room(job: Writing | Beaming | Scoring, pool: BlockPool, most_running: int) -> None:
    """Raises ValueError for a job that could never come to its end in this pool."""
    blocks, texts = pool.blocks_for(job.most_tokens), "a text"
    if isinstance(job, Beaming):
        if job.beams > most_running:
            raise ValueError(f"`beams` must be at most {most_running}, the texts that this engine computes at a time")
        blocks, texts = job.most_blocks(pool), f"a search with {job.beams} beams"
    if blocks > pool.count:
        raise ValueError(
            f"{texts} of up to {job.most_tokens} tokens does not fit into the cache of this engine, which holds "
            f"{pool.tokens}; ask for fewer `max_tokens` or give it more `cache_tokens`"
        )
