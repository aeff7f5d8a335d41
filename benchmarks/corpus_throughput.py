"""How fast the corpus stage is, all steps included: from source files to written Parquet.

    python benchmarks/corpus_throughput.py [PATH ...] [--json FILE]

Measures the standard library and, if given, other text. MB are 10^6 bytes of UTF-8 text after decompression; "per core"
divides by the CPU seconds of all processes, start-up of workers and decompression included.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from figures import arguments, show

from groundup.corpus.config import CorpusConfig
from groundup.corpus.pipeline import run

TARGET_MB_PER_CPU_SECOND = 10.0


def main() -> None:
    """Time the corpus stage on each set of texts and print a table."""
    parser = arguments(__doc__)
    parser.add_argument("paths", nargs="*", help="files or folders to measure besides the standard library")
    parser.add_argument("--text-columns", nargs="+", default=["text"], help="JSON keys or Parquet columns of text")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; the fastest counts")
    parser.add_argument("--workers", type=int, help="processes; by default as many as pay")
    options = parser.parse_args()
    os.environ["GROUNDUP_QUIET"] = "1"
    sources = [("python:stdlib", "python:topics"), *((path,) for path in options.paths)]
    rows = [measure(paths, options.text_columns, options.workers, options.repeats) for paths in sources]
    slowest = min(row["MB/s per core"] for row in rows)
    show(
        f"corpus throughput (target: {TARGET_MB_PER_CPU_SECOND:g} MB/s per core)",
        rows,
        options.json,
        {"mb_per_cpu_second": slowest, "target_mb_per_cpu_second": TARGET_MB_PER_CPU_SECOND, "runs": rows},
    )


def measure(paths: tuple[str, ...], text_columns: list[str], workers: int | None, repeats: int) -> dict[str, Any]:
    """The fastest of some runs."""
    config = CorpusConfig(paths, text_columns=tuple(text_columns))
    best: dict[str, Any] = {}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            run(config, out, workers=workers)
            timings = json.loads((out / "timings.jsonl").read_text())
            read = json.loads((out / "summary.json").read_text())["read"]
        if not best or timings["cpu_seconds"] < best["CPU s"]:
            best = {
                "text": " ".join(Path(path).name for path in paths),
                "MB": read["bytes"] / 1e6,
                "documents": read["documents"],
                "seconds": timings["seconds"],
                "CPU s": timings["cpu_seconds"],
                "MB/s": timings["mb_per_second"],
                "MB/s per core": timings["mb_per_cpu_second"],
            }
    return best


if __name__ == "__main__":
    main()
