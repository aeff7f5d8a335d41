"""The pre-training stage: token shards in, a model folder out."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from groundup import hardware
from groundup.engine.generate import Generator
from groundup.engine.sampling import Sampling
from groundup.errors import UserError
from groundup.formats.huggingface import save_model
from groundup.model.config import ModelConfig
from groundup.model.initialise import initialise
from groundup.model.presets import build_config
from groundup.model.transformer import Decoder
from groundup.record.metrics import read_lines
from groundup.storage import write_atomically, write_json
from groundup.tokens.batches import PackedDocuments
from groundup.tokens.shards import Shards
from groundup.tokens.tokenizer import Tokenizer
from groundup.train.checkpoint import remove_checkpoint
from groundup.train.config import PretrainConfig
from groundup.train.heldout import heldout_loss
from groundup.train.loop import LoopConfig, TrainingResult, check_split, resolve_compile, resolve_dtype, train
from groundup.train.optim import LearningRates
from groundup.train.parallel import join_ranks

DEFAULT_MINUTES = 5.0
# Windows of held-out text looked at on the way; the whole of it is scored once, at the end.
WATCHED_WINDOWS = 48
SAMPLE_TOKENS = 64
SAMPLES_FILE = "samples.jsonl"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def run(config: PretrainConfig, out: Path, *, tokens: Path, tokenizer: Path) -> None:
    """Train a decoder from random weights on `tokens/train`, watching `tokens/heldout`.

    Writes a Hugging Face model folder, `metrics.jsonl`, `timings.jsonl`, `samples.jsonl` ({step, prompt, text}) and
    `summary.json` (the keys of `summarise`). Goes on from a checkpoint found in `out`.
    """
    ranks = join_ranks()
    shards, heldout = Shards.open(tokens / "train"), Shards.open(tokens / "heldout")
    shards.check_tokenizer(tokenizer)
    words = Tokenizer.load(tokenizer)
    model = build_model(config, words.vocab_size)
    try:
        source = PackedDocuments(shards, config.context, words.bos_id, config.seed)
    except ValueError as error:
        raise UserError(f"{tokens / 'train'}: {error}") from None
    loop = loop_config(config, model.config, shards.total_bytes / shards.total_tokens)
    check_split(loop.rows_per_step, loop.micro_rows, ranks.count)
    samples = Samples(out / SAMPLES_FILE, model, words, config.sample_prompts)

    def watch(step: int) -> Mapping[str, float]:
        model.eval()
        loss = heldout_loss(model, heldout, config.context, words.bos_id, windows=WATCHED_WINDOWS)
        if ranks.leads:
            samples.take(step)
        model.train()
        return {"heldout_bits_per_byte": loss.bits_per_byte}

    result = train(model, source, loop, out, watch, ranks)
    if not ranks.leads:
        return
    final = heldout_loss(model.eval(), heldout, config.context, words.bos_id)
    save_trained(model, words, tokenizer, out)
    summary = summarise(model.config, config.preset, config.context, loop, result)
    write_json(
        out / "summary.json",
        summary | {"heldout_bits_per_byte": final.bits_per_byte, "epochs": _epochs(result, shards)},
    )
    remove_checkpoint(out)


def build_model(config: PretrainConfig, vocab_size: int) -> Decoder:
    """A freshly initialised model of the configured shape."""
    try:
        shape = build_config(config.preset, config.depth, vocab_size, config.context, config.width, config.head_dim)
    except ValueError as error:
        raise UserError(f"[pretrain]: {error}") from None
    model = Decoder(shape)
    initialise(model, config.seed)
    return model


def loop_config(config: PretrainConfig, shape: ModelConfig, bytes_per_token: float) -> LoopConfig:
    """The loop's settings; a budget in tokens or FLOPs becomes a number of steps here."""
    flops_per_token = shape.training_flops_per_token(config.context)
    steps = None
    if config.tokens is not None:
        steps = max(1, config.tokens // config.batch_tokens)
    elif config.flops is not None:
        steps = max(1, int(config.flops / (flops_per_token * config.batch_tokens)))
    seconds = None if steps is not None else 60 * (config.minutes or DEFAULT_MINUTES)
    compute_dtype = resolve_dtype(config.precision, hardware.describe().computes_bfloat16)
    return LoopConfig(
        title="pretrain",
        steps=steps,
        seconds=seconds,
        rows_per_step=config.batch_tokens // config.context,
        micro_rows=max(1, config.micro_batch_tokens // config.context),
        learning_rates=LearningRates(
            config.matrix_learning_rate,
            config.embedding_learning_rate,
            config.head_learning_rate,
            config.weight_decay,
        ),
        warmup=config.warmup,
        cooldown=config.cooldown,
        compute_dtype=compute_dtype,
        compile=resolve_compile(config.compile, steps, seconds, flops_per_token * config.batch_tokens),
        evaluations=config.evaluations,
        checkpoint_seconds=60 * config.checkpoint_minutes,
        bytes_per_token=bytes_per_token,
        flops_per_token=flops_per_token,
        peak_flops=hardware.peak_flops(compute_dtype, size=2048, tries=3),
        track=config.track,
    )


def save_trained(model: Decoder, words: Tokenizer, tokenizer: Path, out: Path) -> None:
    """Write the model folder: weights in their own type, configuration, and the tokenizer's files."""
    model.compute_dtype = None
    save_model(model, out, words.bos_id, [words.eos_id, words.end_id], words.pad_id)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, out / name)


def summarise(
    shape: ModelConfig, preset: str, context: int, loop: LoopConfig, result: TrainingResult
) -> dict[str, Any]:
    """What the report shows of a training run; sizes in parameters and tokens, speeds per second."""
    flops_per_second = result.tokens_per_second * loop.flops_per_token
    return {
        "preset": preset,
        "layers": len(shape.layers),
        "width": shape.width,
        "vocab_size": shape.vocab_size,
        "context": context,
        "parameters": shape.parameters(),
        "matmul_parameters": shape.matmul_parameters(),
        "steps": result.steps,
        "tokens": result.tokens,
        "flops": result.tokens * loop.flops_per_token,
        "dtype": str(loop.compute_dtype).removeprefix("torch."),
        "compiled": loop.compile,
        "measured": {
            "threads": torch.get_num_threads(),
            "train_seconds": result.seconds,
            "tokens_per_second": result.tokens_per_second,
            "flops_per_second": flops_per_second,
            "peak_flops": loop.peak_flops,
            "utilisation": flops_per_second / loop.peak_flops,
        },
    }


@dataclass
class Samples:
    """Texts the model writes on the way, kept as JSON lines in `path`; the same prompts each time, greedily."""

    path: Path
    model: Decoder
    words: Tokenizer
    prompts: tuple[str, ...]

    def take(self, step: int) -> None:
        """Append what the model writes now; lines of a later step, from before a kill, are dropped."""
        generator = Generator(self.model, [self.words.eos_id, self.words.end_id])
        prompts = [[self.words.bos_id, *self.words.encode(prompt)] for prompt in self.prompts]
        room = generator.max_positions - max((len(prompt) for prompt in prompts), default=0)
        if room < 1:
            raise UserError("[pretrain]: a `sample_prompts` text is longer than `context`")
        answers = generator.generate(prompts, Sampling(max_tokens=min(SAMPLE_TOKENS, room)))
        lines = [line for line in read_lines(self.path) if line["step"] < step]
        lines += [
            {"step": step, "prompt": prompt, "text": self.words.decode(answer)}
            for prompt, answer in zip(self.prompts, answers, strict=True)
        ]
        write_atomically(self.path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _epochs(result: TrainingResult, shards: Shards) -> float:
    """How often the training text was seen."""
    return round(result.tokens / shards.total_tokens, 3)
