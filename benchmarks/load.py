"""How long a model folder takes to load, and how much memory, beside reading its file and beside `transformers`.

    python benchmarks/load.py --json results.json

Each measurement is a process of its own, all in turn, with the file in the page cache ("warm") and dropped from it
("cold"). Seconds count from the call to the last byte of the last weight: every page is touched after the call, so that
nothing is left to be read at first use. Reading is the file from end to end into one buffer of a megabyte. Memory is
what the process has at its peak beyond what it had after importing the library. GPT-2's matrices lie transposed on
disk and are copied, LLaMA's are mapped.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from figures import arguments, show

# Layers of width 1024 that make a gigabyte of float32.
LAYERS = {"llama": 18, "gpt2": 16}
TARGET_TIME, TARGET_MEMORY = 1.3, 1.1


def main() -> None:
    """Measure each family's folder and print a table."""
    parser = arguments(__doc__)
    parser.add_argument("--family", nargs="+", default=sorted(LAYERS), choices=sorted(LAYERS), help="kinds")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured; the median counts")
    parser.add_argument(
        "--folder", type=Path, help="where to write the models (default: the system's temporary folder)"
    )
    parser.add_argument("--measure", nargs=2, metavar=("WHO", "FOLDER"), help="(used by the benchmark itself)")
    options = parser.parse_args()
    if options.measure is not None:
        measure(options.measure[0], Path(options.measure[1]))
        return
    rows = []
    for family in options.family:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            subprocess.run([sys.executable, __file__, "--measure", f"write {family}", folder], check=True)
            rows += compare(family, Path(folder), options.rounds)
    title = f"loading a folder (targets: {TARGET_TIME} × the time to read it, {TARGET_MEMORY} × its size in memory)"
    show(title, rows, options.json, {"target_time": TARGET_TIME, "target_memory": TARGET_MEMORY, "rows": rows})


def compare(family: str, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """One row for each who and temperature, from measurements in turn."""
    others = ["transformers"] if find_spec("transformers") else []
    path = folder / "model.safetensors"
    size = path.stat().st_size
    rows = []
    for temperature in ("warm", "cold"):
        found: dict[str, list[dict[str, float]]] = {who: [] for who in ("read", "groundup", *others)}
        for _ in range(rounds):
            for who, results in found.items():
                drop(path) if temperature == "cold" else _reading()(folder)
                command = [sys.executable, __file__, "--measure", who, str(folder)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                results.append(json.loads(done.stdout.splitlines()[-1]))
        reading = statistics.median(one["seconds"] for one in found["read"])
        for who, results in found.items():
            seconds = statistics.median(one["seconds"] for one in results)
            rows.append(
                {
                    "folder": f"{family}, {size / 1e9:.2f} GB",
                    "file": temperature,
                    "who": who,
                    "seconds": seconds,
                    "× reading": seconds / reading,
                    "× size in memory": max(one["bytes"] for one in results) / size,
                    "rounds (s)": " ".join(f"{one['seconds']:.2f}" for one in results),
                }
            )
    return rows


def drop(path: Path) -> None:
    """Take the file out of the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def measure(who: str, folder: Path) -> None:
    """Print seconds, and bytes at the peak beyond those before; or write the folder."""
    if who.startswith("write "):
        return write(who.removeprefix("write "), folder)
    load = {"read": _reading, "groundup": _groundup, "transformers": _transformers}[who]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    load(folder)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "bytes": 1024 * (peak - before)}))
    return None


def write(family: str, folder: Path) -> None:
    """A folder of random float32 weights."""
    import torch

    import groundup
    from groundup.model.build import build
    from groundup.model.initialise import initialise
    from groundup.model.presets import build_config

    vocabulary = {"llama": 32_000, "gpt2": 50_257}[family]
    with torch.device("meta"):
        model = build(build_config(family, LAYERS[family], vocabulary, context=1024, width=1024, head_dim=64))
    model.to_empty(device="cpu")
    initialise(model, seed=0)
    groundup.save(model, folder)


def _reading() -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        buffer = bytearray(1 << 20)
        with open(folder / "model.safetensors", "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    return read


def _groundup() -> Callable[[Path], None]:
    import groundup
    import groundup.formats.huggingface

    return lambda folder: _touch(groundup.load(folder))


def _transformers() -> Callable[[Path], None]:
    from transformers import AutoModelForCausalLM, GPT2LMHeadModel, LlamaForCausalLM  # noqa: F401  (imported in advance)

    return lambda folder: _touch(AutoModelForCausalLM.from_pretrained(folder, dtype="auto"))


def _touch(model: Any) -> None:
    """Read a byte of every page of every weight."""
    import torch

    page = os.sysconf("SC_PAGESIZE")
    for parameter in model.parameters():
        # Along the dimension in which numbers are neighbours one of each page, and the last.
        along = min(range(parameter.ndim), key=lambda dim: parameter.stride(dim))
        length, step = parameter.shape[along], page // parameter.element_size()
        places = torch.tensor([*range(0, length, step), length - 1])
        parameter.detach().index_select(along, places).sum()


if __name__ == "__main__":
    main()
