"""A contrastive step on one of two ranks: importable by name, as spawned processes need."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from tiny import heat
from tiny_vision import NAMES, SIDE, caption, dual_encoder

from groundup.model.dual_encoder import DualEncoder
from groundup.train.contrastive import Pairs, contrastive_gradients, sigmoid_loss, softmax_loss
from groundup.train.parallel import join_ranks


def hot_model(sigmoid: bool) -> DualEncoder:
    """A dual encoder in float64 in which every part takes part."""
    model = DualEncoder(dual_encoder(sigmoid=sigmoid))
    heat(model, seed=0)
    return model.double()


def pairs(count: int) -> Pairs:
    """Captions, and pictures of noise."""
    ids = torch.tensor([caption(*NAMES[(5 * i) % len(NAMES)], ("a", "the")[: i % 3]) for i in range(count)])
    noise = torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Pairs(ids, noise)


def work(rank: int, port: int, out: Path, sigmoid: bool, count: int) -> None:
    """This rank's half of the pairs; leaves `rank-N.safetensors` with the loss and the summed gradients."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    ranks, model = join_ranks(), hot_model(sigmoid)
    half = pairs(count).split(count // 2)[rank]
    loss = contrastive_gradients(model, half, sigmoid_loss if sigmoid else softmax_loss, 2, ranks)
    ranks.add_gradients(model.parameters())
    found = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    save_file(found | {"loss": loss.total}, out / f"rank-{rank}.safetensors")
    dist.destroy_process_group()
