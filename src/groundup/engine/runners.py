"""Who computes the steps of a model: the kernels of the CPU, packed attention of a GPU, or the model as it is."""

import torch

from groundup.engine.blocks import BLOCK_TOKENS
from groundup.engine.compiled import CompiledRunner, is_compilable
from groundup.engine.device_runner import device_runner, runs_on_device
from groundup.engine.paged_attention import KERNEL_BLOCK_TOKENS
from groundup.engine.runner import Runner, StepRunner
from groundup.engine.twin import twin_of
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.language_model import LanguageModel


def block_size_of(model: LanguageModel | EncoderDecoder) -> int:
    """Tokens of a block, as what computes the model wants it."""
    return KERNEL_BLOCK_TOKENS if isinstance(model, LanguageModel) and runs_on_device(model) else BLOCK_TOKENS


def largest_block_size(device: torch.device) -> int:
    """The same of whichever model on this device, at most."""
    return BLOCK_TOKENS if device.type == "cpu" else KERNEL_BLOCK_TOKENS


def runner_of(
    model: LanguageModel | EncoderDecoder,
    blocks: int,
    host_blocks: int,
    most_tokens: int,
    most_texts: int,
    dtype: torch.dtype,
    compiles: bool = False,
    window_blocks: int | None = None,
) -> StepRunner:
    """What computes the model's steps.

    blocks, host_blocks: of the size that `block_size_of` gives, and further ones in the host's memory.
    most_tokens, most_texts: of a step. dtype: of keys and values, one that `cache_dtype` gives.
    compiles: whether the layers of a model that a GPU runs are compiled.
    window_blocks: for layers that see a window, if these have their own; and as many more as there are on the host.
    Raises ValueError where it runs no such model, and where there is no memory for so many blocks.
    """
    if isinstance(model, LanguageModel) and is_compilable(model) and not compiles:
        own = None if window_blocks is None else window_blocks + host_blocks
        return CompiledRunner(model, blocks + host_blocks, most_tokens, dtype, own)
    if isinstance(model, LanguageModel) and runs_on_device(model):
        size = block_size_of(model)
        return device_runner(model, blocks, host_blocks, size, most_texts, compiles, window_blocks)
    if compiles:
        raise ValueError("`compile_layers` is for models that a GPU runs as docs/engine.md says; this is none of them")
    return Runner(twin_of(model), blocks, host_blocks, window_blocks)
