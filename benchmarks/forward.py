"""Speed of the forward pass at 110 M parameters beside `transformers`, on the same folder, measured in turn.

    python benchmarks/forward.py --json results.json

Models of 12 layers, width 768, 12 heads: LLaMA (feed-forward 2048, vocabulary 32,000) and GPT-2 (vocabulary 50,257).
`prefill` is 512 tokens at once, logits of all of them; `decode` one token after 512 in the cache. Both sides take their
defaults (`transformers`: fused attention). Their logits are compared before anything is timed. A ratio above 1 means
that groundup is faster.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from figures import arguments, show

import groundup
from groundup.formats.huggingface import load_language_model
from groundup.model.build import build
from groundup.model.cache import KeyValueCache
from groundup.model.initialise import initialise
from groundup.model.language_model import LanguageModel
from groundup.model.presets import build_config

VOCABULARIES = {"llama": 32_000, "gpt2": 50_257}
TOKENS = 512
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# How far the two may be apart, relative to their length: they round in another order.
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2}

Step = Callable[[], Any]


def main() -> None:
    """Time both sides in every mode and print a table."""
    parser = arguments(__doc__)
    families, dtypes, modes = sorted(VOCABULARIES), sorted(DTYPES), list(MODES)
    parser.add_argument("--family", nargs="+", default=families, choices=families, help="kinds of models")
    parser.add_argument("--dtype", nargs="+", default=dtypes, choices=dtypes, help="types of weights and activations")
    parser.add_argument("--mode", nargs="+", default=modes, choices=modes, help="what is timed")
    parser.add_argument("--rounds", type=int, default=10, help="how often each side is timed, in turn")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for family in options.family:
            write(family, Path(folder) / family)
            for dtype in options.dtype:
                for mode in options.mode:
                    rows.append(compare(family, Path(folder) / family, dtype, mode, options.rounds))
    slowest = min(row["ratio"] for row in rows)
    title = f"forward pass, 110 M parameters, {torch.get_num_threads()} threads, milliseconds (target: ratio ≥ 1)"
    show(title, rows, options.json, {"slowest_ratio": slowest, "rows": rows})


@torch.no_grad()
def compare(family: str, folder: Path, dtype: str, mode: str, rounds: int) -> dict[str, Any]:
    """Both sides in turn, after each has run twice; the median counts."""
    ours = load_language_model(folder, DTYPES[dtype])
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype])
    ids = torch.randint(VOCABULARIES[family], (1, TOKENS), generator=torch.Generator().manual_seed(0))
    expected = theirs(ids).logits.float()
    apart = float((ours(ids).float() - expected).norm() / expected.norm())
    if apart > TOLERANCES[dtype]:
        raise SystemExit(f"the two sides do not compute the same: {apart:.2g} apart ({family}, {dtype})")
    steps = MODES[mode](ours, theirs, ids)
    times: list[list[float]] = [[], []]
    for turn in range(rounds + 2):
        for step, seconds in zip(steps, times, strict=True):
            started = time.perf_counter()
            step()
            if turn >= 2:
                seconds.append(time.perf_counter() - started)
    torch.compiler.reset()
    our_ms, their_ms = (1000 * statistics.median(one) for one in times)
    return {
        "model": family,
        "type": dtype,
        "mode": mode,
        "groundup ms": our_ms,
        "transformers ms": their_ms,
        "ratio": their_ms / our_ms,
        "fastest ratio": min(times[1]) / min(times[0]),
        "apart": apart,
    }


def _prefill(ours: LanguageModel, theirs: Any, ids: torch.Tensor) -> tuple[Step, Step]:
    return lambda: ours(ids), lambda: theirs(ids, use_cache=False).logits


def _compiled(ours: LanguageModel, theirs: Any, ids: torch.Tensor) -> tuple[Step, Step]:
    ours_compiled = torch.compile(ours, dynamic=False)
    theirs_compiled: Any = torch.compile(theirs, dynamic=False)
    return lambda: ours_compiled(ids), lambda: theirs_compiled(ids, use_cache=False).logits


def _decode(ours: LanguageModel, theirs: Any, ids: torch.Tensor) -> tuple[Step, Step]:
    """Each step adds a token to the cache of its side."""
    cache = KeyValueCache(ours)
    their_cache = transformers.DynamicCache(config=theirs.config)
    ours(ids, cache=cache)
    theirs(ids, past_key_values=their_cache)
    one = ids[:, :1]
    return lambda: ours(one, cache=cache), lambda: theirs(one, past_key_values=their_cache).logits


# Of each mode, a step of ours and one of theirs.
MODES: dict[str, Callable[[LanguageModel, Any, torch.Tensor], tuple[Step, Step]]] = {
    "prefill": _prefill,
    "prefill compiled": _compiled,
    "decode": _decode,
}


def write(family: str, folder: Path) -> None:
    """A folder of random weights that are as large as trained ones."""
    model = build(build_config(family, 12, VOCABULARIES[family], context=1024, width=768, head_dim=64))
    initialise(model, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.02)
    groundup.save(model.eval(), folder)


if __name__ == "__main__":
    main()
