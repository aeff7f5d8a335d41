"""A small but realistic run folder, written by code with the public writers of the record room."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from groundup.record.ledger import Ledger, stage_key
from groundup.record.metrics import MetricsWriter
from groundup.storage import write_json

FOLDERS = {
    "corpus": "01-corpus",
    "tokenizer": "02-tokenizer",
    "tokens": "03-tokens",
    "pretrain": "04-pretrain",
    "sft": "05-sft",
    "evaluate": "06-evaluate",
}
INPUTS = {
    "corpus": (),
    "tokenizer": ("corpus",),
    "tokens": ("corpus", "tokenizer"),
    "pretrain": ("tokens", "tokenizer"),
    "sft": ("corpus", "pretrain"),
    "evaluate": ("corpus", "tokens", "pretrain", "sft"),
}
SECONDS = {"corpus": 2.1, "tokenizer": 3.4, "tokens": 2.6, "pretrain": 271.0, "sft": 84.0, "evaluate": 41.0}

RunMaker = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> RunMaker:
    """Call it with the names of the stages that are finished; by default all are."""

    def make(*stages: str, name: str = "pocket") -> Path:
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        write_run(run, *stages)
        return run

    return make


@pytest.fixture(scope="session", name="write_run")
def write_run_fixture() -> Callable[..., None]:
    """Call it with a folder, and the names of the stages that are finished; by default all are."""
    return write_run


def write_run(run: Path, *stages: str) -> None:
    stages = stages or tuple(FOLDERS)
    ledger, ids = Ledger(run / "ledger.jsonl"), {"sources": "5f2ac0ffee" + "0" * 54}
    for stage in stages:
        folder = run / FOLDERS[stage]
        folder.mkdir()
        write_json(folder / "summary.json", SUMMARIES[stage])
        write_json(folder / "cost.json", cost(SECONDS[stage]))
        config = {"seed": 1, "stage": stage}
        inputs = {name: ids[name] for name in INPUTS[stage] or ("sources",)}
        key = stage_key(stage, config, "c0de", inputs)
        ids[stage] = ledger.append(stage, key, inputs, config, "c0de" * 16, {"summary.json": key}).id
    if "pretrain" in stages:
        write_pretraining(run / FOLDERS["pretrain"])
    if "sft" in stages:
        with MetricsWriter(run / FOLDERS["sft"]) as writer:
            for step in range(1, 201):
                loss = 0.9 + 1.6 * math.exp(-step / 40) + 0.08 * math.sin(step * 1.7)
                writer.write(step, {"loss": loss, **({"heldout_loss": loss * 1.02} if step % 50 == 0 else {})}, {})
        samples = [
            {"step": step, "prompt": question, "text": text}
            for question, texts in ANSWERS.items()
            for step, text in zip((1, 100, 200), texts, strict=True)
        ]
        write_lines(run / FOLDERS["sft"] / "samples.jsonl", samples)
    if "corpus" in stages:
        write_lines(run / FOLDERS["corpus"] / "timings.jsonl", [{"step": 0, "seconds": 0.94, "mb_per_second": 13.4}])
    if "evaluate" in stages:
        write_json(run / FOLDERS["evaluate"] / "scores.json", SCORES)


def write_pretraining(folder: Path) -> None:
    with MetricsWriter(folder) as writer:
        for step in range(1, 601):
            warmth = min(1.0, step / 30) * min(1.0, (600 - step) / 200 + 0.01)
            bits = 1.03 + 1.1 * (step + 4) ** -0.55 * 4 + 0.035 * math.sin(step * 2.3) * math.cos(step * 0.7)
            values = {"tokens": step * 8192, "loss": bits * 2.6, "bits_per_byte": bits}
            values |= {"learning_rate": 0.02 * warmth, "grad_norm": 0.4 + 2 / step + 0.1 * math.sin(step)}
            if step % 50 == 0:
                values["heldout_bits_per_byte"] = 1.012 + 1.1 * (step + 4) ** -0.55 * 4
            writer.write(step, values, {"tokens_per_second": 18_300 + 420 * math.sin(step / 9) - 9000 / step})
    samples = [
        {"step": step, "prompt": prompt, "text": text}
        for prompt, texts in SAMPLES.items()
        for step, text in zip((1, 100, 300, 600), texts, strict=True)
    ]
    write_lines(folder / "samples.jsonl", samples)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def cost(seconds: float) -> dict[str, Any]:
    """What a Meter writes on a machine without readable energy counters."""
    joules = seconds * 1.9 * 8
    figures = {
        "wall_seconds": (seconds, "s", "measured", "clock"),
        "cpu_seconds": (seconds * 1.9, "s", "measured", "getrusage, this process and its ended children"),
        "peak_memory_bytes": (4e8 + 5e6 * seconds, "B", "measured", "high-water mark of this process"),
        "energy_joules": (joules, "J", "estimated", "processor time × 8 W per core (GROUNDUP_WATTS_PER_CORE)"),
        "co2_grams": (joules / 3.6e6 * 445, "g", "estimated", "estimated energy × 445 g/kWh (GROUNDUP_GRID_G_PER_KWH)"),
    }
    names = ("value", "unit", "basis", "source")
    return {name: dict(zip(names, figure, strict=True)) for name, figure in figures.items()}


def interval(value: float, half: float) -> dict[str, float]:
    return {"value": value, "low": max(value - half, 0.0), "high": min(value + half, 1.0)}


SUMMARIES: dict[str, dict[str, Any]] = {
    "corpus": {
        "read": {"source_bytes": 12_618_334, "documents": 1_316, "bytes": 12_540_002},
        "cut": {"licence_lines": 3_204, "licence_chars": 180_311, "table_lines": 0, "table_chars": 0},
        "rejected": [
            {
                "reason": "near-duplicate",
                "documents": 61,
                "bytes": 512_008,
                "example": {
                    "path": "importlib/metadata/_meta.py",
                    "text": "class Distribution(metaclass=abc.ABCMeta):",
                },
            },
            {
                "reason": "too short",
                "documents": 38,
                "bytes": 3_114,
                "example": {"path": "lib2to3/__init__.py", "text": "# Dummy file to make this directory a package."},
            },
            {
                "reason": "generated table",
                "documents": 24,
                "bytes": 918_201,
                "example": {
                    "path": "encodings/cp037.py",
                    "text": "decoding_table = (\n    '\\x00'  #  0x00 -> NULL\n    '\\x01'  #  0x01 -> HEADING\n" * 4,
                },
            },
            {
                "reason": "mostly symbols",
                "documents": 6,
                "bytes": 280_894,
                "example": {"path": "pydoc_data/topics.py", "text": "Return the shortest path <b>& more</b>"},
            },
        ],
        "quotes": {"documents": 41, "quotes": 77, "words": 1_502, "examples": []},
        "splits": {
            "train": {"documents": 1_098, "bytes": 10_011_230, "groups": 640, "passages": 7_812},
            "heldout": {"documents": 89, "bytes": 892_887, "groups": 34, "passages": 688},
        },
    },
    "tokenizer": {
        "vocab_size": 4096,
        "control_tokens": 10,
        "corpus_bytes": 10_011_230,
        "sample_bytes": 10_011_230,
        "longest_words": [
            " NotImplementedError",
            " DeprecationWarning",
            " implementation",
            " representation",
            "encoding",
        ],
    },
    "tokens": {
        "vocab_size": 4096,
        "dtype": "uint16",
        "splits": {
            "train": {
                "documents": 1_098,
                "tokens": 2_893_418,
                "bytes": 10_011_230,
                "bytes_per_token": 3.46,
                "shards": 1,
            },
            "heldout": {"documents": 89, "tokens": 258_061, "bytes": 892_887, "bytes_per_token": 3.46, "shards": 1},
        },
    },
    "pretrain": {
        "preset": "nanochat",
        "layers": 6,
        "width": 384,
        "parameters": 12_980_736,
        "matmul_parameters": 11_403_264,
        "steps": 600,
        "tokens": 4_915_200,
        "epochs": 1.699,
        "flops": 4.06e14,
        "heldout_bits_per_byte": 1.1412,
        "dtype": "bfloat16",
        "threads": 2,
        "train_seconds": 262.0,
        "tokens_per_second": 18_760.0,
        "flops_per_second": 1.55e12 / 3,
        "peak_flops": 8.15e11,
        "utilisation": 0.634,
    },
    "sft": {
        "parameters": 12_980_736,
        "conversations": 14_210,
        "conversation_tokens": 2_480_112,
        "trained_tokens": 611_904,
        "steps": 200,
        "epochs": 1.2,
        "kinds": {"with passage": 6_840, "closed book": 4_120, "calculator": 2_000, "unanswerable": 1_250},
    },
    "evaluate": {},
}

SCORES: dict[str, Any] = {
    "bits_per_byte": [
        {"name": "model", "value": 1.1412, "bytes": 892_887, "how": "windows of 512 tokens"},
        {"name": "chat model", "value": 1.2034, "bytes": 892_887, "how": "windows of 512 tokens"},
        {
            "name": "xz -9e",
            "value": 1.648,
            "bytes": 892_887,
            "how": "The held-out texts alone, compressed as one file.",
        },
        {"name": "7-gram", "value": 1.703, "bytes": 892_887, "how": "Each byte from the 6 before it."},
        {
            "name": "unigram",
            "value": 4.912,
            "bytes": 892_887,
            "how": "Each byte by its frequency in the training texts.",
        },
    ],
    "questions": [
        {
            "model": "sft",
            "mode": "with passage",
            "n": 400,
            "exact_match": interval(0.612, 0.048),
            "f1": interval(0.744, 0.031),
            "refused": interval(0.031, 0.02),
        },
        {
            "model": "sft",
            "mode": "closed book",
            "n": 380,
            "exact_match": interval(0.021, 0.014),
            "f1": interval(0.187, 0.028),
            "refused": interval(0.062, 0.02),
        },
        {"model": "sft", "mode": "unanswerable", "n": 200, "exact_match": interval(0.835, 0.05)},
    ],
    "kinds": [
        {
            "model": "sft",
            "mode": "with passage",
            "kind": kind,
            "n": 200,
            "exact_match": interval(exact, 0.06),
            "f1": interval(f1, 0.05),
        }
        for kind, exact, f1 in (("purpose", 0.55, 0.71), ("signature", 0.68, 0.78))
    ],
    "comparisons": [
        {
            "name": "with passage − closed book, exact match",
            "n": 380,
            "difference": 0.591,
            "low": 0.54,
            "high": 0.64,
            "p_value": 1e-12,
            "detectable": 0.071,
        },
        {
            "name": "with passage − closed book, F1",
            "n": 380,
            "difference": 0.557,
            "low": 0.52,
            "high": 0.59,
            "p_value": 1e-4,
            "detectable": 0.062,
        },
    ],
    "calculator": {"n": 200, "accuracy": interval(0.935, 0.034)},
}

ANSWERS = {
    "What does json.dumps do?": (
        "the the self of a",
        "Return a string of the object.",
        "Serialize obj to a JSON formatted str.",
    ),
}

SAMPLES = {
    "def read_json(path):": (
        " qel\x00 w,,tth ))) 'f ac retu\n on",
        "\n    return self.path(self, self.self)\n    if not self:\n",
        '\n    """Return a string from the given path."""\n    with open(path) as f:\n        return f.read()\n',
        '\n    """Read a JSON document from a file."""\n    with open(path) as file:\n        return json.load(file)\n',
    ),
    "The built-in function sorted()": (
        " ejrt  th,e .. a  ((",
        " is the the function is a the object of the object.",
        " returns a list of the items in the sequence, which is the default.",
        " returns a new sorted list from the items in an iterable. The key argument names a function of one argument.",
    ),
}
