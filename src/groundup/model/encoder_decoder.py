"""An encoder of one sequence and a decoder of another that attends to it.

Shape suffixes: b batch, t target time, s source time, d model width.
"""

import torch
from torch import Tensor, nn

from groundup.model.audio import AudioTower
from groundup.model.config import AudioConfig, EncoderDecoderConfig
from groundup.model.context import Cache, Memory
from groundup.model.experts import Routing
from groundup.model.language_model import LanguageModel, mask_segments, token_positions
from groundup.model.stack import Stack

# Frames of sound that two copies are compared with.
EXAMPLE_FRAMES = 64


class EncoderDecoder(nn.Module):
    """Two stacks; an encoder of text shares the decoder's embedding (Raffel et al. 2020), one of sound needs none."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = AudioTower(config.encoder) if isinstance(config.encoder, AudioConfig) else Stack(config.encoder)
        self.decoder = LanguageModel(config.decoder)

    @property
    def device(self) -> torch.device:
        return self.decoder.device

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """See `Stack`; the same in both."""
        return self.decoder.compute_dtype

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype | None) -> None:
        self.encoder.compute_dtype = self.decoder.compute_dtype = dtype

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to compare two copies with, the same each time."""
        (ids,) = self.decoder.example()
        if not isinstance(self.encoder, AudioTower):
            return ids.flip(1), ids
        bins, frames = self.encoder.config.mel_bins, min(EXAMPLE_FRAMES, 2 * self.encoder.config.positions)
        return torch.arange(bins * frames, dtype=torch.float32).sin().view(1, bins, frames), ids

    def forward(
        self,
        source: Tensor | None,
        target_ids: Tensor,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        cache: Cache | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Logits (batch, target time, vocab) of the token after each of `target_ids`.

        source: token ids (batch, source time) or, for an encoder of sound, a log-mel spectrogram (batch, mel bins,
            frames); None where `memory` is given. Masks as in `LanguageModel.forward`; sound has none.
        cache: of the decoder's layers; holds the target tokens that precede `target_ids`, and takes these up.
        memory: what `read` made of the source, where it is known already.
        """
        if memory is None:
            if source is None:
                raise ValueError("an encoder-decoder needs a source, or what it made of it before")
            memory = self.read(source, source_mask)
        return self.decoder(target_ids, target_mask, cache, memory=memory)

    def read(self, source: Tensor, source_mask: Tensor | None = None) -> Memory:
        """What the decoder sees of the source; arguments as in `forward`."""
        if isinstance(self.encoder, AudioTower):
            if source_mask is not None:
                raise ValueError("sound has no mask: silence is part of it")
            return self.encode(source)
        return self.encode(source, token_positions(source, source_mask), mask_segments(source_mask))

    def encode(
        self,
        source: Tensor,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        routings: list[Routing] | None = None,
    ) -> Memory:
        """The same for texts that may lie in one row: positions, segments, routings as in `Stack.run`.

        positions: None where each row is one text, or sound.
        """
        if isinstance(self.encoder, AudioTower):
            return Memory(self.encoder(source), None)
        positions = token_positions(source, None) if positions is None else positions
        x_bsd = self.decoder.embed(source, positions)
        return Memory(self.encoder.run(x_bsd, positions, segments, routings=routings), segments)
