"""An encoder of one sequence and a decoder of another that attends to it.

Shape suffixes: b batch, t target time, s source time, d model width.
"""

import torch
from torch import Tensor, nn

from groundup.model.config import EncoderDecoderConfig
from groundup.model.context import Cache, Memory
from groundup.model.experts import Routing
from groundup.model.language_model import LanguageModel, mask_segments, token_positions
from groundup.model.stack import Stack


class EncoderDecoder(nn.Module):
    """Two stacks; a text encoder shares the decoder's embedding (Raffel et al. 2020)."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Stack(config.encoder)
        self.decoder = LanguageModel(config.decoder)

    @property
    def device(self) -> torch.device:
        return self.decoder.device

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to compare two copies with, the same each time."""
        (ids,) = self.decoder.example()
        return ids.flip(1), ids

    def forward(
        self,
        source: Tensor,
        target_ids: Tensor,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        cache: Cache | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Logits (batch, target time, vocab) of the token after each of `target_ids`.

        source: token ids (batch, source time); masks as in `LanguageModel.forward`.
        cache: holds the target tokens that precede `target_ids`, and takes these up.
        memory: of `encode` for this source, where it is known already.
        """
        positions = token_positions(target_ids, target_mask, 0 if cache is None else cache.length)
        memory = memory or self.encode(source, token_positions(source, source_mask), mask_segments(source_mask))
        segments = mask_segments(target_mask)
        return self.decoder.logits(self.decoder.hidden(target_ids, positions, segments, cache, memory=memory))

    def encode(
        self,
        source: Tensor,
        positions: Tensor,
        segments: Tensor | None = None,
        routings: list[Routing] | None = None,
    ) -> Memory:
        """What the decoder sees of the source; positions, segments, routings: see `Stack.run`."""
        x_bsd = self.decoder.embed(source, positions)
        return Memory(self.encoder.run(x_bsd, positions, segments, routings=routings), segments)
