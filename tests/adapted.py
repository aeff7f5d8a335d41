"""Small adapters as PEFT writes them, and models with their products added to the weights, straight from the file."""

import json
import math
from copy import deepcopy
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from groundup.model.language_model import LanguageModel

ATTENTION = ["mixer.query", "mixer.key", "mixer.value", "mixer.output"]
# Name → (rank, alpha, layers).
KINDS = {
    "all": (3, 5.0, [*ATTENTION, "feed_forward.up", "feed_forward.down"]),
    "few": (2, 2.0, ["mixer.value", "feed_forward.gate"]),
    "attention": (3, 5.0, ATTENTION),
}
# Each leaves layers alone that the other changes.
BOTH = ("all", "few")
THEIRS = {
    "mixer.query": "self_attn.q_proj",
    "mixer.key": "self_attn.k_proj",
    "mixer.value": "self_attn.v_proj",
    "mixer.output": "self_attn.o_proj",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
}


def write_adapter(folder: Path, model: LanguageModel, kind: str) -> Path:
    """An adapter as PEFT would write it, with matrices that are not zero; deterministic."""
    rank, alpha, parts = KINDS[kind]
    generator = torch.Generator().manual_seed(len(kind) + rank)
    tensors = {}
    for layer in range(len(model.layers)):
        for part in parts:
            outputs, inputs = model.get_submodule(f"layers.{layer}.{part}").weight.shape
            name = f"base_model.model.model.layers.{layer}.{THEIRS[part]}"
            for side, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
                noise = torch.randn(shape, generator=generator, dtype=torch.float64) / math.sqrt(shape[1])
                tensors[f"{name}.lora_{side}.weight"] = noise
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = [THEIRS[part].split(".")[1] for part in parts]
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": targets, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@torch.no_grad()
def merged_with(model: LanguageModel, folder: Path, kind: str) -> LanguageModel:
    """The model with W + alpha / r · B A in place of each W, straight from the file."""
    rank, alpha, parts = KINDS[kind]
    tensors, merged = load_file(folder / "adapter_model.safetensors"), deepcopy(model)
    for layer in range(len(model.layers)):
        for part in parts:
            name = f"base_model.model.model.layers.{layer}.{THEIRS[part]}"
            change = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
            merged.get_submodule(f"layers.{layer}.{part}").weight += alpha / rank * change
    return merged
