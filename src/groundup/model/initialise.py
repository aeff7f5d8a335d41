"""Weights to start training from."""

import torch
from torch import nn

from groundup.model.attention import SelfAttention
from groundup.model.feedforward import DenseFeedForward
from groundup.model.induction import NgramHeads
from groundup.model.shortcuts import NgramEmbedding, ResidualMix, TokenValues
from groundup.model.transformer import Decoder


@torch.no_grad()
def initialise(model: Decoder, seed: int) -> None:
    """Fill a model's weights, the same on every machine for one seed.

    Inputs of a layer are uniform with variance 1/width; what a layer adds to the residual starts at zero, so that the
    model begins as its embedding (both as in nanochat). N-gram and induction tables and gates start at zero, residual
    scalars so that a layer's input passes unchanged but for a tenth of the first. A head of its own starts near zero,
    so that the first loss is ln(vocab); a tied one is normal with the usual 0.02.
    """
    generator = torch.Generator().manual_seed(seed)
    bound = (3 / model.config.width) ** 0.5
    nn.init.normal_(model.embedding.weight, std=0.02 if model.head is None else 0.8, generator=generator)
    if model.head is not None:
        nn.init.normal_(model.head.weight, std=0.001, generator=generator)
    for module in model.modules():
        if isinstance(module, TokenValues):
            nn.init.uniform_(module.table.weight, -bound, bound, generator=generator)
            nn.init.zeros_(module.gate)
        elif isinstance(module, NgramEmbedding):
            for table in module.tables.parameters():
                nn.init.zeros_(table)
        elif isinstance(module, NgramHeads):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
            nn.init.ones_(module.weight)
        elif isinstance(module, ResidualMix):
            module.scalars.fill_(0.05)
            module.scalars[:2] = torch.tensor((1.0, 0.1))
        elif isinstance(module, SelfAttention):
            for linear in (module.query, module.key, module.value):
                nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
            nn.init.zeros_(module.output.weight)
            if module.head_gate is not None:
                nn.init.zeros_(module.head_gate)
        elif isinstance(module, DenseFeedForward):
            for linear in filter(None, (module.up, module.gate)):
                nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
            nn.init.zeros_(module.down.weight)
