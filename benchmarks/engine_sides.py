"""The sides that `engine.py` compares: where each one's environment is, what it reads, and how it is asked."""

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from engine_models import Forms, Missing, last_line

sys.path.append(str(Path(__file__).parent / "opponents"))
from task import Task, told

SCRIPTS = Path(__file__).parent / "opponents"
OURS = "groundup"
NAMES = (OURS, "llama.cpp", "OpenVINO", "transformers")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# llama.cpp is compiled for the processor that it will run on; a wheel from elsewhere would be slower.
LLAMA_CPP = ("--no-binary", "llama-cpp-python", "llama-cpp-python>=0.3.36")
OPENVINO = (f"torch=={torch.__version__.partition('+')[0]}", "optimum-intel", "openvino", "nncf")

Run = Callable[..., str]


@dataclass(frozen=True)
class Side:
    """One engine.

    python: of its environment; raises Missing where there is none. script: in `opponents/`.
    model: makes what it reads, if that is not there yet; it is given the forms and `run`.
    """

    name: str
    python: Callable[[], Path]
    script: str
    model: Callable[[Forms, Run], Path]

    def prepared(self, forms: Forms) -> Path:
        """The model, made with the side's own tools. Raises Missing."""
        self.python()
        return self.model(forms, self.run)

    def measure(self, model: Path, vocab_size: int, options: Any) -> dict[str, Any]:
        """One round. Raises Missing if the process fails."""
        task = Task(
            model=str(model),
            threads=options.threads,
            started=time.monotonic(),
            vocab_size=vocab_size,
            prompt_tokens=options.prompt_tokens,
            context_tokens=options.context_tokens,
            new_tokens=options.new_tokens,
            streams=options.streams,
        )
        return told(self.run(task.words(), threads=options.threads))

    def score(self, model: Path, texts: Path, threads: int) -> dict[str, Any]:
        """What the model says of the texts of a file: `nats`, and the `tokens` that these are summed over."""
        task = Task(str(model), threads, time.monotonic(), vocab_size=0, texts=str(texts))
        return told(self.run(task.words(), threads=threads))

    def run(self, *words: str | Path, threads: int | None = None) -> str:
        """Run the script; returns what it printed. Raises Missing if it fails."""
        python = self.python()
        # Where the linker does not find them by itself: llama.cpp's libraries beside its Python files.
        libraries = [str(path) for path in python.parent.parent.glob("lib/python*/site-packages/llama_cpp/lib")]
        paths = os.pathsep.join([*libraries, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
        variables = os.environ | ({"LD_LIBRARY_PATH": paths} if paths else {})
        if threads is not None:
            variables |= dict.fromkeys(THREAD_VARIABLES, str(threads))
        command = [str(python), str(SCRIPTS / self.script), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, env=variables)
        if done.returncode != 0:
            raise Missing(last_line(done))
        return done.stdout


def add_side_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that say which sides there are, and where; see `sides`."""
    parser.add_argument("--side", nargs="+", default=NAMES, choices=NAMES, help="only these sides")
    parser.add_argument(
        "--opponents",
        type=Path,
        metavar="DIR",
        help="where environments of the opponents are; those that are missing are installed there, llama.cpp by "
        "compiling its source for this machine (ten minutes or more)",
    )
    parser.add_argument("--llama-cpp", type=Path, metavar="PYTHON", help="a Python that has llama-cpp-python instead")
    about = "a Python that has optimum-intel, openvino and nncf instead"
    parser.add_argument("--openvino", type=Path, metavar="PYTHON", help=about)
    parser.add_argument("--threads", type=int, default=2, help="processor threads of each side")


def sides(options: Any) -> list[Side]:
    """Those that are asked for, ours first.

    options: of `add_side_flags`, and where models are to be made `kind`, of `KINDS`.
    """
    return [side for side in _all_sides(options) if side.name in options.side]


def _all_sides(options: Any) -> list[Side]:
    def this() -> Path:
        return Path(sys.executable)

    def with_transformers() -> Path:
        if importlib.util.find_spec("transformers") is None:
            raise Missing("transformers is not installed: pip install 'groundup[test]'")
        return this()

    def with_llama_cpp() -> Path:
        return options.llama_cpp or _environment(options.opponents, "llama-cpp", LLAMA_CPP)

    def with_openvino() -> Path:
        # Its image library needs another build of torch than the one for processors, and says so when it is loaded.
        return options.openvino or _environment(options.opponents, "openvino", OPENVINO, without="torchvision")

    return [
        Side(OURS, this, "groundup_side.py", lambda forms, run: forms.ours(options.kind)),
        Side(
            "llama.cpp",
            with_llama_cpp,
            "llama_cpp_side.py",
            lambda forms, run: forms.gguf(lambda half, out: run("--quantize", half, out, "q4_0")),
        ),
        Side(
            "OpenVINO",
            with_openvino,
            "openvino_side.py",
            lambda forms, run: forms.openvino(lambda folder, out: run("--export", folder, out, "int4")),
        ),
        Side("transformers", with_transformers, "transformers_side.py", lambda forms, run: forms.bfloat16()),
    ]


def _environment(folder: Path | None, name: str, packages: Sequence[str], without: str | None = None) -> Path:
    """The Python of an environment that has these packages, made if it is not there. Raises Missing.

    without: a package that they bring along and that goes again.
    """
    if folder is None:
        raise Missing(f"no environment has it: --opponents DIR installs it, --{name} PYTHON names one")
    home = (folder / name).absolute()
    python, whole = home / "bin" / "python", home / "whole"
    if not whole.exists():
        print(f"installing {' '.join(packages)} into {home}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", *packages]
        variables = os.environ | {"CMAKE_ARGS": "-DGGML_NATIVE=ON"}
        done = subprocess.run(install, capture_output=True, text=True, env=variables)
        if done.returncode != 0:
            raise Missing(f"pip cannot install it: {last_line(done)}")
        if without is not None:
            subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", without], check=True)
        whole.touch()
    return python
