"""The verb that measures how fast a model answers on this machine."""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from groundup.cli.parser import Verbs
from groundup.cli.places import require_place_for
from groundup.cli.talking import find_model
from groundup.engine.speed_plan import Plan
from groundup.errors import UserError
from groundup.record.metrics import Progress
from groundup.settings import add_flags, read_flags
from groundup.storage import write_atomically

if TYPE_CHECKING:
    from groundup.engine.engine import Engine

# What `Engine` has by itself; more streams than that need steps of more tokens.
USUAL_STEP_TOKENS = 512

BENCH_ABOUT = """\
Measure how fast a model answers on this machine, through the engine that chats and serves. Every text gets
a random prompt of its own and is as long as you say; the times are those at which the engine hands tokens out.

  prefill            tokens of a prompt per second: of one alone, until the first token of its answer is there
  first token        from the question to the first token, while as many prompts come at once as there are streams
  gap                from each token of a text to its next: of a hundred gaps 50, 95 and 99 are at most what is
                     shown (p50, p95, p99); those in which prompts of other texts were read are among them
  decode tokens/s    of all streams together, in the time in which every one of them is writing; – where the
                     first had ended before the last began (more --new-tokens help)
  overall tokens/s   new tokens of all streams, from the first question to the last token: prompts included
  peak memory        the most that the process has held: weights, cache and libraries

One stream is what one person feels. Many streams share each pass over the weights: together they get more
tokens per second, each of them fewer. Rates are medians over --repeats. Close other programs meanwhile."""

BENCH_AFTER = """\
examples:
  groundup bench runs/pocket
  groundup bench my-model --streams 1 8 32 --new-tokens 128
  groundup bench my-model --threads 2 --json speed.json --plot speed.html

`groundup doctor` says what would make it faster, docs/engine.md what the engine does."""


def add_verbs(verbs: Verbs) -> None:
    """Add `bench`."""
    about, usage = "measure how fast a model answers", "RUN|MODEL [flags]"
    bench = verbs.add("bench", about, _bench, usage, BENCH_ABOUT, BENCH_AFTER)
    bench.add_argument("model", type=Path, metavar="RUN|MODEL", help="run folder, model folder or hf:org/name")
    add_flags(bench, Plan)
    bench.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu, or cuda for a GPU (default: cpu)")
    about = "on a GPU, have torch.compile make kernels for the layers"
    bench.add_argument("--compile-layers", action="store_true", help=about)
    bench.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    bench.add_argument("--plot", type=Path, metavar="FILE", help="also draw them in this HTML file")


def _bench(flags: argparse.Namespace) -> None:
    plan = read_flags(Plan, flags, {})
    for path in (flags.json, flags.plot):
        if path is not None:
            require_place_for(path)
    folder = find_model(flags.model, "sft")
    from rich.console import Console

    from groundup.cli.speed_shown import Measured, speed_page, terminal_lines, terminal_table
    from groundup.engine.speed import measure
    from groundup.formats.huggingface import read_config
    from groundup.hardware import describe, peak_memory_bytes
    from groundup.model.config import ModelConfig

    # Before the engine is made, whose cache has room for all of the plan.
    _, config = read_config(folder)
    if not isinstance(config, ModelConfig) or not config.causal:
        raise UserError(f"{folder} holds a {config.family} model, which cannot go on from a text")
    plan = plan.within(config.max_positions)
    begun = time.perf_counter()
    engine = _engine(folder, plan, flags.device, flags.compile_layers)
    load_seconds = time.perf_counter() - begun
    with Progress("bench", total=plan.tokens, unit="tokens") as progress:
        speed = measure(engine, plan, lambda tokens, what: progress.advance(tokens, now=what))
    memory = peak_memory_bytes(engine.model.device)
    measured = Measured(flags.model, flags.device, describe(), plan, load_seconds, memory, speed)
    Console().print(terminal_table(measured))
    print("\n".join(terminal_lines(measured)))
    if flags.json is not None:
        write_atomically(flags.json, json.dumps(asdict(measured), indent=2, default=str) + "\n")
    if flags.plot is not None:
        write_atomically(flags.plot, speed_page(measured))


def _engine(folder: Path, plan: Plan, device: str, compiles: bool) -> "Engine":
    """An engine in whose cache all texts of the plan have room at a time, so that none waits for another's end."""
    from groundup.engine.assembly import cache_tokens_for
    from groundup.engine.engine import Engine
    from groundup.engine.loading import device_of

    most = max(plan.streams)
    try:
        return Engine(
            folder,
            cache_tokens=cache_tokens_for(most, plan.prompt_length + plan.new_tokens, device_of(device)),
            step_tokens=max(USUAL_STEP_TOKENS, most),
            most_running=most,
            device=device,
            compile_layers=compiles,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
