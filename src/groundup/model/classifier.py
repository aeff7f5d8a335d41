"""A classifier of whole sequences: an encoder, one vector for what it read, a score for each class.

Shape suffixes: b batch, t time, d model width, c classes.
"""

import torch
from torch import Tensor, nn

from groundup.model.config import ClassifierConfig
from groundup.model.language_model import LanguageModel, Transform
from groundup.model.parts import Linear, widen


class SequenceClassifier(nn.Module):
    """Encoder, pooling, and the two matrices of BERT's classifiers and those that followed it."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        width = config.encoder.width
        self.encoder = LanguageModel(config.encoder)
        self.transform = Transform(config.transform, width)
        self.head = Linear(width, config.classes, bias=True)

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to compare two copies with, the same each time."""
        return self.encoder.example()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Logits (batch, classes), in at least float32; of a single class it is the value itself.

        input_ids: (batch, time) int64; attention_mask: (batch, time) with 1 for tokens and 0 for padding, on either
        side; token_type_ids: (batch, time), as for `LanguageModel.forward`.
        """
        out_btd = self.encoder.encode(input_ids, attention_mask, token_type_ids)
        logits_bc: Tensor = self.head(self.transform(self._pool(out_btd, attention_mask)))
        return widen(logits_bc)

    def _pool(self, out_btd: Tensor, attention_mask: Tensor | None) -> Tensor:
        """One vector for each row, (batch, width); padding has no part in it."""
        if self.config.pooling == "first":
            if attention_mask is None:
                return out_btd[:, 0]
            first_b = attention_mask.long().argmax(dim=1)
            return out_btd[torch.arange(len(out_btd), device=out_btd.device), first_b]
        if attention_mask is None:
            return out_btd.mean(dim=1)
        weight_bt1 = attention_mask.to(out_btd.dtype)[..., None]
        return (out_btd * weight_bt1).sum(dim=1) / attention_mask.sum(dim=1, keepdim=True)
