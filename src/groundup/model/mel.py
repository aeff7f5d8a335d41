"""Sound as numbers a model reads: the log-mel spectrogram of Whisper (Radford et al. 2022, section 2.2).

Shape suffixes: b batch, n samples, f frames, w waves (frequencies), m mel bins.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLE_RATE = 16_000
WINDOW = 400  # samples: 25 ms
HOP = 160  # samples: 10 ms
DECADES = 8.0  # what is kept below the loudest point of a clip
LEAST_POWER = 1e-10
# Slaney's mel scale (Auditory Toolbox 1998): 15 mel are 1000 Hz; linear below, and above 27 mel for each factor of 6.4.
BREAK_HERTZ, BREAK_MEL, MEL_PER_FACTOR, FACTOR = 1000.0, 15.0, 27.0, 6.4


def log_mel(samples_bn: Tensor, mel_bins: int, frames: int) -> Tensor:
    """The spectrogram of each clip, (batch, mel bins, frames), about -1 to 1, in the type of the samples.

    samples_bn: between -1 and 1, at 16 kHz; silence is added, or the end cut off, to give `frames` frames of 10 ms.
    """
    samples_bn = F.pad(samples_bn, (0, frames * HOP - samples_bn.shape[1]))
    window = torch.hann_window(WINDOW, dtype=samples_bn.dtype, device=samples_bn.device)
    waves_bwf = torch.stft(samples_bn, WINDOW, HOP, window=window, return_complex=True)[..., :-1]
    power_bmf = mel_filters(mel_bins).to(samples_bn) @ waves_bwf.abs().square()
    log_bmf = power_bmf.clamp(min=LEAST_POWER).log10()
    floor_b11 = log_bmf.amax((1, 2), keepdim=True) - DECADES
    return (torch.maximum(log_bmf, floor_b11) + 4) / 4


def mel_filters(mel_bins: int) -> Tensor:
    """What each bin takes of each wave, (mel bins, waves), float64: triangles of equal area, evenly spaced in mel."""
    top = SAMPLE_RATE / 2
    top_mel = BREAK_MEL + MEL_PER_FACTOR * math.log(top / BREAK_HERTZ) / math.log(FACTOR)
    mels = torch.linspace(0, top_mel, mel_bins + 2, dtype=torch.float64)
    above = BREAK_HERTZ * FACTOR ** ((mels - BREAK_MEL) / MEL_PER_FACTOR)
    hertz = torch.where(mels < BREAK_MEL, mels * (BREAK_HERTZ / BREAK_MEL), above)
    left_m1, peak_m1, right_m1 = hertz[:-2, None], hertz[1:-1, None], hertz[2:, None]
    waves_w = torch.linspace(0, top, WINDOW // 2 + 1, dtype=torch.float64)
    triangles_mw = torch.minimum((waves_w - left_m1) / (peak_m1 - left_m1), (right_m1 - waves_w) / (right_m1 - peak_m1))
    return triangles_mw.clamp(min=0) * 2 / (right_m1 - left_m1)
