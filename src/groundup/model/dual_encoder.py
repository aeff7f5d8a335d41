"""Texts and images in one space: CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023).

Shape suffixes: b texts or images, t time, e numbers in a vector that is compared.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.errors import UserError
from groundup.model.language_model import LanguageModel, mask_segments, token_positions
from groundup.model.parts import Linear, widen
from groundup.model.vision import ImageTower
from groundup.model.vision_config import DualEncoderConfig, Projection


class Comparison(NamedTuple):
    """How well each image fits each text, (images, texts), the same turned over, and the unit vectors of both."""

    logits_per_image: Tensor
    logits_per_text: Tensor
    text_embeds: Tensor
    image_embeds: Tensor


class DualEncoder(nn.Module):
    """A text tower, an image tower, and the scale of their comparison."""

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.text = LanguageModel(config.text)
        self.image = ImageTower(config.image)
        self.text_projection = _projection(config.text_projection, config.text.width)
        self.image_projection = _projection(config.image_projection, config.image.width)
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.logit_bias = nn.Parameter(torch.empty(())) if config.logit_bias else None

    @property
    def device(self) -> torch.device:
        return self.text.device

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to compare two copies with, the same each time."""
        (ids,) = self.text.example()
        if self.config.end_token is not None:
            ids[:, -1] = self.config.end_token
        return (ids, *self.image.example())

    def forward(self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor | None = None) -> Comparison:
        """Every text against every image. Arguments: see `embed_texts` and `embed_images`."""
        texts_be, images_be = self.embed_texts(input_ids, attention_mask), self.embed_images(pixel_values)
        logits = self.compare(images_be, texts_be)
        return Comparison(logits, logits.T, texts_be, images_be)

    def embed_texts(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Unit vectors (batch, width) in at least float32.

        input_ids: (batch, time) int64, padded at the end.
        attention_mask: 1 for tokens and 0 for padding. A tower that reads from the last token reads padding as tokens
            like others, up to the length it was trained on, and takes no mask.
        Raises UserError for texts that are too long, have no end, or are masked where they cannot be.
        """
        config = self.config
        if input_ids.shape[1] > config.text.max_positions:
            raise UserError(
                f"a text of {input_ids.shape[1]} tokens is too long; it may have {config.text.max_positions}"
            )
        masked = attention_mask is not None and not bool(attention_mask.all())
        if masked and config.text_pooling == "last":
            raise UserError(
                f"this {config.family} model reads padding as tokens: pad texts to {config.text.max_positions} tokens "
                "and leave out the attention mask"
            )
        positions = token_positions(input_ids, None)  # padding has places of its own, wherever it stands
        hidden_btd = self.text.hidden(input_ids, positions, mask_segments(attention_mask) if masked else None)
        pooled_bd = hidden_btd[torch.arange(len(input_ids), device=input_ids.device), self._ends(input_ids)]
        return _unit(pooled_bd if self.text_projection is None else self.text_projection(pooled_bd))

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        """Unit vectors (batch, width) in at least float32; pixel_values: see `ImageTower.forward`."""
        pooled_bd = self.image.pooled(pixel_values)
        return _unit(pooled_bd if self.image_projection is None else self.image_projection(pooled_bd))

    def compare(self, ones_me: Tensor, others_ne: Tensor) -> Tensor:
        """Logits (ones, others) of unit vectors: their cosine, scaled and shifted as learned."""
        logits_mn = ones_me @ others_ne.T * self.logit_scale.to(ones_me.dtype).exp()
        return logits_mn if self.logit_bias is None else logits_mn + self.logit_bias.to(ones_me.dtype)

    def _ends(self, input_ids: Tensor) -> Tensor:
        """The place, (batch,), of the token that stands for each text."""
        if self.config.text_pooling == "last":
            return torch.full_like(input_ids[:, 0], input_ids.shape[1] - 1)
        end = self.config.end_token
        if end is None:
            return input_ids.argmax(dim=1)  # the first of equal ones, where a text is padded with its end
        is_end = input_ids.eq(end)
        if not bool(is_end.any(dim=1).all()):
            raise UserError(f"a text has no token {self.config.end_token}, which ends it and stands for all of it")
        return is_end.int().argmax(dim=1)


def _projection(spec: Projection | None, width: int) -> Linear | None:
    return None if spec is None else Linear(width, spec.width, spec.bias)


def _unit(x_be: Tensor) -> Tensor:
    return F.normalize(widen(x_be), dim=-1)
