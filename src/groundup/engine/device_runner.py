"""A scheduled step, computed by the model on a GPU: all tokens in one row, one text behind the other.

Nothing is padded or gathered: linear maps see all tokens at once, attention reads keys and values in the blocks where
they lie (`paged_attention.py`), and all else of a layer treats each token by itself. What cannot be computed so is left
to `runner.py`; `is_packable` tells.

Shape suffixes: m tokens, d model width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

from groundup.engine.blocks import blocks_for
from groundup.engine.decode_graphs import CudaRecorder, DecodeGraphs, Record
from groundup.engine.device_store import DeviceStore
from groundup.engine.model_matrices import activation_dtype
from groundup.engine.paged_attention import KERNEL_DTYPES, is_known_to_the_kernel
from groundup.engine.runner import StepRunner, depends_on_the_longest, is_recurrent
from groundup.engine.sequence import Chunk, Step
from groundup.engine.step_inputs import StepInputs, step_inputs
from groundup.engine.step_tables import padded, step_ids, step_tables
from groundup.model.language_model import LanguageModel
from groundup.model.lora import Adapter
from groundup.model.specs import Attention, Experts
from groundup.quantize.convert import quantized_format

# Graphics processors with kernels for this: from Ampere (2020) on.
LEAST_CAPABILITY = (8, 0)


class DeviceRunner(StepRunner):
    """A decoder that `is_packable`, and the blocks in which its sequences lie.

    blocks: of so many tokens (`block_size`) on the model's device. host_blocks: further ones in the host's memory.
    most_texts: of a step. record: see `DecodeGraphs`; None where no step is to be recorded.
    compile_with: the backend of `torch.compile` by which the model's layers are compiled, in place; None: they are not.
    window_blocks: for layers that see a window, if these have their own.
    """

    def __init__(
        self,
        model: LanguageModel,
        blocks: int,
        host_blocks: int,
        block_size: int,
        most_texts: int,
        record: Record | None = None,
        compile_with: str | None = None,
        window_blocks: int | None = None,
    ) -> None:
        super().__init__(model)
        self._store = DeviceStore(model, blocks, host_blocks, block_size, window_blocks)
        self._graphs: DecodeGraphs | None = None
        if record is not None and is_recordable(model):
            longest = blocks_for(model.config.max_positions, block_size)
            self._graphs = DecodeGraphs(self._hidden, record, model.device, most_texts, longest, block_size)
        self._is_compiled = compile_with is not None
        if compile_with is not None:
            for layer in model.layers:
                layer.compile(backend=compile_with, dynamic=True)

    @torch.no_grad()
    def run(self, step: Step) -> Tensor:
        self._store.copy(step.copies, step.window_copies)
        has_adapters = any(chunk.sequence.adapter is not None for chunk in step.chunks)
        return self._adapted(step.chunks) if has_adapters else self._plain(step.chunks)

    def _plain(self, chunks: list[Chunk]) -> Tensor:
        tokens, store, block_size = sum(chunk.length for chunk in chunks), self._store, self._store.block_size
        ids_m, tables = np.array(step_ids(chunks)), step_tables(chunks, block_size, store.has_windows)
        size = None if self._graphs is None or tokens > len(chunks) else self._graphs.size_for(tokens)
        if self._graphs is None or size is None:
            return self._hidden(step_inputs(ids_m, tables, block_size, self.model.device))
        tables = padded(tables, size, store.padding_block, block_size, store.window_padding_block)
        ids_m = np.pad(ids_m, (0, size - tokens))
        return self._graphs.run(step_inputs(ids_m, tables, block_size, torch.device("cpu")))[:tokens]

    @contextmanager
    def adapted(self, adapters: Sequence[Adapter | None]) -> Iterator[None]:
        """Layers that were compiled have no hooks, so they are computed as they were before."""
        has_adapters = any(adapter is not None for adapter in adapters)
        stance = torch.compiler.set_stance("force_eager") if self._is_compiled and has_adapters else nullcontext()
        with stance, super().adapted(adapters):
            yield

    def _adapted(self, chunks: list[Chunk]) -> Tensor:
        """A step with adapters, each token being a row to them; one that was recorded would have no hooks."""
        adapters = [chunk.sequence.adapter for chunk in chunks for _ in range(chunk.length)]
        tables = step_tables(chunks, self._store.block_size, self._store.has_windows)
        ids_m = np.array(step_ids(chunks))
        inputs = step_inputs(ids_m, tables, self._store.block_size, self.model.device)
        with self.adapted(adapters):
            return self._hidden(inputs)

    def _hidden(self, inputs: StepInputs) -> Tensor:
        """The final activations (m, d)."""
        cache = self._store.cache(inputs.attention, inputs.windowed)
        return self.model.hidden(inputs.ids_m[None], inputs.positions_m[None], cache=cache)[0]


def device_runner(
    model: LanguageModel,
    blocks: int,
    host_blocks: int,
    block_size: int,
    most_texts: int,
    compiles: bool,
    window_blocks: int | None = None,
) -> DeviceRunner:
    """As a GPU runs it: one-token steps are CUDA graphs, and layers are compiled if that is wanted."""
    compiler, recorder = "inductor" if compiles else None, CudaRecorder(model.device)
    return DeviceRunner(model, blocks, host_blocks, block_size, most_texts, recorder, compiler, window_blocks)


def runs_on_device(model: LanguageModel) -> bool:
    """Whether a model is packable, and lies on a GPU in a type for which this has kernels."""
    dtype = activation_dtype(model)
    return is_packable(model) and dtype in KERNEL_DTYPES and _has_kernels(model.device)


def _has_kernels(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY


def is_packable(model: LanguageModel) -> bool:
    """Whether all that a layer does of a token follows from the token itself and from attention to blocks."""
    config = model.config
    if is_recurrent(model) or depends_on_the_longest(model):
        return False
    if config.ngram_buckets or config.induction is not None or config.relative_positions is not None:
        return False
    return all(
        isinstance(layer.mixer, Attention) and is_known_to_the_kernel(layer.mixer) and layer.cross is None
        for layer in config.layers
    )


def is_recordable(model: LanguageModel) -> bool:
    """Whether one-token steps never wait for the device: how many tokens an expert gets is known only there.

    Quantized products are left out: made of PyTorch's operators, they take longer than launching them does.
    """
    has_experts = any(isinstance(layer.feed_forward, Experts) for layer in model.config.layers)
    return not has_experts and quantized_format(model) is None
