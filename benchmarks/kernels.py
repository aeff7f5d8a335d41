"""One linear layer through the quantised kernels, beside PyTorch's bfloat16, in turn, for several numbers of tokens.

    python benchmarks/kernels.py --threads 2 --json results.json

Each side multiplies by one of several matrices after another, which together are larger than any cache: a single token
has to read its weights from memory, as in a model. Our time includes quantising the activations. Results are compared
with float64 on the same integers before anything is timed. `GB/s` counts weights and scales; `TOP/s` counts a product
and a sum as two.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from figures import arguments, show

from groundup.engine import kernels
from groundup.engine.kernels import library
from groundup.hardware import usable_cores
from groundup.quantize.matrix import WEIGHT_FORMATS, WeightFormat, quantise_rows, quantised_linear

# Together larger than the largest cache of most machines.
POOL_BYTES = 160 * 2**20
TOLERANCE = 1e-5
FEWEST_SECONDS = 0.05  # of one measurement

Step = Callable[[], Any]


def main() -> None:
    """Time every format at every number of tokens and print a table."""
    parser = arguments("Linear layers in few bits beside bfloat16.")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 8, 16, 64, 256])
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=7, help="how often each side is timed, in turn")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    library.set_threads(options.threads)
    rows = []
    for tokens in options.tokens:
        rows += compare(options.rows, options.columns, tokens, options.rounds)
    title = f"linear {options.rows} × {options.columns}, {library.level()}, {options.threads} threads"
    show(title, rows, options.json, {"level": library.level(), "threads": options.threads, "rows": rows})


@torch.no_grad()
def compare(rows: int, columns: int, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """All sides at one number of tokens."""
    draw = torch.Generator().manual_seed(0)
    weight, x = torch.randn(rows, columns, generator=draw), torch.randn(tokens, columns, generator=draw)
    sizes: dict[str, float] = {"bfloat16": 2 * rows * columns}
    steps: dict[str, Step] = {"bfloat16": _plain_step(weight, x)}
    for name, format in WEIGHT_FORMATS.items():
        steps[name], sizes[name] = _quantised_step(weight, x, format)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            seconds = _seconds(step)
            if turn:
                times[name].append(seconds)
    medians = {name: statistics.median(each) for name, each in times.items()}
    return [
        {
            "tokens": tokens,
            "format": name,
            "ms": 1000 * seconds,
            "fastest ms": 1000 * min(times[name]),
            "GB/s": sizes[name] / seconds / 1e9,
            "TOP/s": 2 * rows * columns * tokens / seconds / 1e12,
            "ratio": medians["bfloat16"] / seconds,
        }
        for name, seconds in medians.items()
    ]


def _plain_step(weight: torch.Tensor, x: torch.Tensor) -> Step:
    narrow, input_ = weight.bfloat16(), x.bfloat16()
    pool = [narrow.clone() for _ in range(max(2, POOL_BYTES // narrow.nbytes))]
    return _each_in_turn(pool, lambda each: F.linear(input_, each))


def _quantised_step(weight: torch.Tensor, x: torch.Tensor, format: WeightFormat) -> tuple[Step, int]:
    matrix = quantise_rows(weight, format)
    packed = kernels.pack(matrix)
    expected = quantised_linear(x[:4], matrix)
    apart = float((kernels.linear(kernels.quantise(x), packed)[:4] - expected).norm() / expected.norm())
    if apart > TOLERANCE:
        raise SystemExit(f"the kernels do not compute what they should: {apart:.2g} apart ({format.name})")
    pool = [kernels.pack(matrix) for _ in range(max(2, POOL_BYTES // packed.size_bytes))]
    return _each_in_turn(pool, lambda each: kernels.linear(kernels.quantise(x), each)), packed.size_bytes


def _each_in_turn(pool: list[Any], work: Callable[[Any], Any]) -> Step:
    turns = 0

    def step() -> None:
        nonlocal turns
        work(pool[turns % len(pool)])
        turns += 1

    return step


def _seconds(step: Step) -> float:
    """Seconds of one step, over as many as fill the time."""
    started, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - started) < FEWEST_SECONDS or count == 0:
        step()
        count += 1
    return spent / count


if __name__ == "__main__":
    main()
