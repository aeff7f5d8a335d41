"""Models and tokenizers for the tests of GGUF: every family that llama.cpp knows, widths that fill whole blocks."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from encoder_references import encoder
from references import reference
from tiny_keys import rotary
from variants_gemma_olmo import layers

from groundup.formats.huggingface import load_language_model
from groundup.model.language_model import LanguageModel

WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 520, "num_hidden_layers": 3}
WIDE_GPT2: dict[str, Any] = {"n_embd": 64, "n_inner": 96, "vocab_size": 520, "n_layer": 3}
EXPERTS: dict[str, Any] = {"moe_intermediate_size": 32}
GEMMA2: dict[str, Any] = {"head_dim": 16, "query_pre_attn_scalar": 16, "layer_types": None}
GEMMA3: dict[str, Any] = GEMMA2 | {"num_hidden_layers": 7}
LLAMA3: dict[str, Any] = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}

# Name → (variant of `references.DECODERS`, changes of its keys): models that llama.cpp computes as we do.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", WIDE),
    "llama tied": ("llama tied", WIDE),
    "llama one kv head": ("llama one kv head", WIDE),
    "llama wide heads": ("llama wide heads", WIDE | {"head_dim": 24}),
    "llama biases": ("llama biases", WIDE),
    "llama linear": ("llama linear", WIDE),
    "llama llama3": ("llama", WIDE | rotary("llama3", factor=4.0, **LLAMA3)),
    "llama yarn": ("llama yarn", WIDE),
    "llama yarn, its own attention factor": (
        "llama",
        WIDE | rotary("yarn", factor=4.0, original_max_position_embeddings=32, attention_factor=1.5),
    ),
    "mistral": ("mistral no window", WIDE | {"head_dim": 16}),
    "mixtral": ("mixtral", WIDE),
    "qwen2": ("qwen2", WIDE),
    "qwen2 tied": ("qwen2", WIDE | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", WIDE | {"head_dim": 24}),
    "qwen3 tied, yarn": (
        "qwen3",
        WIDE | rotary("yarn", factor=4.0, original_max_position_embeddings=32) | {"tie_word_embeddings": True},
    ),
    "qwen2_moe": ("qwen2_moe", WIDE | EXPERTS | {"shared_expert_intermediate_size": 64}),
    "qwen3_moe": ("qwen3_moe", WIDE | EXPERTS | {"norm_topk_prob": True}),
    "qwen3_moe tied": ("qwen3_moe", WIDE | EXPERTS | {"norm_topk_prob": True, "tie_word_embeddings": True}),
    "gemma": ("gemma", WIDE | {"head_dim": 24}),
    "gemma2": ("gemma2", WIDE | GEMMA2),
    "gemma2 of 46 layers": ("gemma2", WIDE | GEMMA2 | {"num_hidden_layers": 46, "head_dim": 24}),
    "gemma2 chosen layers": ("gemma2 chosen layers", WIDE | GEMMA2 | layers("fww")),
    "gemma3_text": ("gemma3_text", WIDE | GEMMA3),
    "gemma3_text linear": ("gemma3_text linear", WIDE | GEMMA3),
    "gemma3_text pattern": ("gemma3_text", WIDE | GEMMA3 | {"sliding_window_pattern": 3}),
    "gemma3_text untied, softcap": (
        "gemma3_text softcap",
        WIDE | GEMMA3 | {"tie_word_embeddings": False},
    ),
    "gemma3_text no windows": ("gemma3_text no windows", WIDE | GEMMA2 | layers("ff")),
    "gpt2": ("gpt2", WIDE_GPT2),
    "gpt2 untied": ("gpt2", WIDE_GPT2 | {"tie_word_embeddings": False}),
}

WIDE_BERT: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 520}
# The same for encoders: name → (variant of `variants_encoders.VARIANTS`, changes of its keys).
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", WIDE_BERT),
    "bert head of its own": ("bert head of its own", WIDE_BERT),
    "bert approximate gelu": ("bert approximate gelu", WIDE_BERT),
    "distilbert": ("distilbert", {"dim": 64, "hidden_dim": 96, "vocab_size": 520}),
}


@cache
def saved(name: str, hot: bool, folder: Path) -> Path:
    """The folder that `transformers` saves a model of `MODELS` or `ENCODERS` in."""
    variant, changes = (MODELS | ENCODERS)[name]
    out = folder / f"{name} {hot}"
    (encoder if name in ENCODERS else reference)(variant, hot, **changes).save_pretrained(out)
    return out


def model_of(name: str, folder: Path, hot: bool = True) -> LanguageModel:
    """One of `MODELS` or `ENCODERS` with random weights; hot: unlike any initial ones."""
    return load_language_model(saved(name, hot, folder))


def with_cut(source: Path, out: Path, name: str) -> Path:
    """A copy of a tokenizer folder that cuts text as `name` says: gpt-2, qwen2 or llama-bpe."""
    shutil.copytree(source, out)
    spec = json.loads((out / "tokenizer.json").read_text())
    if name == "gpt-2":
        spec["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    if name == "llama-bpe":
        pattern = spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]
        pattern["Regex"] = pattern["Regex"].replace(r"|\p{N}|", r"|\p{N}{1,3}|")
        spec["model"]["ignore_merges"] = True
    (out / "tokenizer.json").write_text(json.dumps(spec))
    return out
