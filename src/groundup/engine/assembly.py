"""What computes the texts of a model: blocks for its tokens, who comes next, and who runs it, made to fit each other.

The engine's own model has such an assembly, and so has a draft that guesses for it.
"""

from typing import NamedTuple

import torch

from groundup.engine.blocks import BlockPool, blocks_for
from groundup.engine.cache_memory import memory_for
from groundup.engine.cache_plan import CachePlan
from groundup.engine.compiled import CacheType, cache_dtype
from groundup.engine.loading import use_kernels
from groundup.engine.ranges import COUNT, NATURAL
from groundup.engine.runner import StepRunner, decoder_of, depends_on_the_longest, is_recurrent
from groundup.engine.runners import block_size_of, largest_block_size, runner_of
from groundup.engine.scheduler import Scheduler
from groundup.engine.sight import reach
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.language_model import LanguageModel


class Assembly(NamedTuple):
    """The scheduler hands out blocks of the pool; the runner has memory for them, the host's included."""

    pool: BlockPool
    scheduler: Scheduler
    runner: StepRunner


def require_limits(step_tokens: int, most_running: int, cache_tokens: int | None, host_tokens: int | None) -> None:
    """Raises ValueError, naming it, for a limit in which nothing can be computed; None stands for the usual one."""
    for name, count in (("step_tokens", step_tokens), ("most_running", most_running)):
        COUNT.require(f"`{name}`", count)
    if most_running > step_tokens:
        raise ValueError(
            f"`most_running` must be at most `step_tokens` ({step_tokens}), not {most_running}: in each step every "
            "running text gets a token"
        )
    if cache_tokens is not None:
        COUNT.require("`cache_tokens`", cache_tokens)
    if host_tokens is not None:
        NATURAL.require("`host_tokens`", host_tokens)


def assemble(
    model: LanguageModel | EncoderDecoder,
    step_tokens: int,
    most_running: int,
    *,
    cache_tokens: int | None = None,
    host_tokens: int | None = None,
    cache_type: CacheType | None = None,
    compile_layers: bool = False,
) -> Assembly:
    """An assembly for a model; the arguments are those of `Engine`, within limits that `require_limits` lets pass.

    Raises ValueError for a type of cache that the model cannot have, for a cache that there is no memory for, and for
    layers that cannot be compiled.
    """
    decoder = decoder_of(model)
    use_kernels(decoder)
    plan = CachePlan(model, cache_dtype(decoder, cache_type), block_size_of(model), most_running, step_tokens)
    size = plan.block_size
    if cache_tokens is None:
        cache_tokens = plan.usual_tokens()
    if host_tokens is None:
        host_tokens = 0 if model.device.type == "cpu" else cache_tokens
    blocks, host_blocks = blocks_for(cache_tokens, size), blocks_for(host_tokens, size)
    windows = plan.window_blocks(blocks)
    # First what takes most memory: where that is not there, the pool does not begin to count blocks.
    runner = runner_of(model, blocks, host_blocks, step_tokens, most_running, plan.dtype, compile_layers, windows)
    near = cache_tokens if model.device.type == "cpu" else 0
    size_bytes = plan.size_bytes(near) + plan.host_bytes(host_tokens)
    with memory_for("`cache_tokens` and `host_tokens`", near + host_tokens, size_bytes, torch.device("cpu")):
        pool = BlockPool(blocks, host=host_blocks, block_size=size, windows=plan.windows(blocks))
    scheduler = Scheduler(
        pool,
        step_tokens,
        most_running,
        recurrent=is_recurrent(decoder),
        whole_prompts=depends_on_the_longest(decoder),
        reach=reach(decoder),
    )
    return Assembly(pool, scheduler, runner)


def cache_tokens_for(texts: int, tokens: int, device: torch.device) -> int:
    """`cache_tokens` with which so many texts of so many tokens are computed at a time, none waiting for another."""
    size = largest_block_size(device)
    # A text is admitted only where each running one could get another block.
    return texts * (blocks_for(tokens, size) + 1) * size
