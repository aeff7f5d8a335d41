"""Our engine beside llama.cpp, OpenVINO and `transformers.generate`, on the same machine, in the same run, in turn.

    python benchmarks/engine.py --opponents runs/opponents --json results.json

Models of random weights, LLaMA shapes of 508 M and 110 M parameters. Ours has weights of 4 bits unless `--kind` says
otherwise, llama.cpp a q4_0 file of its own quantizing, OpenVINO weights of 4 bits (symmetric, groups of 128),
`transformers` bfloat16; each side is a process of its own with the same threads. Per round and side:

- prefill: tokens per second of one prompt, until the first token after it, the median of five;
- 1, 16, 32 streams: tokens per second of all streams together after each has its first, from short prompts, of one
  stream the median of five;
- start: seconds from the start of the process to the first token, with the files in memory, and of loading alone;
- overhead: what of a step of ours in which every stream gets a token is spent outside the model, where the likeliest
  token is taken and where one is drawn;
- guesses: one stream of ours that repeats itself, with speculation and without.

Ours and `transformers` choose every token from its logits; llama.cpp is fed random ones and chooses none, as in its own
benchmarks, and so is OpenVINO. The median of the rounds counts. The opponents live in environments of their own, which
`--opponents DIR` makes: llama.cpp is compiled for this machine, from the source of llama-cpp-python. A side that is not
there is left out, and why is said. What the few bits cost each side is measured by `engine_perplexity.py`.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine_models import KINDS, SHAPES, Forms, Missing
from engine_sides import OURS, Side, add_side_flags, sides
from figures import arguments, settings, show, write_figures


def main() -> None:
    """Measure all sides on all shapes and print the tables."""
    parser = arguments(__doc__)
    about = "parameters of the models; tiny: to see that all runs"
    parser.add_argument("--size", nargs="+", default=["508M", "110M"], choices=list(SHAPES), help=about)
    parser.add_argument("--kind", default=KINDS[0], choices=KINDS, help="weights of our own folder")
    place = Path("runs/engine-benchmark")
    parser.add_argument("--models", type=Path, default=place, metavar="DIR", help="where models are made and kept")
    add_side_flags(parser)
    parser.add_argument("--rounds", type=int, default=3, help="how often each side is measured, in turn")
    parser.add_argument("--prompt-tokens", type=int, default=512, help="of the prompt whose reading is timed")
    parser.add_argument("--context-tokens", type=int, default=16, help="of the prompts that streams go on from")
    parser.add_argument("--new-tokens", type=int, default=64, help="of each stream")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 32], help="how many texts at a time")
    options = parser.parse_args()
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    left_out: dict[str, str] = {}
    for size in options.size:
        found[size] = measure_all(Forms(size, options.models), options, left_out)
    for name, reason in left_out.items():
        print(f"without {name}: {reason}", file=sys.stderr)
    speeds = f"tokens per second, {options.threads} threads, ours {options.kind}; a ratio above 1: ours is faster"
    tables = {
        speeds: [row for size, runs in found.items() for row in speed_rows(size, runs, options.streams)],
        "start to first token, files in memory, seconds": [
            row for size, runs in found.items() for row in start_rows(size, runs)
        ],
        "a step of ours in which every stream gets a token": [
            row for size, runs in found.items() for row in overhead_rows(size, runs.get(OURS, []))
        ],
        "ours after a text that repeats, with guesses (PromptLookup) and without, tokens per second": [
            row for size, runs in found.items() for row in guessing_rows(size, runs.get(OURS, []))
        ],
    }
    for title, rows in tables.items():
        if rows:
            show(title, rows, None, {})
    if options.json is not None:
        write_figures(
            options.json, {"settings": settings(options), "left_out": left_out, "rounds": found, "tables": tables}
        )


def measure_all(forms: Forms, options: Any, left_out: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """What each side answered in each round. Those that cannot be measured are added to `left_out`, with why."""
    ready: list[tuple[Side, Path]] = []
    for side in sides(options):
        try:
            ready.append((side, side.prepared(forms)))
        except Missing as reason:
            left_out[f"{side.name}, {forms.name}"] = str(reason)
    runs: dict[str, list[dict[str, Any]]] = {side.name: [] for side, _ in ready}
    for turn in range(options.rounds):
        for side, model in list(ready):
            print(f"{forms.name}: {side.name}, round {turn + 1} of {options.rounds}", file=sys.stderr)
            try:
                runs[side.name].append(side.measure(model, forms.shape.vocab_size, options))
            except Missing as reason:
                left_out[f"{side.name}, {forms.name}"] = str(reason)
                ready.remove((side, model))
    return {name: one for name, one in runs.items() if one}


def speed_rows(
    size: str, runs: Mapping[str, Sequence[Mapping[str, Any]]], streams: Sequence[int]
) -> list[dict[str, Any]]:
    """A row for prefill and for each number of streams: the median of each side, and ours over theirs."""
    rows = []
    for key in ("prefill", *map(str, streams)):
        medians = {name: statistics.median(one[key] for one in rounds) for name, rounds in runs.items()}
        row: dict[str, Any] = {"model": size, "what": key if key == "prefill" else _streams(int(key)), **medians}
        if OURS in medians:
            others = {name: rate for name, rate in medians.items() if name != OURS}
            row |= {f"÷ {name}": medians[OURS] / rate for name, rate in others.items()}
        rows.append(row)
    return rows


def start_rows(size: str, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each side: the median of each part of its start."""
    parts = {name: [one["start_s"] for one in rounds] for name, rounds in runs.items()}
    return [
        {"model": size, "side": name} | {part: statistics.median(one[part] for one in rounds) for part in rounds[0]}
        for name, rounds in parts.items()
    ]


def overhead_rows(size: str, rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each way of choosing tokens, and number of streams."""
    rows = []
    for choice, by_streams in rounds[0]["overhead"].items() if rounds else ():
        for streams in by_streams:
            found = [one["overhead"][choice][streams] for one in rounds]
            step_s, outside_s = (statistics.median(one[name] for one in found) for name in ("step_s", "outside_s"))
            shares = {"step ms": 1000 * step_s, "outside the model ms": 1000 * outside_s, "%": 100 * outside_s / step_s}
            rows.append({"model": size, "what": _streams(int(streams)), "token": choice, **shares})
    return rows


def guessing_rows(size: str, rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row, of the medians."""
    if not rounds:
        return []
    names = rounds[0]["guessing"]
    row = {name: statistics.median(one["guessing"][name] for one in rounds) for name in names}
    return [{"model": size, **row, "ratio": row["guessing"] / row["plain"]}]


def _streams(count: int) -> str:
    return f"{count} stream{'s' if count > 1 else ''}"


if __name__ == "__main__":
    main()
