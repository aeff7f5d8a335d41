"""What few bits cost a trained model: our formats beside those of llama.cpp and OpenVINO, on the same held-out tokens.

    python benchmarks/engine_perplexity.py runs/mine/04-pretrain --heldout heldout.jsonl --calibration train.jsonl \\
        --opponents runs/opponents --json results.json

The model must be one that llama.cpp and `transformers` know, such as `groundup pretrain --preset llama` makes. Each
side scores the windows with its own engine, once with the model as it is and once with each of its formats, made with
its own tools; the increase is over that side's own first row, so that what else sets the sides apart drops out. Windows
are token ids, cut as in training: each document, or part of one, begins with the begin of text and is read alone. The
size is that of all weights in the file: llama.cpp keeps the head in more bits than the format's name says, OpenVINO the
head and the embedding.
"""

import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from engine_models import Missing, byte_tokens
from engine_sides import Side, add_side_flags, sides
from figures import arguments, settings, show, write_figures

from groundup.evaluate.quantization import Method, QuantizeConfig, TextStream, quantize_folder
from groundup.formats.gguf.model_file import save_gguf
from groundup.formats.huggingface import load_language_model
from groundup.quantize.matrix import WEIGHT_FORMATS
from groundup.tokens.tokenizer import Tokenizer
from groundup.train.heldout import heldout_rows

METHODS: tuple[Method, ...] = ("nearest", "calibrated")


@dataclass(frozen=True)
class Form:
    """The trained model as a side reads it. weights: the file of these."""

    name: str
    path: Path
    weights: Path


def main() -> None:
    """Score the same windows with all sides and forms and print the table."""
    parser = arguments(__doc__)
    parser.add_argument("folder", type=Path, help="a trained model of preset llama, with its tokenizer")
    parser.add_argument("--heldout", type=Path, nargs="+", required=True, help="text to score, as `paths` of [corpus]")
    parser.add_argument("--calibration", type=Path, nargs="+", required=True, help="text like what it was trained on")
    parser.add_argument("--tokens", type=int, default=100_000, help="of the held-out text, in windows spread over it")
    parser.add_argument("--window", type=int, default=512, help="tokens that are read together")
    add_side_flags(parser)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        working = Path(name)
        texts = working / "texts.json"
        texts.write_text(json.dumps(windows(options)), encoding="utf-8")
        for side in sides(options):
            try:
                rows += side_rows(side, FORMS[side.name](side, options, working), texts, options.threads)
            except Missing as reason:
                left_out[side.name] = str(reason)
                print(f"without {side.name}: {reason}", file=sys.stderr)
    if rows:
        show(f"perplexity of {options.tokens:,} held-out tokens, windows of {options.window}", rows, None, {})
    if options.json is not None:
        write_figures(options.json, {"settings": settings(options), "left_out": left_out, "rows": rows})


def windows(options: Any) -> list[list[int]]:
    """Token ids of the texts to score, each begun with the begin of text; every other token is guessed once."""
    words = Tokenizer.load(options.folder)
    stream, targets = TextStream(list(map(str, options.heldout)), words, words.vocab_size), options.window - 1
    rows = heldout_rows(stream, targets, words.bos_id, windows=max(1, options.tokens // targets))
    found = []
    for packed in rows:
        for targets_t, segments_t in zip(packed.targets, packed.segments, strict=True):
            parts = np.split(targets_t, np.flatnonzero(np.diff(segments_t)) + 1)
            found += [[words.bos_id, *part.tolist()] for part in parts]
    return found


def side_rows(side: Side, forms: Iterator[Form], texts: Path, threads: int) -> Iterator[dict[str, Any]]:
    """A row for each form; the increase is over the first. Raises Missing."""
    plain: float | None = None
    for form in forms:
        print(f"{side.name}: {form.name}", file=sys.stderr)
        found = side.score(form.path, texts, threads)
        per_token = found["nats"] / found["tokens"]
        plain = per_token if plain is None else plain
        yield {
            "side": side.name,
            "weights": form.name,
            "MB": form.weights.stat().st_size / 1e6,
            "perplexity": math.exp(per_token),
            "increase %": 100 * math.expm1(per_token - plain),
        }


def our_forms(side: Side, options: Any, working: Path) -> Iterator[Form]:
    """The folder itself, and in every format and by every method."""
    yield Form("as trained", options.folder, options.folder / "model.safetensors")
    for format in WEIGHT_FORMATS:
        for method in METHODS:
            calibration = tuple(map(str, options.calibration)) if method == "calibrated" else ()
            config = QuantizeConfig(format, method, calibration=calibration, unmeasured=True)
            out = working / f"{format}-{method}"
            quantize_folder(config, options.folder, out)
            yield Form(f"{format}, {method}", out, out / "model.safetensors")


def llama_cpp_forms(side: Side, options: Any, working: Path) -> Iterator[Form]:
    """A file in half precision, and of its own quantizing from that."""
    half = working / "f16.gguf"
    byte_tokens().save(working)  # the file wants a tokenizer that llama.cpp knows; nobody asks it for text
    save_gguf(load_language_model(options.folder), working, half, "f16")
    yield Form("f16", half, half)
    for type in ("q8_0", "q4_0"):
        path = working / f"{type}.gguf"
        side.run("--quantize", half, path, type)
        yield Form(type, path, path)


def openvino_forms(side: Side, options: Any, working: Path) -> Iterator[Form]:
    """Exported as it is, and with weights of 4 bits."""
    for name, words in {"as trained": (), "int4, symmetric, groups of 128": ("int4",)}.items():
        out = working / f"openvino{len(words)}"
        side.run("--export", options.folder.absolute(), out, *words)
        yield Form(name, out, out / "openvino_model.bin")


def transformers_forms(side: Side, options: Any, working: Path) -> Iterator[Form]:
    """The folder itself: what all sides should say of the model as it is."""
    yield Form("as trained", options.folder, options.folder / "model.safetensors")


# Of each side, the model as it is and then in few bits.
FORMS: dict[str, Callable[[Side, Any, Path], Iterator[Form]]] = {
    "groundup": our_forms,
    "llama.cpp": llama_cpp_forms,
    "OpenVINO": openvino_forms,
    "transformers": transformers_forms,
}


if __name__ == "__main__":
    main()
