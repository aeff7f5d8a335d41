"""Weights to start training from."""

import torch
from torch import nn

from groundup.model.attention import SelfAttention
from groundup.model.experts import ExpertLinear, ExpertNetworks, MixtureOfExperts
from groundup.model.feedforward import DenseFeedForward
from groundup.model.induction import NgramHeads
from groundup.model.latent import LatentSelfAttention
from groundup.model.parts import Linear, Normalise
from groundup.model.shortcuts import NgramEmbedding, ResidualMix, TokenValues
from groundup.model.transformer import Decoder


@torch.no_grad()
def initialise(model: Decoder, seed: int) -> None:
    """Fill a model's weights, the same on every machine for one seed.

    Inputs of a layer are uniform with variance 1/width; what a layer adds to the residual starts at zero, so that the
    model begins as its embedding (both as in nanochat). N-gram and induction tables and gates start at zero, residual
    scalars so that a layer's input passes unchanged but for a tenth of the first. A head of its own starts near zero,
    so that the first loss is ln(vocab); a tied one is normal with the usual 0.02, divided by the factor on its
    logits if there is one (PaLM).
    """
    generator = torch.Generator().manual_seed(seed)
    bound = (3 / model.config.width) ** 0.5
    tied_std = 0.02 / (model.config.logit_scale or 1.0)
    nn.init.normal_(model.embedding.weight, std=tied_std if model.head is None else 0.8, generator=generator)
    if model.head is not None:
        nn.init.normal_(model.head.weight, std=0.001, generator=generator)
    if model.head_bias is not None:
        nn.init.zeros_(model.head_bias)
    if model.positions is not None:
        nn.init.normal_(model.positions.weight, std=0.02, generator=generator)
    for linear in filter(None, (model.embedding_in, model.embedding_out)):
        nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
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
            for vector in (module.head_gate, module.sinks):
                if vector is not None:
                    nn.init.zeros_(vector)
        elif isinstance(module, LatentSelfAttention):
            for part in filter(None, (module.query_down, module.query, module.latent, module.key_value)):
                nn.init.uniform_(part.weight, -bound, bound, generator=generator)
            nn.init.zeros_(module.output.weight)
        elif isinstance(module, Normalise):
            module.reset()
        elif isinstance(module, Linear | ExpertLinear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        elif isinstance(module, MixtureOfExperts):
            nn.init.normal_(module.router.weight, std=0.02, generator=generator)
            if module.correction is not None:
                nn.init.zeros_(module.correction)
            if module.shared_gate is not None:
                nn.init.zeros_(module.shared_gate.weight)
        elif isinstance(module, DenseFeedForward | ExpertNetworks):
            nn.init.uniform_(module.up.weight, -bound, bound, generator=generator)
            if module.gate is not None:
                nn.init.uniform_(module.gate.weight, -bound, bound, generator=generator)
            nn.init.zeros_(module.down.weight)
