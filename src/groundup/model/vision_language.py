"""A language model that sees: LLaVA (Liu et al. 2023).

Shape suffixes: b batch, t time, i images, n vectors of one image, d model width.
"""

import torch
from torch import Tensor, nn

from groundup.errors import UserError
from groundup.model.context import Cache
from groundup.model.language_model import LanguageModel, mask_segments, token_positions
from groundup.model.parts import Linear, activate
from groundup.model.vision import ImageTower
from groundup.model.vision_config import VisionLanguageConfig


class VisionLanguageModel(nn.Module):
    """An image tower, two linear layers, and a language model that takes what they give for image tokens."""

    def __init__(self, config: VisionLanguageConfig) -> None:
        super().__init__()
        self.config = config
        width = config.text.width
        self.image = ImageTower(config.image)
        self.projector_in = Linear(config.image.width * len(config.feature_layers), width, config.bias)
        self.projector_out = Linear(width, width, config.bias)
        self.text = LanguageModel(config.text)

    @property
    def device(self) -> torch.device:
        return self.text.device

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to compare two copies with, the same each time."""
        (ids,), (pixel_values,) = self.text.example(), self.image.example()
        token = self.config.image_token
        ids = ids.masked_fill(ids == token, 0 if token else 1)
        image = torch.full((1, self.config.image_tokens), token)
        return torch.cat((ids, image, ids, image, ids), dim=1), pixel_values

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        *,
        embedded: Tensor | None = None,
    ) -> Tensor:
        """Logits (batch, time, vocab) of the token after each position.

        input_ids, attention_mask, cache: see `LanguageModel.forward`; the cache is one of `text`.
        pixel_values: the images of all texts, in the order of the texts, (images, channels, height, width).
        embedded: a part of what `embed` gave for a whole text, when it is read in parts; then no images are needed.
        Raises UserError unless the texts have one image token for each vector of the images.
        """
        positions = token_positions(input_ids, attention_mask, 0 if cache is None else cache.length)
        embedded = self.embed(input_ids, pixel_values) if embedded is None else embedded
        segments = mask_segments(attention_mask)
        return self.text.logits(self.text.hidden(input_ids, positions, segments, cache, embedded=embedded))

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None = None) -> Tensor:
        """What enters the language model, (batch, time, width): embeddings, and images where image tokens stand."""
        embedded_btd = self.text.embed(input_ids, token_positions(input_ids, None))
        is_image_bt = input_ids == self.config.image_token
        images = 0 if pixel_values is None else len(pixel_values)
        tokens, vectors = int(is_image_bt.sum()), images * self.config.image_tokens
        if tokens != vectors:
            raise UserError(
                f"the texts have {tokens} image tokens (number {self.config.image_token}), the {images} images need "
                f"{vectors}: {self.config.image_tokens} each"
            )
        if pixel_values is None:
            return embedded_btd
        return embedded_btd.masked_scatter(is_image_bt[..., None], self.see(pixel_values).to(embedded_btd.dtype))

    def see(self, pixel_values: Tensor) -> Tensor:
        """What takes the place of the image tokens: (images, vectors, width of the language model)."""
        seen_ind = self.image.features(pixel_values, self.config.feature_layers)
        seen_ind = seen_ind if self.config.keeps_first else seen_ind[:, 1:]
        return self.projector_out(activate(self.projector_in(seen_ind), self.config.activation))
