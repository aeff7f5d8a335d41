"""One linear layer through the quantized kernels, beside PyTorch's bfloat16, in turn, for several numbers of tokens.

    python benchmarks/kernels.py --threads 2 --json results.json

Each side multiplies by one of several matrices after another, which together are larger than any cache: a single token
has to read its weights from memory, as in a model. Our time includes quantizing the activations. Results are compared
with float64 on the same integers before anything is timed. `GB/s` counts weights and scales; `TOP/s` counts a product
and a sum as two.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from figures import arguments, show

from groundup.engine import kernels
from groundup.engine.kernels import library
from groundup.hardware import usable_cores
from groundup.quantize.matrix import WEIGHT_FORMATS, WeightFormat, quantize_rows, quantized_linear

# Together larger than the largest cache of most machines.
POOL_BYTES = 160 * 2**20
TOLERANCE = 1e-5
FEWEST_SECONDS = 0.05  # of one measurement


@dataclass(frozen=True)
class Side:
    """Equal matrices in one format: their bytes, and what multiplies tokens by one of them."""

    pool: Sequence[Any]
    size_bytes: int
    multiply: Callable[[torch.Tensor, Any], torch.Tensor]


def main() -> None:
    """Time every format at every number of tokens and print a table."""
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=4096, help="outputs of the layer")
    parser.add_argument("--columns", type=int, default=4096, help="its inputs")
    parser.add_argument(
        "--tokens",
        type=int,
        nargs="+",
        default=[1, 4, 8, 16, 64, 256],
        help="of a call; each number is timed by itself",
    )
    parser.add_argument("--threads", type=int, default=usable_cores(), help="processor threads")
    parser.add_argument("--rounds", type=int, default=7, help="how often each side is timed, in turn")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    library.set_threads(options.threads)
    weight = torch.randn(options.rows, options.columns, generator=torch.Generator().manual_seed(0))
    sides = {"bfloat16": _plain_side(weight)}
    sides.update({name: _quantized_side(weight, format) for name, format in WEIGHT_FORMATS.items()})
    rows = [row for tokens in options.tokens for row in compare(sides, weight.shape, tokens, options.rounds)]
    title = f"linear {options.rows} × {options.columns}, {library.level()}, {options.threads} threads"
    figures = {"rows": options.rows, "columns": options.columns, "threads": options.threads, "level": library.level()}
    show(title, rows, options.json, {**figures, "figures": rows})


@torch.no_grad()
def compare(sides: Mapping[str, Side], shape: torch.Size, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """All sides at one number of tokens; the medians count, after a turn that warms up."""
    x = torch.randn(tokens, shape[1], generator=torch.Generator().manual_seed(1))
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            seconds = _seconds(side, x)
            if turn:
                times[name].append(seconds)
    medians = {name: statistics.median(each) for name, each in times.items()}
    return [
        {
            "tokens": tokens,
            "format": name,
            "ms": 1000 * seconds,
            "fastest ms": 1000 * min(times[name]),
            "GB/s": sides[name].size_bytes / seconds / 1e9,
            "TOP/s": 2 * shape.numel() * tokens / seconds / 1e12,
            "times as fast": medians["bfloat16"] / seconds,
        }
        for name, seconds in medians.items()
    ]


def _plain_side(weight: torch.Tensor) -> Side:
    narrow = weight.bfloat16()
    pool = [narrow.clone() for _ in range(_copies(narrow.nbytes))]
    return Side(pool, narrow.nbytes, lambda x, each: F.linear(x.bfloat16(), each))


def _quantized_side(weight: torch.Tensor, format: WeightFormat) -> Side:
    matrix = quantize_rows(weight, format)
    x = torch.randn(3, weight.shape[1])
    expected = quantized_linear(x, matrix)
    apart = float((kernels.linear(kernels.quantize(x), matrix) - expected).norm() / expected.norm())
    if apart > TOLERANCE:
        raise SystemExit(f"the kernels do not compute what they should: {apart:.2g} apart ({format.name})")
    pool = [replace(matrix, values=matrix.values.clone()) for _ in range(_copies(matrix.size_bytes))]
    return Side(pool, matrix.size_bytes, lambda x, each: kernels.linear(kernels.quantize(x), each))


def _copies(size_bytes: int) -> int:
    return max(2, POOL_BYTES // size_bytes)


def _seconds(side: Side, x: torch.Tensor) -> float:
    """Seconds of one product, over as many as fill the time."""
    started, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - started) < FEWEST_SECONDS or count == 0:
        side.multiply(x, side.pool[count % len(side.pool)])
        count += 1
    return spent / count


if __name__ == "__main__":
    main()
