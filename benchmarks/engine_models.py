"""The models that `engine.py` compares engines on: random weights, in the forms that each of them reads."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import groundup
from groundup.formats.gguf.model_file import save_gguf
from groundup.formats.huggingface import load_language_model
from groundup.model.build import build
from groundup.model.config import ModelConfig
from groundup.model.presets import build_config
from groundup.storage import staged
from groundup.tokens.config import CONTROL_TOKENS, PATTERNS
from groundup.tokens.tokenizer import Tokenizer, train

CONTEXT = 2048
# Weights of our own folder: made by `groundup quantize`, or those that it makes them from, for `transformers` too.
KINDS = ("w4", "w4_g32", "w8", "bfloat16")


class Missing(Exception):
    """A side cannot be measured; the message says why."""


@dataclass(frozen=True)
class Shape:
    """A LLaMA with a tied head and heads of 64."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    vocab_size: int

    def config(self) -> ModelConfig:
        """The preset `llama` in these sizes."""
        head_dim = self.width // self.heads
        base = build_config("llama", self.layers, self.vocab_size, CONTEXT, self.width, head_dim)
        assert isinstance(base, ModelConfig)
        layer = base.layers[0]
        layer = replace(
            layer,
            mixer=replace(layer.attention, kv_heads=self.kv_heads),
            feed_forward=replace(layer.network, width=self.hidden),
        )
        return replace(base, layers=(layer,) * self.layers)


SHAPES: Mapping[str, Shape] = {
    "508M": Shape(1024, 28, 16, 8, 3072, 151_936),
    "1B": Shape(1536, 36, 24, 8, 4096, 64_000),  # half a gigabyte in w4
    "110M": Shape(768, 12, 12, 12, 2048, 32_000),
    "tiny": Shape(256, 2, 4, 2, 512, 1_000),  # to see that everything runs
}


@dataclass(frozen=True)
class Forms:
    """One model in its forms, each made when it is asked for and not there yet."""

    name: str
    folder: Path

    @property
    def shape(self) -> Shape:
        return SHAPES[self.name]

    def bfloat16(self) -> Path:
        """A model folder that `transformers` reads, too."""
        out = self.folder / self.name / "bfloat16"
        if not out.exists():
            out.parent.mkdir(parents=True, exist_ok=True)
            with staged(out) as working:
                _save_random(self.shape, working)
        return out

    def ours(self, kind: str) -> Path:
        """A folder for our engine, its weights of one of `KINDS`. Raises Missing if they cannot be quantized."""
        if kind == "bfloat16":
            return self.bfloat16()
        out = self.folder / self.name / kind
        if not out.exists():
            folder = self.bfloat16()
            with tempfile.TemporaryDirectory(dir=self.folder) as working:
                _quantize(folder, Path(working), kind).rename(out)
        return out

    def gguf(self, quantize: Callable[[Path, Path], object]) -> Path:
        """A file of type q4_0. quantize: llama.cpp's own, from a file in half precision: it knows its best mixture."""
        out = self.folder / self.name / "gguf" / "q4_0.gguf"
        if not out.exists():
            folder = self.bfloat16()
            with staged(out.parent) as working:
                half = working / "half.gguf"
                byte_tokens().save(working)
                save_gguf(load_language_model(folder), working, half, "f16")
                quantize(half, working / out.name)
                half.unlink()
        return out

    def openvino(self, export: Callable[[Path, Path], object]) -> Path:
        """A folder of OpenVINO, its weights in 4 bits. export: OpenVINO's own, from a model folder."""
        out = self.folder / self.name / "openvino"
        if not out.exists():
            folder = self.bfloat16()
            with staged(out) as working:
                export(folder, working)
        return out


def _quantize(folder: Path, working: Path, kind: str) -> Path:
    """The folder in few bits, in `working`. Raises Missing if that cannot be done."""
    source, out = working / "source", working / "quantized"
    shutil.copytree(folder, source, copy_function=os.link)
    byte_tokens().save(source)  # the verb wants one
    # Rounded to the nearest and not measured: there is nothing to lose in random weights.
    words = ["--out", str(out), "--format", kind, "--method", "nearest", "--unmeasured"]
    command = [sys.executable, "-m", "groundup", "quantize", str(source), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise Missing(last_line(done))
    for path in out.glob("tokenizer*.json"):
        path.unlink()
    return out


def last_line(done: "subprocess.CompletedProcess[str]") -> str:
    """What a process that failed said in the end."""
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def _save_random(shape: Shape, out: Path) -> None:
    """Matrices as large as trained ones are. No tokenizer: no side turns tokens into text."""
    model = build(shape.config())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.02, generator=generator)
            else:
                parameter.fill_(1.0)
    groundup.save(model.to(torch.bfloat16).eval(), out)


def byte_tokens() -> Tokenizer:
    """A GGUF file needs a tokenizer; what is missing in it up to the vocabulary's size gets names there."""
    return Tokenizer(train(iter([["any text"]]), len(CONTROL_TOKENS) + 256, PATTERNS["qwen2"]))
