"""Training speed at a fixed shape, beside the matrix-multiplication peak of the same machine, measured in turn.

A 6-layer, 384-wide model with a vocabulary of 4,096 tokens, context 512, 16 rows a step, bfloat16 with float32 master
weights, everything included that a training step does: forward, backward, Muon, AdamW, gradient norm, metrics. FLOPs
are counted as 6 per matmul parameter plus attention over the full context (no halving for causality).

    python benchmarks/train_throughput.py --json results.json

Reference on a 2-core Zen 5 server at this shape: nanochat on CPU as shipped 1,650 tokens/s (144 GFLOP/s), with its
bfloat16 switch 4,640 tokens/s (405 GFLOP/s).
"""

import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from figures import arguments, show

from groundup.hardware import peak_flops
from groundup.record.metrics import read_lines
from groundup.tokens.batches import Int64s, PackedDocuments
from groundup.train.config import PretrainConfig
from groundup.train.learner import Learner
from groundup.train.loop import WARM_STEPS, train
from groundup.train.parallel import Ranks
from groundup.train.pretrain import build_model, loop_config

VOCABULARY, BYTES_PER_TOKEN = 4096, 3.5


class RandomDocuments:
    """Token documents of about 4,000 tokens, as source files have; the speed does not depend on what they say."""

    total_tokens = 400_000

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self._tokens = generator.integers(16, VOCABULARY, self.total_tokens)
        self.offsets: Int64s = np.append(np.arange(0, self.total_tokens, 4000), self.total_tokens).astype(np.int64)

    def tokens(self, start: int, stop: int) -> Int64s:
        return self._tokens[start:stop]


def main() -> None:
    """Measure peak and training in turn and print tokens per second and utilisation."""
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps in each round")
    parser.add_argument("--rounds", type=int, default=3, help="how often peak and training are measured in turn")
    parser.add_argument("--preset", nargs="+", default=["nanochat", "llama"], help="which")
    options = parser.parse_args()
    os.environ["GROUNDUP_QUIET"] = "1"
    peaks: list[float] = []
    speeds: dict[str, list[float]] = {preset: [] for preset in options.preset}
    flops: dict[str, float] = {}
    for _ in range(options.rounds):
        for preset in options.preset:
            peaks.append(peak_flops(torch.bfloat16, tries=5))
            tokens_per_second, flops[preset] = measure(preset, options.steps)
            speeds[preset].append(tokens_per_second)
    peak = statistics.median(peaks)
    rows = []
    for preset in options.preset:
        speed = statistics.median(speeds[preset])
        rows.append(
            {
                "preset": preset,
                "tokens/s": speed,
                "GFLOP/s": speed * flops[preset] / 1e9,
                "peak GFLOP/s": peak / 1e9,
                "utilisation": speed * flops[preset] / peak,
                "rounds (tokens/s)": " ".join(f"{value:,.0f}" for value in speeds[preset]),
            }
        )
    best = max(rows, key=lambda row: row["utilisation"])
    figures = {
        "preset": best["preset"],
        "tokens_per_second": best["tokens/s"],
        "gflops": best["GFLOP/s"],
        "peak_gflops": best["peak GFLOP/s"],
        "utilisation": best["utilisation"],
        "rows": rows,
    }
    show("training throughput, 6 layers, width 384, context 512, 8,192 tokens a step", rows, options.json, figures)


def measure(preset: str, steps: int) -> tuple[float, float]:
    """Median tokens per second of the training loop after its first steps, and the FLOPs of one token."""
    config = PretrainConfig(
        preset=preset,
        depth=6,
        width=384,
        context=512,
        batch_tokens=8192,
        tokens=8192 * (steps + WARM_STEPS),
        precision="bfloat16",
        compile="always",
        evaluations=1,
    )
    model = build_model(config, VOCABULARY)
    loop = loop_config(config, model.config, RandomDocuments.total_tokens, BYTES_PER_TOKEN)
    source = PackedDocuments(RandomDocuments(), config.context, bos_id=0, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        train(Learner(model), source, loop, Path(folder), lambda step: {}, Ranks())
        timings = read_lines(Path(folder) / "timings.jsonl")[WARM_STEPS:]
    torch.compiler.reset()
    return statistics.median(row["tokens_per_second"] for row in timings), loop.flops_per_token


if __name__ == "__main__":
    main()
