"""Held-out bits per byte against wall-clock, from a random model, through the `groundup pretrain` command.

    python benchmarks/quality.py --documents train.jsonl --heldout heldout.jsonl --seconds 369 --json results.json

Training time counts everything from the first step on, compilation included; tokenizer training and encoding come
first and do not count. Held-out text is cut into consecutive windows of 512 tokens and every token is predicted once,
from its window alone. Beside the model: `xz -9e` on the same held-out text.

Reference on the standard-library split, on a 2-core Zen 5 server: nanochat's own model and optimizer, batch tuned for
that machine, 1.046 bits per byte after 369 s; `xz -9e` 1.648.
"""

import json
import lzma
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from figures import arguments, show

from groundup.record.metrics import read_lines


def main() -> None:
    """Train each preset with each seed and print bits per byte beside `xz`."""
    parser = arguments(__doc__)
    parser.add_argument("--documents", type=Path, required=True, help="training documents: JSONL, Parquet or text")
    parser.add_argument("--heldout", type=Path, required=True, help="held-out documents")
    parser.add_argument("--seconds", type=float, default=369, help="training time, compilation included")
    parser.add_argument("--epochs", type=float, help="train for as many passes over the text instead, however long")
    parser.add_argument("--preset", nargs="+", default=["groundup", "nanochat", "llama"], help="which")
    parser.add_argument("--seed", nargs="+", type=int, default=[0], help="each preset is trained with each")
    parser.add_argument("--warm-compiler", action="store_true", help="keep compiled code of earlier runs")
    options, flags = parser.parse_known_args()
    compressed = xz_bits_per_byte(options.heldout)
    rows, figures = [], []
    for preset in options.preset:
        for seed in options.seed:
            found = measure(options, preset, seed, flags)
            figures.append(found)
            rows.append(
                {
                    "model": preset,
                    "bits per byte": found["bits_per_byte"],
                    "training s": found["training_seconds"],
                    "command s": found["command_seconds"],
                    "tokens": found["tokens"],
                    "epochs": found["epochs"],
                    "parameters (M)": found["parameters"] / 1e6,
                    "on the way (s: bits per byte)": found["curve_text"],
                }
            )
    rows.append({"model": "xz -9e", "bits per byte": compressed} | dict.fromkeys(list(rows[0])[2:], ""))
    show("held-out bits per byte", rows, options.json, {"xz": compressed, "runs": figures})


def measure(options: Any, preset: str, seed: int, flags: list[str]) -> dict[str, Any]:
    """Run the command in a folder of its own and read what it left."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        environment = dict(os.environ)
        if not options.warm_compiler:
            environment["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "compiled")
        command = [sys.executable, "-m", "groundup", "pretrain", str(run)]
        command += ["--documents", str(options.documents), "--heldout", str(options.heldout)]
        command += ["--heldout-megabytes", "0"]
        command += ["--preset", preset, "--seed", str(seed), *flags]
        budget = ("--minutes", options.seconds / 60) if options.epochs is None else ("--epochs", options.epochs)
        command += map(str, budget)
        started = time.monotonic()
        subprocess.run(command, check=True, env=environment)
        command_seconds = time.monotonic() - started
        result = run / "04-pretrain"
        summary = json.loads((result / "summary.json").read_text())
        seconds = {row["step"]: row["seconds"] for row in read_lines(result / "timings.jsonl")}
        curve = [
            {"seconds": seconds[row["step"]], "bits_per_byte": row["heldout_bits_per_byte"]}
            for row in read_lines(result / "metrics.jsonl")
            if "heldout_bits_per_byte" in row
        ]
        return {
            "preset": preset,
            "seed": seed,
            "bits_per_byte": summary["heldout_bits_per_byte"],
            "training_seconds": max(seconds.values()),
            "command_seconds": command_seconds,
            "tokens": summary["tokens"],
            "epochs": summary["epochs"],
            "parameters": summary["parameters"],
            "curve": curve,
            "curve_text": "  ".join(f"{one['seconds']:.0f}: {one['bits_per_byte']:.3f}" for one in curve),
        }


def xz_bits_per_byte(path: Path) -> float:
    """`xz -9e` over the documents joined by nothing, container included."""
    texts = [json.loads(line)["text"].encode() for line in path.read_text(encoding="utf-8").splitlines()]
    packed = lzma.compress(b"".join(texts), preset=9 | lzma.PRESET_EXTREME)
    return 8 * len(packed) / sum(map(len, texts))


if __name__ == "__main__":
    main()
