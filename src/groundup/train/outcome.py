"""What every training stage leaves behind: samples on the way, a model folder, a summary."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from groundup.engine.engine import Engine
from groundup.formats.huggingface import save_model
from groundup.model.language_model import LanguageModel
from groundup.record.metrics import read_lines, say
from groundup.storage import write_atomically, write_json
from groundup.tokens.tokenizer import Tokenizer
from groundup.train.learner import TextModel, stacks, text_part
from groundup.train.loop import TrainingResult
from groundup.train.plan import LoopConfig

SAMPLE_TOKENS = 64
SAMPLES_FILE = "samples.jsonl"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def save_trained(model: TextModel, words: Tokenizer, tokenizer: Path, out: Path) -> None:
    """Write the model folder: weights in their own type, configuration, and the tokenizer's files.

    words: the tokenizer of the folder `tokenizer`, with further control tokens if the model needs them.
    """
    for stack in stacks(model):
        stack.compute_dtype = None
    save_model(model, out, words.bos_id, [words.eos_id, words.end_id], words.pad_id)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, out / name)
    if words.vocab_size != Tokenizer.load(tokenizer).vocab_size:
        words.save(out)


def summarise(model: TextModel, context: int, loop: LoopConfig, result: TrainingResult) -> dict[str, Any]:
    """What the report shows of a training run; sizes in parameters and tokens."""
    shape, text = model.config, text_part(model).config
    return {
        "preset": shape.family,
        "layers": sum(len(stack.layers) for stack in stacks(model)),
        "width": text.width,
        "vocab_size": text.vocab_size,
        "context": context,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "matmul_parameters": shape.matmul_parameters(),
        "steps": result.steps,
        "tokens": result.tokens,
        "flops": result.steps * loop.positions_per_step * loop.flops_per_token,
        "dtype": str(loop.compute_dtype).removeprefix("torch."),
        "compiled": loop.compile,
    }


def served_in(format: str | None, title: str, result: TrainingResult) -> dict[str, Any]:
    """What the summary has of a model to be served in this format: its name, and in how many steps it learned so.

    Where that is none, the user is told: figures are of the rounded model, which then never saw a rounded number.
    """
    if format is None:
        return {}
    if result.rounded_steps == 0:
        say(
            f"{title}: nothing was rounded in any of these {result.steps} steps, so that this model has not learned "
            f"for {format}; give it a larger budget"
        )
    return {"quantize": format, "rounded_steps": result.rounded_steps}


def write_speed(out: Path, loop: LoopConfig, result: TrainingResult) -> None:
    """Write `measured.json`: how fast it went, which two equal runs never agree on, and so is no content."""
    flops_per_second = result.tokens_per_second * loop.flops_per_token
    write_json(
        out / "measured.json",
        {
            "threads": torch.get_num_threads(),
            "train_seconds": result.seconds,
            "tokens_per_second": result.tokens_per_second,
            "flops_per_second": flops_per_second,
            "peak_flops": loop.peak_flops,
            "utilisation": flops_per_second / loop.peak_flops,
        },
    )


@dataclass
class Samples:
    """Texts the model writes on the way, kept as JSON lines in `path`; the same prompts each time, greedily.

    prompts: what to show as the prompt → its tokens.
    """

    path: Path
    model: LanguageModel
    words: Tokenizer
    prompts: Mapping[str, Sequence[int]]

    def take(self, step: int) -> None:
        """Append what the model writes now; lines of a later step, from before a kill, are dropped."""
        engine = Engine(self.model, stop_ids=[self.words.eos_id, self.words.end_id])
        fitting = {label: ids for label, ids in self.prompts.items() if len(ids) < engine.max_positions}
        answers = engine.generate(list(fitting.values()), max_tokens=SAMPLE_TOKENS)
        lines = [line for line in read_lines(self.path) if line["step"] < step]
        lines += [
            {"step": step, "prompt": label, "text": self.words.decode(answer.tokens)}
            for label, answer in zip(fitting, answers, strict=True)
        ]
        write_atomically(self.path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
