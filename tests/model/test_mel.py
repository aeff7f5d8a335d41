"""The log-mel spectrogram against Whisper's feature extractor, and against a Fourier transform written out."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from groundup.model.mel import HOP, SAMPLE_RATE, WINDOW, log_mel, mel_filters

BINS = pytest.mark.parametrize("bins", [80, 128])


def _clip(samples: int, seed: int = 0) -> Tensor:
    """Two tones, one of which rises, a pause, and some noise."""
    time_n = torch.arange(samples, dtype=torch.float64) / SAMPLE_RATE
    tones = 0.3 * torch.sin(2 * math.pi * 440 * time_n) + 0.2 * torch.sin(2 * math.pi * 3000 * time_n**2)
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (tones + 0.01 * noise) * (torch.arange(samples) % 9000 > 1500)


@BINS
def test_filters_are_those_of_slaney(bins: int):
    expected = mel_filter_bank(201, bins, 0.0, 8000.0, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    torch.testing.assert_close(mel_filters(bins), torch.from_numpy(expected).T, rtol=1e-10, atol=1e-14)


@BINS
@pytest.mark.parametrize("samples", [16_000, 9_876, 31_000], ids=["whole", "short", "long"])
def test_features_are_those_of_the_reference(bins: int, samples: int):
    clip = _clip(samples)
    extractor = WhisperFeatureExtractor(feature_size=bins, chunk_length=1)
    expected = extractor(clip.float().numpy(), sampling_rate=SAMPLE_RATE, return_tensors="np")["input_features"]
    found = log_mel(clip.float()[None], bins, frames=100)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=2e-5)
    wide = log_mel(clip[None], bins, frames=100)
    assert wide.dtype == torch.float64
    # Float32 rounds what is eight decades below the loudest point by a little more.
    np.testing.assert_allclose(wide.float().numpy(), expected, rtol=0, atol=2e-3)


def test_clips_of_a_batch_have_a_floor_each():
    loud, faint = _clip(16_000), 1e-3 * _clip(16_000, seed=1)
    together = log_mel(torch.stack((loud, faint)), 80, frames=100)
    for row, clip in enumerate((loud, faint)):
        torch.testing.assert_close(together[row], log_mel(clip[None], 80, frames=100)[0], rtol=1e-12, atol=1e-12)


def test_a_spectrogram_is_the_fourier_transform_of_windows_of_25_ms():
    clip, frames = _clip(2_000), 12
    found = log_mel(clip[None], 80, frames)[0]
    padded = torch.cat((clip, torch.zeros(frames * HOP)))[: frames * HOP]
    # Centred windows: what stands before the first sample is the mirror image of what comes after it.
    mirrored = torch.cat((padded[1 : WINDOW // 2 + 1].flip(0), padded, padded[-WINDOW // 2 - 1 : -1].flip(0)))
    index_n = torch.arange(WINDOW, dtype=torch.float64)
    hann_n = 0.5 - 0.5 * torch.cos(2 * math.pi * index_n / WINDOW)
    angles_wn = 2 * math.pi * torch.arange(WINDOW // 2 + 1, dtype=torch.float64)[:, None] * index_n / WINDOW
    power = []
    for frame in range(frames):
        piece_n = hann_n * mirrored[frame * HOP : frame * HOP + WINDOW]
        power.append((angles_wn.cos() @ piece_n) ** 2 + (angles_wn.sin() @ piece_n) ** 2)
    mel = (mel_filters(80) @ torch.stack(power, dim=1)).clamp(min=1e-10).log10()
    expected = (torch.maximum(mel, mel.max() - 8) + 4) / 4
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
