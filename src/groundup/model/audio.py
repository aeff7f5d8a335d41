"""The encoder of sound: from a log-mel spectrogram (`mel.py`) to what a decoder attends to.

Shape suffixes: b batch, m mel bins, f frames, c channels, t time (two frames), d model width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model.config import AudioConfig
from groundup.model.parts import Embedding
from groundup.model.stack import Stack

KERNEL = 3


class Convolution(nn.Module):
    """Over three neighbouring frames; zeros stand before the first and after the last. Computed in the type of x."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(outputs, inputs, KERNEL))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x_bcf: Tensor) -> Tensor:
        return F.conv1d(x_bcf, self.weight.to(x_bcf.dtype), self.bias.to(x_bcf.dtype), self.stride, KERNEL // 2)


class AudioTower(Stack):
    """Two convolutions, the second of which halves the time, positions, layers. Source: Whisper, section 2.2."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__(config)
        self.config = config
        self.first = Convolution(config.mel_bins, config.width, stride=1)
        self.second = Convolution(config.width, config.width, stride=2)
        # Sinusoids that published models store; not trained, and not recomputed, so that none differs by its rounding.
        self.positions = Embedding(config.positions, config.width).requires_grad_(False)

    def forward(self, mel_bmf: Tensor) -> Tensor:
        """What leaves the layers, (batch, half as many times as frames, width).

        Raises ValueError for a spectrogram of other mel bins or of more frames than there are positions for.
        """
        config = self.config
        if mel_bmf.ndim != 3 or mel_bmf.shape[1] != config.mel_bins or mel_bmf.shape[2] > 2 * config.positions:
            raise ValueError(
                f"sound must come as (batch, {config.mel_bins} mel bins, at most {2 * config.positions} frames), "
                f"not {tuple(mel_bmf.shape)}"
            )
        dtype = self.compute_dtype or self.first.weight.dtype
        x_bcf = F.gelu(self.second(F.gelu(self.first(mel_bmf.to(dtype)))))
        index_t = torch.arange(x_bcf.shape[2], device=x_bcf.device)
        x_btd = x_bcf.transpose(1, 2) + self.positions(index_t, dtype)
        return self.run(x_btd, index_t.expand(len(x_btd), -1))


def sinusoids(positions: int, width: int) -> Tensor:
    """Sines, then cosines, of waves as long as 2π to 20,000π positions: (positions, width), float64.

    Source: Vaswani et al. 2017, section 3.5, with the frequencies of Whisper's code, the slowest of which is 1/10,000.
    """
    waves = width // 2
    frequencies_k = torch.exp(-math.log(10_000) * torch.arange(waves, dtype=torch.float64) / max(1, waves - 1))
    angles_tk = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies_k
    return torch.cat((angles_tk.sin(), angles_tk.cos()), dim=1)
