"""Encoder-decoders of `transformers`, what goes into them, and what comes out."""

from pathlib import Path

import torch
import transformers
from references import Float64Everywhere, heat_reference
from tiny import random_ids
from torch import Tensor, nn
from variants_encoder_decoder import OWN_HEAD, VARIANTS

SOURCE, TARGET = 21, 24


def reference_pair(variant: str, hot: bool) -> nn.Module:
    """A model with random weights: as `transformers` initialises them, or hot."""
    name, keys = VARIANTS[variant]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**keys)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    model.generation_config.decoder_start_token_id = keys["decoder_start_token_id"]
    if variant.endswith(OWN_HEAD):  # its configuration ties the head in any case; a file can hold another one
        model.lm_head.weight = nn.Parameter(torch.randn(model.lm_head.weight.shape) / keys["d_model"] ** 0.5)
    if hot:
        heat_reference(model)
    return model


def inputs_of(variant: str, batch: int = 2) -> tuple[Tensor, Tensor]:
    """A source and a target of each row."""
    keys = VARIANTS[variant][1]
    target = random_ids(batch, TARGET, seed=1)
    if not variant.startswith("whisper"):
        return random_ids(batch, SOURCE, seed=2), target
    shape = (batch, keys["num_mel_bins"], 2 * keys["max_source_positions"])
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64), target


def their_model(variant: str, folder: Path) -> nn.Module:
    """The folder as `transformers` loads it in float64; every tensor must have found its place."""
    kind = getattr(transformers, f"{VARIANTS[variant][0]}ForConditionalGeneration")
    model, info = kind.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    return model.eval()


@torch.no_grad()
def their_logits(variant: str, folder: Path, source: Tensor, target: Tensor) -> Tensor:
    name = "input_features" if variant.startswith("whisper") else "input_ids"
    with Float64Everywhere():
        return their_model(variant, folder)(**{name: source}, decoder_input_ids=target).logits


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == theirs.dtype == torch.float64
    assert (ours - theirs).norm() <= 1e-9 * theirs.norm()
