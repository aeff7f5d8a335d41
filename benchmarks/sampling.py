"""What choosing costs, from logits to the next token, in a batch too, and what a mask of constrained decoding costs.

    python benchmarks/sampling.py --json results.json

Logits are drawn with a Zipf-like spread, as a language model's; 64 different rows in turn. Masks are timed along texts
that random logits write under the constraint: bits from the library, made into -inf on the logits, and the token read.
The vocabulary is made up: single bytes and words of common letters, with and without a blank in front. One thread.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from figures import arguments, show

from groundup.engine.choose import make_chooser
from groundup.engine.constrain import Constraint, GrammarCompiler
from groundup.engine.rows import RowReader
from groundup.engine.sampling import Sampling
from groundup.tokens.text import TextTokenizer

VOCABULARIES = (4_096, 32_000, 151_936)
STEPS = 400
BATCH = 16
SETTINGS = {
    "likeliest": Sampling(),
    "likeliest, 20 log-probabilities": Sampling(logprobs=20),
    "temperature": Sampling(temperature=0.8),
    "top-k 50": Sampling(temperature=0.8, top_k=50),
    "top-k 50, top-p 0.9": Sampling(temperature=0.8, top_k=50, top_p=0.9),
    "top-p 0.9": Sampling(temperature=0.8, top_p=0.9),
    "top-p 0.99 at 1.5": Sampling(temperature=1.5, top_p=0.99),
    "min-p 0.05": Sampling(temperature=0.8, min_p=0.05),
    "typical 0.9": Sampling(temperature=0.8, typical_p=0.9),
    "mirostat": Sampling(temperature=1.0, mirostat_tau=5.0),
    "three penalties, top-k 50": Sampling(
        temperature=0.8, top_k=50, repetition_penalty=1.1, frequency_penalty=0.1, presence_penalty=0.1
    ),
}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
        "kind": {"enum": ["person", "place", "thing"]},
    },
    "required": ["name", "age", "tags", "kind"],
    "additionalProperties": False,
}
FORMS: dict[str, Callable[[GrammarCompiler], Constraint]] = {
    "JSON schema": lambda compiler: compiler.json_schema(SCHEMA),
    "any JSON": lambda compiler: compiler.json_schema({}),
    "date and words": lambda compiler: compiler.regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}( [a-z]+)*"),
    "sums": lambda compiler: compiler.lark('start: term (" + " term)*\nterm: /[0-9]+/ | "(" start ")"'),
}


def main() -> None:
    """Time each of the settings and forms at each size, and print two tables."""
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    steps = [row for size in VOCABULARIES for row in step_times(size)]
    batches = [row for size in VOCABULARIES for row in batch_times(size)]
    masks = [row for size in VOCABULARIES for row in mask_times(size)]
    show("a step, in microseconds", steps, None, {})
    show(f"a step of {BATCH} texts, in microseconds for each", batches, None, {})
    results = {"steps_us": steps, "batches_us": batches, "masks_us": masks}
    show("a mask, in microseconds", masks, options.json, results)


def step_times(vocab_size: int) -> list[dict[str, Any]]:
    """A row for each of `SETTINGS`."""
    logits_tv = zipf_logits(vocab_size, rows=64)
    rows = []
    for name, sampling in SETTINGS.items():
        chooser = make_chooser(sampling, range(512))
        seconds = []
        for step in range(STEPS):
            begun = time.perf_counter()
            chooser.choose(logits_tv[step % len(logits_tv)])
            seconds.append(time.perf_counter() - begun)
        rows.append({"settings": name, "vocabulary": vocab_size, **_quantiles(seconds)})
    return rows


def batch_times(vocab_size: int) -> list[dict[str, Any]]:
    """A row for each of `SETTINGS`: as the engine's loop does it, with rows that the kernels read together."""
    logits_tv = zipf_logits(vocab_size, rows=4 * BATCH)
    rows = []
    for name, sampling in SETTINGS.items():
        choosers, reader = [make_chooser(sampling, range(512)) for _ in range(BATCH)], RowReader()
        seconds = []
        for step in range(STEPS // BATCH):
            begun = time.perf_counter()
            read = reader.read(logits_tv[step % 4 * BATCH :][:BATCH], [chooser.draw() for chooser in choosers])
            for chooser, logits in zip(choosers, read, strict=True):
                chooser.choose(logits)
            seconds.append((time.perf_counter() - begun) / BATCH)
        rows.append({"settings": name, "vocabulary": vocab_size, **_quantiles(seconds)})
    return rows


def mask_times(vocab_size: int) -> list[dict[str, Any]]:
    """A row for each of `FORMS`."""
    compiler = GrammarCompiler(MadeUpTokenizer(vocab_size))
    logits_tv = zipf_logits(vocab_size, rows=64).numpy()
    rows = []
    for name, form in FORMS.items():
        begun = time.perf_counter()
        whole = form(compiler)
        compiling = time.perf_counter() - begun
        seconds: list[float] = []
        constraint = whole.fork()
        for step in range(STEPS):
            if constraint.has_ended:
                constraint = whole.fork()
            logits_v = logits_tv[step % len(logits_tv)].copy()
            begun = time.perf_counter()
            constraint.restrict(logits_v)
            restricted = time.perf_counter() - begun
            token = int(logits_v.argmax())
            begun = time.perf_counter()
            constraint.accept(token)
            seconds.append(restricted + time.perf_counter() - begun)
        rows.append({"form": name, "vocabulary": vocab_size, **_quantiles(seconds), "compiling": 1e6 * compiling})
    return rows


def zipf_logits(vocab_size: int, rows: int) -> torch.Tensor:
    """(rows, vocab): probability falls with the rank, ranks are shuffled, and all of it is noisy."""
    generator = torch.Generator().manual_seed(0)
    ranks_tv = torch.stack([torch.randperm(vocab_size, generator=generator) for _ in range(rows)])
    return -1.5 * torch.log(ranks_tv + 1.0) + torch.randn(rows, vocab_size, generator=generator)


class MadeUpTokenizer(TextTokenizer):
    """As much of a tokenizer as constraints need: ten control tokens, the bytes, and words that differ."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size, self.end_ids = vocab_size, (1, 9)
        generator = np.random.default_rng(0)
        pieces = {bytes([value]): None for value in range(256)}
        parts = b'e|t|a|on|in|er|st|re|th|1|20|"|, |_|(|\n'.split(b"|")
        while len(pieces) < vocab_size - 10:
            chosen = generator.integers(len(parts), size=generator.integers(1, 7))
            pieces[b" " * int(generator.integers(2)) + b"".join(parts[one] for one in chosen)] = None
        self._pieces = [b""] * 10 + list(pieces)

    def piece(self, index: int) -> bytes:
        return self._pieces[index]

    def control_name(self, index: int) -> str:
        return f"<|{index}|>"

    def encode_behind(self, text: str) -> list[int]:
        return [10 + value for value in text.encode()]


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "median": 1e6 * statistics.median(ordered),
        "99 %": 1e6 * ordered[len(ordered) * 99 // 100],
        "longest": 1e6 * ordered[-1],
    }


if __name__ == "__main__":
    main()
