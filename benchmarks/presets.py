"""Every preset learns: held-out loss after N seconds of `groundup pretrain`, beside the unigram entropy.

    python benchmarks/presets.py --documents train.jsonl --heldout heldout.jsonl --seconds 120 --json results.json

All presets train on the same tokens, which the first run makes. The loss is per guessed token, in nats: of every token
for decoders, of masked tokens for encoders, of spans and their sentinels for encoder-decoders. The unigram entropy is
that of the guessed tokens by their own frequencies, below which no model comes that knows frequencies alone. Training
time includes compilation. Flags that are not known here go to `groundup pretrain`.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from figures import arguments, show

from groundup.model.presets import PRESETS
from groundup.record.metrics import read_lines

LOSSES = ("heldout_loss", "heldout_masked_loss", "heldout_span_loss")


def main() -> None:
    """Train each preset and print its held-out loss beside the unigram entropy."""
    parser = arguments(__doc__)
    parser.add_argument("--documents", type=Path, required=True, help="training documents: JSONL, Parquet or text")
    parser.add_argument("--heldout", type=Path, required=True, help="held-out documents")
    parser.add_argument("--seconds", type=float, default=120, help="training time of each, compilation included")
    parser.add_argument(
        "--preset", nargs="+", default=list(PRESETS), choices=list(PRESETS), metavar="PRESET", help="which"
    )
    parser.add_argument("--depth", type=int, default=4, help="layers of each model")
    options, flags = parser.parse_known_args()
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, preset in enumerate(options.preset):
            first, run = Path(folder) / "run-0", Path(folder) / f"run-{number}"
            text = ["--documents", options.documents, "--heldout", options.heldout]
            made = ["--shards", first, "--tokenizer", first]
            figures.append(measure(preset, run, options, [*map(str, made if number else text), *flags]))
    rows = [
        {
            "preset": one["preset"],
            "guesses": one["objective"],
            "loss (nats)": one["loss"],
            "unigram (nats)": one["unigram_entropy"],
            "bits per byte": "" if one["bits_per_byte"] is None else f"{one['bits_per_byte']:.3f}",
            "text tokens": one["tokens"],
            "parameters (M)": one["parameters"] / 1e6,
            "experts' loads": one["loads"],
        }
        for one in figures
    ]
    title = f"held-out loss after {options.seconds:.0f} s, depth {options.depth}"
    show(title, rows, options.json, {"seconds": options.seconds, "depth": options.depth, "runs": figures})


def measure(preset: str, run: Path, options: Any, flags: list[str]) -> dict[str, Any]:
    """Run the command and read what it left."""
    command = [sys.executable, "-m", "groundup", "pretrain", "--out", str(run), "--preset", preset, *flags]
    command += ["--heldout-megabytes", "0"]
    command += ["--depth", str(options.depth), "--minutes", str(options.seconds / 60)]
    # Compiled code of earlier presets must not spare a later one its compilation.
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(run.with_suffix(".compiled"))}
    subprocess.run(command, check=True, env=environment)
    result = run / "04-pretrain"
    summary = json.loads((result / "summary.json").read_text())
    metrics, timings = read_lines(result / "metrics.jsonl"), read_lines(result / "timings.jsonl")
    last = metrics[-1]
    loads = [last.get("expert_load_min"), last.get("expert_load_max")]
    return {
        "preset": preset,
        "objective": summary["objective"],
        "loss": next(summary[name] for name in LOSSES if name in summary),
        "unigram_entropy": summary["heldout_unigram_entropy"],
        "bits_per_byte": summary.get("heldout_bits_per_byte"),
        "guessed_tokens": summary["heldout_targets"],
        "tokens": summary["tokens"],
        "steps": summary["steps"],
        "seconds": timings[-1]["seconds"],
        "parameters": summary["parameters"],
        "learning_rates": summary["learning_rates"],
        "loads": "" if None in loads else f"{loads[0]:.2f} to {loads[1]:.2f}",
    }


if __name__ == "__main__":
    main()
