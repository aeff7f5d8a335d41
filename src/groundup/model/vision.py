"""Image towers: an image cut into patches, each a vector, and the layers above them (Dosovitskiy et al. 2021, ViT).

Shape suffixes: b batch, c channels, y and x pixels, n tokens (patches, and before them the class token), p numbers in
one patch, d model width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from groundup.errors import UserError
from groundup.model.attention import CrossAttention
from groundup.model.context import Shared, Visibility
from groundup.model.feedforward import DenseFeedForward
from groundup.model.parts import Embedding, Linear, Normalise, widen
from groundup.model.stack import Stack, normalise
from groundup.model.vision_config import AttentionPool, ImageClassifierConfig, PatchConfig


class ImageTower(Stack):
    """The layers over an image's patches, built from a `PatchConfig`."""

    def __init__(self, config: PatchConfig) -> None:
        super().__init__(config)
        self.config = config
        self.patches = Linear(config.patch_values, config.width, config.patch_bias)
        self.class_token = nn.Parameter(torch.empty(config.width)) if config.class_token else None
        self.positions = Embedding(config.tokens, config.width)
        self.embedding_norm = normalise(config.embedding_norm, config.width)
        self.pool = None if config.pool is None else AttentionPooling(config.pool, config.width)

    @property
    def device(self) -> torch.device:
        return self.patches.weight.device

    def example(self) -> tuple[Tensor, ...]:
        """Images to compare two copies with, the same each time."""
        shape = (2, self.config.channels, *self.config.image_size)
        return (torch.arange(torch.Size(shape).numel()).sin().view(shape),)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """What leaves the layers, normed, (batch, tokens, width).

        pixel_values: (batch, channels, height, width), normalised as the model was trained.
        Raises UserError for images of another size.
        """
        x_bnd = self.embed(pixel_values)
        return self.run(x_bnd, _places(x_bnd))

    def pooled(self, pixel_values: Tensor) -> Tensor:
        """One vector for each image, (batch, width), of a tower that makes one."""
        x_bnd = self(pixel_values)
        return x_bnd[:, 0] if self.pool is None else self.pool(x_bnd)

    def features(self, pixel_values: Tensor, layers: Sequence[int]) -> Tensor:
        """The outputs of these layers side by side and not normed, (batch, tokens, layers · width).

        layers: counted from 1; 0 is what enters the first.
        """
        x_bnd = self.embed(pixel_values)
        outputs: list[Tensor] = []
        outputs.append(self.run(x_bnd, _places(x_bnd), depth=max(layers), entering=outputs))
        return torch.cat([outputs[layer] for layer in layers], dim=-1)

    def embed(self, pixel_values: Tensor) -> Tensor:
        """What enters the layers, (batch, tokens, width)."""
        config = self.config
        expected = (config.channels, *config.image_size)
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != expected:
            raise UserError(
                f"`pixel_values` has the shape {tuple(pixel_values.shape)}; this model sees images of {expected}, "
                "(channels, height, width)"
            )
        dtype = self.compute_dtype or self.patches.weight.dtype
        x_bnd = self.patches(cut_patches(pixel_values, config).to(dtype))
        if self.class_token is not None:
            x_bnd = torch.cat((self.class_token.to(dtype).expand(len(x_bnd), 1, -1), x_bnd), dim=1)
        x_bnd = x_bnd + self.positions.weight.to(dtype)
        return x_bnd if self.embedding_norm is None else self.embedding_norm(x_bnd)


def cut_patches(pixels_bcyx: Tensor, config: PatchConfig) -> Tensor:
    """The patches row by row, each with its channels one after the other: (batch, patches, numbers in one)."""
    (rows, columns), (height, width) = config.grid, config.patch_size
    whole = pixels_bcyx[:, :, : rows * height, : columns * width]
    cut = whole.unflatten(3, (columns, width)).unflatten(2, (rows, height))  # (b, c, rows, height, columns, width)
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2)


class AttentionPooling(nn.Module):
    """All patches become one vector (Zhai et al. 2022, section 3.3)."""

    def __init__(self, spec: AttentionPool, width: int) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(width))
        self.attention = CrossAttention(spec.attention, width)
        self.norm = Normalise(spec.norm, width)
        self.feed_forward = DenseFeedForward(spec.feed_forward, width)

    def forward(self, x_bnd: Tensor) -> Tensor:
        probe_b1d = self.probe.to(x_bnd.dtype).expand(len(x_bnd), 1, -1)
        seen_b1d = self.attention(probe_b1d, Shared(None, Visibility(None, None), memory_bsd=x_bnd), None)
        return (seen_b1d + self.feed_forward(self.norm(seen_b1d)))[:, 0]


class ImageClassifier(nn.Module):
    """An image tower with a linear layer on its one vector."""

    def __init__(self, config: ImageClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.image = ImageTower(config.image)
        self.head = Linear(config.image.width, len(config.labels), bias=True)

    @property
    def device(self) -> torch.device:
        return self.image.device

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to compare two copies with, the same each time."""
        return self.image.example()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits (batch, labels) in at least float32; pixel_values: see `ImageTower.forward`."""
        logits_bc = self.head(self.image.pooled(pixel_values))
        return widen(logits_bc)


def _places(x_bnd: Tensor) -> Tensor:
    """(batch, tokens): each token's place."""
    return torch.arange(x_bnd.shape[1], device=x_bnd.device).expand(x_bnd.shape[:2])
