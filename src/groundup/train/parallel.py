"""Several processes training one model: PyTorch's process group, as `torchrun` sets it up.

Each rank computes the loss of its own rows as a sum; gradients are added, never averaged, because the loss was already
divided by the global number of targets. The result does not depend on the number of ranks.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# How long the other ranks wait while the first prepares a stage: reading and tokenising a large corpus takes hours.
STAGE_TIMEOUT = timedelta(days=2)


@dataclass(frozen=True)
class Ranks:
    """This process's place among its peers; (0, 1) when it is alone."""

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def add(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, in place."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, equal in shape, one after the other in their first dimension."""
        if self.count == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum every gradient over the ranks, in one message."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def agree(self, value: float) -> float:
        """The leading rank's number, on every rank: for decisions that depend on a clock."""
        if self.count == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, src=0)
        return float(shared)

    def share(self, value: Any) -> Any:
        """The leading rank's object, on every rank."""
        boxed = [value]
        if self.count > 1:
            dist.broadcast_object_list(boxed, src=0)
        return boxed[0]


def join_ranks() -> Ranks:
    """Join the process group that torchrun describes in the environment, or stay alone."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Ranks()
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=STAGE_TIMEOUT)
    return Ranks(dist.get_rank(), dist.get_world_size())


def leave_ranks() -> None:
    """Wait for all ranks and end the process group."""
    dist.barrier()
    dist.destroy_process_group()
