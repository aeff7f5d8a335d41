"""Steps in which each text gets one token, recorded once for each number of texts and replayed from then on.

A GPU then gets all work of a step at once (a CUDA graph), where launching it piece by piece from Python would take
longer than the work itself. Between two replays nothing may move: inputs lie in memory that is filled anew for each. A
step of as many texts as nobody records is to be filled up with texts that belong to nobody.

Shape suffixes: m new tokens, d model width.
"""

from bisect import bisect_left
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from groundup.engine.step_inputs import StepInputs, fill, widened

# Steps of so many texts are recorded, and of every eighth number from 8 on.
SMALL_SIZES = (1, 2, 4)
SIZE_STEP = 8
# More texts than these keep a GPU busy without being recorded.
MOST_RECORDED = 256
# Before a step is recorded, libraries choose their algorithms and take their memory.
WARM_UPS = 2

# Records a computation; what comes back does it again, and returns the same tensor with new numbers.
Record = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]


def recorded_sizes(most: int) -> list[int]:
    """The numbers of texts that are recorded where a step has at most so many."""
    sizes = [*SMALL_SIZES, *range(SIZE_STEP, MOST_RECORDED + 1, SIZE_STEP)]
    return sizes[: bisect_left(sizes, most) + 1]


class DecodeGraphs:
    """Recorded steps of one model.

    compute: the final activations (m, d) of a step. most: texts of a step. blocks: of a text, at most.
    """

    def __init__(
        self,
        compute: Callable[[StepInputs], Tensor],
        record: Record,
        device: torch.device,
        most: int,
        blocks: int,
        block_size: int,
    ) -> None:
        self._compute, self._record, self._device = compute, record, device
        self._sizes = recorded_sizes(most)
        self._blocks, self._block_size = blocks, block_size
        self._recorded: dict[int, tuple[StepInputs, Callable[[], Tensor]]] = {}

    def size_for(self, texts: int) -> int | None:
        """The least number of texts that is recorded and not below this one; None where there is none."""
        place = bisect_left(self._sizes, texts)
        return self._sizes[place] if place < len(self._sizes) else None

    def run(self, inputs: StepInputs) -> Tensor:
        """(m, d), valid until the next call. inputs: of as many texts as `size_for` said, with one token each."""
        size = len(inputs.ids_m)
        if size not in self._recorded:
            own = widened(inputs, self._blocks, self._block_size, self._device)
            self._recorded[size] = own, self._record(partial(self._compute, own))
        own, replay = self._recorded[size]
        fill(own, inputs)
        return replay()


def unrecorded(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Replays by computing: what machines without CUDA have."""
    return compute


class CudaRecorder:
    """Records CUDA graphs in memory that they share, as no two of them are ever replayed at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    compute()
            torch.cuda.current_stream().wait_stream(aside)
            # Other threads may go on using the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                out = compute()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay
