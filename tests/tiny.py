"""Models and runs small enough to check by brute force, with weights under which every part shows in the logits."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from groundup.model.attention import SelfAttention
from groundup.model.config import EncoderDecoderConfig, ModelConfig
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.language_model import LanguageModel
from groundup.model.presets import PRESETS, build_config
from groundup.model.specs import Attention, Experts, LayerSpec

VOCABULARY = 64

_CONFIGS = {name: build_config(name, depth=2, vocab_size=VOCABULARY, context=16) for name in sorted(PRESETS)}
# Presets by what they learn: decoders continue text, the others guess what is hidden of it.
ENCODER_DECODERS = [name for name, one in _CONFIGS.items() if isinstance(one, EncoderDecoderConfig)]
DECODERS = [name for name, one in _CONFIGS.items() if name not in ENCODER_DECODERS and one.causal]
ENCODERS = [name for name in _CONFIGS if name not in (*DECODERS, *ENCODER_DECODERS)]
# Mixtures of experts.
SPARSE = [name for name in DECODERS if any(isinstance(one.feed_forward, Experts) for one in _CONFIGS[name].layers)]
# Decoders that differ in what a model does around its layers or remembers in them; the layers of others are compared
# family by family.
TYPICAL = ["gpt2", "gpt3", "groundup", "llama", "nanochat", "palm", "mamba", "mamba2", "qwen3_next", "lfm2"]

# Settings of `PretrainConfig` for a run of a second.
PRETRAINING: dict[str, Any] = {
    "depth": 2,
    "width": 32,
    "head_dim": 16,
    "context": 64,
    "tokens": 24 * 512,
    "batch_tokens": 512,
    "micro_batch_tokens": 256,
    "precision": "float32",
    "compile": "never",
    "evaluations": 3,
}


def tiny_config(preset: str, kv_heads: int | None = None, context: int = 64) -> ModelConfig:
    """Two layers of width 32, two heads of 16."""
    config = build_config(preset, depth=2, vocab_size=VOCABULARY, context=context, width=32, head_dim=16)
    if kv_heads is None:
        return config
    return replace(config, layers=tuple(_with_kv_heads(layer, kv_heads) for layer in config.layers))


def _with_kv_heads(layer: LayerSpec, kv_heads: int) -> LayerSpec:
    if not isinstance(layer.mixer, Attention):
        return layer
    return replace(layer, mixer=replace(layer.mixer, kv_heads=kv_heads))


def hot_decoder(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> LanguageModel:
    """A decoder in which no weight is zero or one, so that a missing or misplaced part changes the logits."""
    return hot_model(config, seed, dtype)


def hot_model(
    config: ModelConfig | EncoderDecoderConfig, seed: int = 0, dtype: torch.dtype = torch.float64
) -> LanguageModel | EncoderDecoder:
    """The same of any kind."""
    model = EncoderDecoder(config) if isinstance(config, EncoderDecoderConfig) else LanguageModel(config)
    heat(model, seed)
    return model.to(dtype).eval()


@torch.no_grad()
def heat(model: nn.Module, seed: int) -> None:
    """Re-randomise every parameter in place: embeddings of size 1, matrices that double what passes, uneven norms."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "log_rate" in name:  # of a recurrent state that keeps most from token to token
            parameter.copy_(0.5 * noise - 2)
        elif "gate_bias" in name:  # holds followers back, or every greedy text would go round in circles
            parameter.copy_(noise - 1)
        elif name.endswith("bias"):  # small and without a mean, or a tied head would always choose the same token
            parameter.copy_(0.2 * noise)
        elif name.endswith("log_rate"):  # a state that lasts
            parameter.copy_(noise - 2)
        elif name.endswith("norm_weight"):  # more than the embedding, or a tied head would repeat the last token
            parameter.copy_(3 + 1.5 * noise)
        elif ".step." in name or ".selection." in name:  # what a state takes in is the product of three, a sum
            parameter.copy_(0.5 * noise / parameter.shape[-1] ** 0.5)
        elif parameter.ndim < 2:
            parameter.copy_(1 + 0.5 * noise)
        elif "embed" in name or "positions" in name:
            parameter.copy_(noise)
        else:
            parameter.copy_(2 * noise / parameter.shape[-1] ** 0.5)
    for module in model.modules():
        if isinstance(module, SelfAttention) and module.spec.scale is not None:
            # Scores that are not divided by the root of the head size (T5) are made as large as those that are.
            module.query.weight.mul_(module.spec.head_dim**-0.5 / module.spec.scale)


@torch.no_grad()
def greedy(model: LanguageModel, prompt: Sequence[int], count: int) -> list[int]:
    """The likeliest token each time, found from all before it, without a cache."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def random_ids(*shape: int, seed: int = 0, vocabulary: int = VOCABULARY) -> torch.Tensor:
    """Token ids, int64."""
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(seed))


class ListStream:
    """Documents in memory as a stream of tokens, one byte of text per token."""

    def __init__(self, documents: Sequence[Sequence[int]]) -> None:
        self._tokens = np.array([token for document in documents for token in document], dtype=np.int64)
        self.offsets = np.cumsum([0, *map(len, documents)], dtype=np.int64)
        self.total_tokens = self.total_bytes = len(self._tokens)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start <= stop <= self.total_tokens
        return self._tokens[start:stop]
