"""A model folder in few bits, with what that costs it on held-out text: the verb `quantize`.

Bits per byte are counted as everywhere else (`train/heldout.py`). Beside them stands the mean Kullback-Leibler
divergence of the next-token distributions, KL(before ‖ after): what a loss alone does not see, as it looks at one token
of the vocabulary only. A model that nobody measured is never called good, nor is one that too little text measured.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from groundup.corpus.config import CorpusConfig
from groundup.corpus.sources import Document, read_documents
from groundup.engine.loading import use_kernels
from groundup.errors import UserError
from groundup.formats.folder import CONFIG, SHARDS, SINGLE, read_object
from groundup.formats.huggingface import load_language_model, save_folder
from groundup.formats.published import load_tokenizer
from groundup.model.language_model import LanguageModel
from groundup.model.parts import widen
from groundup.quantize.calibrate import calibrated, observe
from groundup.quantize.convert import Quantize, nearest, places, quantize_model, require_floating
from groundup.quantize.matrix import WEIGHT_FORMATS, WeightFormat
from groundup.record.metrics import Progress
from groundup.storage import hash_file, require_place, staged, write_json
from groundup.tokens.batches import Rows
from groundup.tokens.shards import Int64s
from groundup.tokens.text import TextTokenizer
from groundup.train.heldout import heldout_rows
from groundup.train.learner import final_hidden

RECORD = "quantization.json"
Method = Literal["nearest", "calibrated"]
# Rows that pass through both models at a time, and tokens whose whole distributions are compared at a time.
ROWS, HEAD_TOKENS = 8, 256
# By how much bits per byte may rise, in per cent, for a model to be called good.
LIMITS = {"w8": 0.1, "w4": 1.5, "w4_g32": 1.5}
# Of fewer held-out tokens the change is too inexact to judge a model by: docs/quantization.md has the error of these.
LEAST_TOKENS = 10_000


@dataclass(frozen=True)
class QuantizeConfig:
    """How a folder is quantized.

    format: one of WEIGHT_FORMATS. method: `nearest`, as training for the format rounds (`--quantize`); `calibrated`,
        GPTQ on text of the kind that the model will see; None: calibrated where there is text for it, else nearest.
    calibration, heldout: files of text, as `paths` of [corpus]; without held-out text the model must be `unmeasured`.
    context: tokens of text read at a time. calibration_windows: how many such windows, spread over the text.
    """

    format: str
    method: Method | None = None
    calibration: tuple[str, ...] = ()
    heldout: tuple[str, ...] = ()
    unmeasured: bool = False
    context: int = 512
    calibration_windows: int = 128

    def __post_init__(self) -> None:
        if self.format not in WEIGHT_FORMATS:
            raise UserError(f"`format` must be one of {', '.join(WEIGHT_FORMATS)}, not {self.format!r}")
        if bool(self.heldout) == self.unmeasured:
            raise UserError(
                "a model whose loss was not measured cannot be called good: give --heldout texts, or --unmeasured to "
                "write it all the same"
            )
        if self.method == "calibrated" and not self.calibration:
            raise UserError("the method `calibrated` needs --calibration texts, of the kind that the model will see")
        if self.method == "nearest" and self.calibration:
            raise UserError("the method `nearest` looks at no text; leave --calibration away")
        for name in ("context", "calibration_windows"):
            if getattr(self, name) < 1:
                raise UserError(f"`{name}` must be positive, not {getattr(self, name)}")


@dataclass(frozen=True)
class Comparison:
    """Two models on the same text: summed nats of each, summed divergence in nats, over tokens and bytes of text."""

    before_nats: float
    after_nats: float
    divergence_nats: float
    tokens: int
    bytes: int

    def figures(self) -> dict[str, float]:
        """As the record has them: bits per byte, the change of these in per cent, nats a token."""
        before, after = (nats / math.log(2) / self.bytes for nats in (self.before_nats, self.after_nats))
        return {
            "bits_per_byte_before": before,
            "bits_per_byte_after": after,
            "change_percent": 100 * (after / before - 1),
            "kl_divergence_nats": self.divergence_nats / self.tokens,
        }


class TextStream:
    """Documents in memory as a stream of tokens, each closed by what ends a text, if anything: a `HeldoutStream`.

    bos_id: the token that stands before a document; where texts begin with none, the one that closed another.
    vocab_size: of the model that is to read them.
    Raises UserError where there is no text, for a tokenizer with no such token, and for tokens that the model has not.
    """

    def __init__(self, paths: Sequence[str], words: TextTokenizer, vocab_size: int) -> None:
        end = words.end_ids[:1]
        if not (before := (*end, *words.beginning)):
            raise UserError(
                "this tokenizer has no token that begins or ends a text, so that no first token can be guessed"
            )
        self.bos_id = before[-1]
        texts = [text for _, text in _texts(paths)]
        if not texts:
            raise UserError(f"{', '.join(paths)}: there is no text in it")
        all_ids = [[*ids, *end] for ids in words.encode_batch([text.decode() for text in texts])]
        self._tokens = np.fromiter(chain.from_iterable(all_ids), dtype=np.int64)
        if (highest := max(self.bos_id, int(self._tokens.max()))) >= vocab_size:
            raise UserError(
                f"the tokenizer makes token {highest} of {', '.join(paths)}, but the model's vocabulary ends at "
                f"{vocab_size - 1}: they do not belong together"
            )
        self.offsets = np.cumsum([0, *map(len, all_ids)], dtype=np.int64)
        self.total_tokens = len(self._tokens)
        self.total_bytes = sum(map(len, texts))

    def tokens(self, start: int, stop: int) -> Int64s:
        return self._tokens[start:stop]


def quantize_folder(config: QuantizeConfig, folder: Path, out: Path) -> dict[str, Any]:
    """Write the model of `folder` to a new folder `out`, whole or not at all; returns its record, `quantization.json`.

    Raises UserError for a model that cannot be quantized or, if it is to be measured, does not go on from a text, and
    for held-out text that is calibrated on.
    """
    if out.exists():
        raise UserError(f"{out} is there already; name a folder that is not")
    require_place(out)
    require_unseen(config)
    model, format = load_language_model(folder), WEIGHT_FORMATS[config.format]
    require_floating(model, "quantized again")
    if not (config.unmeasured or model.config.causal):
        raise UserError(
            f"{folder} holds a {model.config.family} model, which has no bits per byte to measure: it does not go on "
            "from a text; --unmeasured writes it all the same"
        )
    method = config.method or ("calibrated" if config.calibration else "nearest")
    named = _named_texts(config)
    # Where no text is read, no tokenizer is needed.
    words = load_tokenizer(folder) if named else None
    texts = (
        {}
        if words is None
        else {name: TextStream(paths, words, model.config.vocab_size) for name, paths in named.items()}
    )
    window = min(config.context, model.config.max_positions)
    quantized = load_language_model(folder)
    _quantize(quantized, format, _rounding(format, model, texts.get("calibration"), config, window))
    record: dict[str, Any] = {
        "format": format.name,
        "method": method,
        "trained_for": _trained_for(folder),
        "made_from": {path.name: hash_file(path) for path in _model_files(folder)},
        "texts": {
            name: {"paths": list(paths), "bytes": texts[name].total_bytes, "tokens": texts[name].total_tokens}
            for name, paths in named.items()
        },
        "context": window,
        "measured": not config.unmeasured,
    }
    if not config.unmeasured:
        use_kernels(quantized)
        compared = compare(model, quantized, texts["heldout"], window).figures()
        is_enough = texts["heldout"].total_tokens >= LEAST_TOKENS
        good = compared["change_percent"] <= LIMITS[format.name] if is_enough else None
        record |= compared | {"good": good, "least_heldout_tokens": LEAST_TOKENS}
    with staged(out) as working:
        save_folder(quantized, working, like=folder)
        sizes = (sum(path.stat().st_size for path in _model_files(one)) for one in (folder, working))
        record |= dict(zip(("bytes_before", "bytes_after"), sizes, strict=True))
        write_json(working / RECORD, record)
    return record


def require_unseen(config: QuantizeConfig) -> None:
    """Raises UserError where held-out documents are calibrated on as well, whatever their files are called."""
    if not (config.calibration and config.heldout):
        return
    read = {_digest(text): _place(document) for document, text in _texts(config.calibration)}
    held_out = [(_digest(text), _place(document)) for document, text in _texts(config.heldout)]
    if twice := [(place, read[digest]) for digest, place in held_out if digest in read]:
        place, same = twice[0]
        raise UserError(
            f"held-out documents that are calibrated on as well: {len(twice)} of {len(held_out)}, such as {place} "
            f"(calibrated on as {same}); this text does not show what a model has lost: give other text as --heldout"
        )


@torch.no_grad()
def compare(before: LanguageModel, after: LanguageModel, text: TextStream, context: int) -> Comparison:
    """Both models on all of a text, in windows of `context` tokens of which each is predicted once."""
    before_nats, after_nats, divergence_nats = 0.0, 0.0, 0.0
    with Progress("quantize: held-out text", text.total_tokens, "tokens") as progress:
        for rows in heldout_rows(text, context, text.bos_id, rows=ROWS):
            targets_n = torch.from_numpy(rows.targets).flatten()
            hidden = [final_hidden(model, rows).flatten(0, 1).split(HEAD_TOKENS) for model in (before, after)]
            for one_cd, other_cd, targets_c in zip(*hidden, targets_n.split(HEAD_TOKENS), strict=True):
                one_cv, other_cv = (
                    widen(model.logits(hidden_cd[None])[0]).log_softmax(-1)
                    for model, hidden_cd in ((before, one_cd), (after, other_cd))
                )
                before_nats -= float(one_cv.gather(1, targets_c[:, None]).sum(dtype=torch.float64))
                after_nats -= float(other_cv.gather(1, targets_c[:, None]).sum(dtype=torch.float64))
                divergence_nats += float((one_cv.exp() * (one_cv - other_cv)).sum(dtype=torch.float64))
            progress.advance(targets_n.numel())
    return Comparison(before_nats, after_nats, divergence_nats, text.total_tokens, text.total_bytes)


def _rounding(
    format: WeightFormat, model: LanguageModel, text: TextStream | None, config: QuantizeConfig, window: int
) -> Quantize:
    if text is None:
        return lambda name, weight: nearest(weight, format)
    batches = heldout_rows(text, window, text.bos_id, windows=config.calibration_windows, rows=ROWS)
    total = min(config.calibration_windows * window, text.total_tokens)
    with Progress("quantize: calibration", total, "tokens") as progress:
        return calibrated(observe(model, _as_tensors(batches, progress)), format)


def _as_tensors(batches: Iterator[Rows], progress: Progress) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for rows in batches:
        input_ids, _, positions, segments = map(torch.from_numpy, rows.arrays())
        yield input_ids, positions, segments
        progress.advance(input_ids.numel())


def _quantize(model: LanguageModel, format: WeightFormat, quantize: Quantize) -> None:
    """In place, with a word on how long it takes."""
    total = sum(place.module.weight.numel() for place in places(model))
    with Progress("quantize: matrices", total, "weights") as progress:

        def counted(name: str, weight: Tensor) -> Any:
            matrices = quantize(name, weight)
            progress.advance(weight.numel())
            return matrices

        try:
            quantize_model(model, format, counted)
        except ValueError as error:  # weights that are not finite, or too large
            raise UserError(str(error)) from None


def _trained_for(folder: Path) -> str | None:
    """The format that a folder's weights were trained for, if for any: unrounded, nobody was to use them.

    A run may have been too short for a single step that rounds.
    """
    path = folder / "summary.json"
    summary = read_object(path) if path.exists() else {}
    found: str | None = None if summary.get("rounded_steps") == 0 else summary.get("quantize")
    return found


def _texts(paths: Sequence[str]) -> Iterator[tuple[Document, bytes]]:
    """Documents with their text as UTF-8; those without any are passed over."""
    for document in read_documents(CorpusConfig(paths=tuple(paths))):
        if not document.problem and document.text.strip():
            # JSON can spell half a surrogate pair, which no UTF-8 text can hold.
            yield document, document.text.encode("utf-8", errors="replace")


def _digest(text: bytes) -> bytes:
    """Of a document but for blanks around it, which another kind of file may leave away."""
    return hashlib.sha256(text.strip()).digest()


def _place(document: Document) -> str:
    """Where a document is, as a person finds it."""
    place = document.source
    if not place.endswith(document.path):
        place += f", {document.path}"
    return place + "".join(f", {name} {document.meta[name]}" for name in ("row", "part") if name in document.meta)


def _named_texts(config: QuantizeConfig) -> dict[str, tuple[str, ...]]:
    named = {"calibration": config.calibration, "heldout": config.heldout}
    return {name: paths for name, paths in named.items() if paths}


def _model_files(folder: Path) -> list[Path]:
    return [folder / CONFIG, *sorted([*folder.glob(SINGLE), *folder.glob(SHARDS)])]
