"""The verb `quantize`: a model folder in few bits, and what that costs it."""

import argparse
from pathlib import Path
from typing import Any

from groundup.cli.parser import Verbs
from groundup.cli.talking import find_model

# Spelled out, so that no library is loaded to parse a command; a test holds them against what they stand for.
FORMATS, METHODS = ("w8", "w4", "w4_g32"), ("nearest", "calibrated")

ABOUT = """\
Write a model folder with weights of 8 or 4 bits, which every other verb takes like the first one; only
groundup reads it. Activations are rounded to 8 bits as the model runs. What that costs is measured on
--heldout: bits per byte before and after, and the mean divergence of next-token distributions; both are
written into the folder (quantization.json). Without held-out text nothing is written, unless --unmeasured
says that nobody will know."""

AFTER = """\
examples:
  groundup quantize runs/mine --out mine-w8 --format w8 --heldout heldout.jsonl
  groundup quantize runs/mine --out mine-w4 --format w4 --calibration train.jsonl --heldout heldout.jsonl
  groundup quantize runs/mine --out mine-w4 --format w4 --heldout heldout.jsonl
                        of a model that was trained with --quantize w4, exactly the weights that it learned with

Next: groundup chat mine-w4"""


def add_verbs(verbs: Verbs) -> None:
    """Add `quantize`."""
    about, usage = "write a model with weights of 8 or 4 bits", "RUN|MODEL --out FOLDER --format FORMAT [flags]"
    verb = verbs.add("quantize", about, _quantize, usage, ABOUT, AFTER)
    verb.add_argument("model", type=Path, metavar="RUN|MODEL", help="run folder, model folder or hf:org/name")
    verb.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new folder")
    verb.add_argument(
        "--format",
        choices=FORMATS,
        required=True,
        help="w8; w4, a scale for every 128 inputs; or w4_g32, for every 32",
    )
    verb.add_argument(
        "--method",
        choices=METHODS,
        help="nearest, as training with --quantize rounds; calibrated (GPTQ) (default: calibrated with --calibration, "
        "else nearest)",
    )
    verb.add_argument(
        "--calibration", nargs="+", default=(), metavar="FILE", help="texts of the kind that the model will see"
    )
    verb.add_argument(
        "--heldout",
        nargs="+",
        default=(),
        metavar="FILE",
        help="texts to measure on, none of those of --calibration; 10,000 tokens or more, to be judged by",
    )
    verb.add_argument("--unmeasured", action="store_true", help="write it without measuring, and record that")
    verb.add_argument(
        "--context", type=int, default=512, metavar="N", help="tokens of text read at a time (default: %(default)s)"
    )
    verb.add_argument(
        "--calibration-windows",
        type=int,
        default=128,
        metavar="N",
        help="so many times `--context` tokens, spread over the calibration texts (default: %(default)s)",
    )


def _quantize(flags: argparse.Namespace) -> None:
    from groundup.evaluate.quantization import QuantizeConfig, quantize_folder

    names = ("format", "method", "heldout", "calibration", "unmeasured", "context", "calibration_windows")
    given = {name: getattr(flags, name) for name in names}
    config = QuantizeConfig(**given | {name: tuple(given[name]) for name in ("heldout", "calibration")})
    record = quantize_folder(config, find_model(flags.model, "sft"), flags.out)
    print("\n".join(_lines(record)))
    print(flags.out)


def _lines(record: dict[str, Any]) -> list[str]:
    """The record as a person reads it."""
    before, after = record["bytes_before"] / 1e6, record["bytes_after"] / 1e6
    lines = [f"size            {before:,.1f} MB → {after:,.1f} MB ({record['format']}, {record['method']})"]
    trained_for = record["trained_for"]
    if trained_for is not None and (trained_for, "nearest") != (record["format"], record["method"]):
        lines.append(
            f"trained for {trained_for}: these are not the numbers that it learned with, which --format {trained_for} "
            "without --calibration writes"
        )
    if not record["measured"]:
        return [*lines, "not measured: nobody knows what this model has lost"]
    lines += [
        f"bits per byte   {record['bits_per_byte_before']:.4f} → {record['bits_per_byte_after']:.4f} "
        f"({record['change_percent']:+.2f} %)",
        f"KL divergence   {record['kl_divergence_nats']:.5f} nats a token",
        f"held-out text   {record['texts']['heldout']['bytes']:,} bytes, windows of {record['context']} tokens",
    ]
    if trained_for is not None:
        lines.append(
            f"trained for {trained_for}: before are its own weights, unrounded; what it would be had it not been "
            "trained so is not measured here"
        )
    if record["good"] is None:
        lines.append(
            f"not judged: {record['texts']['heldout']['tokens']:,} tokens of held-out text do not tell whether this is "
            f"good, at least {record['least_heldout_tokens']:,} do"
        )
    elif not record["good"]:
        lines.append(
            "this is more than the format usually costs: calibrate on text of the kind that the model will see, take "
            "a format of more bits, or train with --quantize"
        )
    return lines
