"""Attention to blocks of keys beside PyTorch's fused attention to keys in one piece, in turn, on one layer.

    python benchmarks/attention.py --threads 2 --json results.json

16 heads of 128 share 8 key heads. `decode` is the next token of one text, or of 16; `prefill` the last 512 tokens.
PyTorch is given float32 keys and values contiguous, with a copy for every head. Both are compared before anything is
timed.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from figures import arguments, show

from groundup.engine import kernels
from groundup.engine.kernels import KeyValueBlocks, library
from groundup.hardware import usable_cores

HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 16, 8, 128, 32
# Texts, keys of each, new tokens of each.
WORK = {"decode 1 × 2048": (1, 2048, 1), "decode 16 × 512": (16, 512, 1), "prefill 512 of 512": (1, 512, 512)}
WORK["prefill 512 of 2048"] = (1, 2048, 512)
TOLERANCE = 1e-4
LEAST_SECONDS = 0.05  # of one measurement


def main() -> None:
    """Time both sides and print a table."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=usable_cores(), help="processor threads")
    parser.add_argument("--rounds", type=int, default=7, help="how often each side is timed, in turn")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    library.set_threads(options.threads)
    rows = [compare(name, dtype, options.rounds) for name in WORK for dtype in (torch.float32, torch.bfloat16)]
    title = f"attention, {HEADS}/{KV_HEADS} heads of {HEAD_DIM}, {library.level()}, {options.threads} threads"
    show(title, rows, options.json, {"threads": options.threads, "level": library.level(), "figures": rows})


@torch.no_grad()
def compare(name: str, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """One kind of work with our keys and values in `dtype`; the medians count, after a turn that warms up."""
    texts, keys, tokens = WORK[name]
    draw = torch.Generator().manual_seed(0)
    queries = torch.randn(texts, tokens, HEADS, HEAD_DIM, generator=draw)
    shape = texts, keys, KV_HEADS, HEAD_DIM
    k, v = (torch.randn(shape, generator=draw).to(dtype).float() for _ in range(2))
    ours, theirs = _our_step(queries, k, v, dtype), _their_step(queries, k, v)
    expected = theirs().transpose(1, 2).flatten(0, 1)
    if (apart := float((ours() - expected).norm() / expected.norm())) > TOLERANCE:
        raise SystemExit(f"the two sides do not compute the same: {apart:.2g} apart ({name})")
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for step, seconds in zip((ours, theirs), times, strict=True):
            spent = _seconds(step)
            if turn:
                seconds.append(spent)
    our_seconds, their_seconds = (statistics.median(each) for each in times)
    return {
        "work": name,
        "keys in": str(dtype).removeprefix("torch."),
        "ms": 1000 * our_seconds,
        "PyTorch ms": 1000 * their_seconds,
        "times as fast": their_seconds / our_seconds,
    }


def _our_step(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, dtype: torch.dtype
) -> Callable[[], torch.Tensor]:
    texts, count = keys.shape[:2]
    tokens, each = queries.shape[1], -(-count // BLOCK_SIZE)
    blocks = KeyValueBlocks.empty(texts * each, KV_HEADS, HEAD_DIM, BLOCK_SIZE, dtype)
    table = torch.randperm(texts * each, generator=torch.Generator().manual_seed(1)).view(texts, each)
    index = torch.arange(count)
    slots = table[:, index // BLOCK_SIZE] * BLOCK_SIZE + index % BLOCK_SIZE
    blocks.store(keys.flatten(0, 1), values.flatten(0, 1), slots.flatten())
    tables = table.int(), torch.arange(0, texts * tokens + 1, tokens).int(), torch.full((texts,), count).int()
    flat = queries.flatten(0, 1)
    return lambda: kernels.attend(flat, blocks, *tables, scale=HEAD_DIM**-0.5)


def _their_step(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> Callable[[], torch.Tensor]:
    group, first = HEADS // KV_HEADS, keys.shape[1] - queries.shape[1]
    q, k, v = (each.transpose(1, 2).contiguous() for each in (queries, keys, values))
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    mask = None if queries.shape[1] == 1 else torch.ones(queries.shape[1], keys.shape[1]).tril(first).bool()
    if first == 0 and mask is not None:
        return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _seconds(step: Callable[[], Any]) -> float:
    """Seconds of one step, over as many as fill the time."""
    started, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - started) < LEAST_SECONDS or count == 0:
        step()
        count += 1
    return spent / count


if __name__ == "__main__":
    main()
