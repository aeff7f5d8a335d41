"""What each process does in the tests with several ranks: importable by name, as spawned processes need."""

import os
import socket
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from safetensors.torch import save_file
from tiny_training import UnevenRows, WatchedRanks, corruption_for, orthogonalise_exactly, train_tiny

from groundup.storage import write_json
from groundup.train import optim
from groundup.train.parallel import join_ranks


def train_on_two_ranks(jobs: list[tuple[Path, dict[str, Any]]]) -> None:
    """Run each job, (out, arguments of `train_tiny`), on two gloo ranks of this machine, one job after the other.

    Each rank leaves `rank-N.safetensors` (weights, gradients of the first step) and `rank-N.json` (rows asked for).
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    multiprocessing.spawn(_work, args=(port, jobs), nprocs=2)


def _work(rank: int, port: int, jobs: list[tuple[Path, dict[str, Any]]]) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    joined = join_ranks()
    optim.orthogonalise = orthogonalise_exactly
    for out, arguments in jobs:
        leave_traces(out, rank=joined.rank, count=joined.count, **arguments)
    dist.destroy_process_group()


def leave_traces(out: Path, rank: int, count: int, **arguments: Any) -> None:
    """Train and write down what this rank has seen and computed."""
    source = UnevenRows(corruption=corruption_for(arguments.get("preset", "nanochat")))
    ranks = WatchedRanks(rank, count)
    model = train_tiny(out, source=source, ranks=ranks, **arguments)
    tensors = {f"weight {name}": parameter.detach() for name, parameter in model.named_parameters()}
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    tensors |= {f"gradient {name}": one for name, one in zip(names, ranks.gradients[0], strict=True)}
    save_file(tensors, out / f"rank-{rank}.safetensors")
    write_json(out / f"rank-{rank}.json", source.asked)
