"""Tiny encoders of `transformers`, and what they make of a padded batch with two kinds of tokens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from references import Float64Everywhere, heat_reference
from torch import Tensor, nn
from variants_encoders import VARIANTS

from groundup.model.build import AnyModel
from groundup.model.language_model import LanguageModel

TIME = 24


class Batch(NamedTuple):
    """Three rows, the last two with padding on the right; `types` is None for models that know one kind alone."""

    ids: Tensor
    mask: Tensor
    types: Tensor | None

    def inputs(self) -> dict[str, Tensor]:
        """As both libraries name them."""
        kinds = {} if self.types is None else {"token_type_ids": self.types}
        return {"input_ids": self.ids, "attention_mask": self.mask, **kinds}

    def row(self, number: int) -> "Batch":
        """One row, without its padding."""
        length = int(self.mask[number].sum())
        types = None if self.types is None else self.types[number : number + 1, :length]
        return Batch(self.ids[number : number + 1, :length], self.mask[number : number + 1, :length], types)


def batch(variant: str, lengths: tuple[int, ...] = (TIME, TIME - 7, 3)) -> Batch:
    """Random tokens, none of them special; where the mask says so, the variant's own padding token."""
    keys = VARIANTS[variant][1]
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, keys["vocab_size"], (len(lengths), TIME), generator=generator)
    mask = (torch.arange(TIME) < torch.tensor(lengths)[:, None]).long()
    kinds = keys.get("type_vocab_size", 0)
    types = torch.randint(kinds, ids.shape, generator=generator) if kinds else None
    return Batch(ids.masked_fill(mask == 0, keys["pad_token_id"]), mask, types)


def encoder(variant: str, hot: bool, **changes: Any) -> nn.Module:
    """A model of `transformers` with random weights: as it initialises them, or hot."""
    name, keys = VARIANTS[variant]
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**keys | changes)).eval()
    if hot:
        heat_reference(model)
    return model


@torch.no_grad()
def their_outputs(variant: str, folder: Path, inputs: Mapping[str, Tensor]) -> Tensor:
    """The logits of the folder's model in `transformers`, which must find in it all it needs and nothing else.

    Of one without a head what leaves its layers; its pooler may be there.
    """
    with Float64Everywhere():
        name = VARIANTS[variant][0]
        unused = {"add_pooling_layer": False} if name in ("BertModel", "RobertaModel") else {}
        model, loading = getattr(transformers, name).from_pretrained(
            folder, dtype=torch.float64, attn_implementation="eager", output_loading_info=True, **unused
        )
        pooler = {key for key in loading["unexpected_keys"] if key.startswith("pooler.")} if unused else set()
        assert not any(set(found) - pooler for found in loading.values()), loading
        outputs = model(**inputs)
        return outputs.last_hidden_state if name.endswith("Model") else outputs.logits


@torch.no_grad()
def our_outputs(model: AnyModel, inputs: Mapping[str, Tensor]) -> Tensor:
    if isinstance(model, LanguageModel) and model.config.head_transform is None:
        return model.encode(inputs["input_ids"], inputs["attention_mask"], inputs.get("token_type_ids"))
    return model(**inputs)


def of_tokens(logits: Tensor, mask: Tensor) -> Tensor:
    """Without what is said of padding, where there is a row of logits for each token."""
    return logits[mask.bool()] if logits.ndim == 3 else logits


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Relative, in the 2-norm."""
    assert ours.dtype == theirs.dtype == torch.float64
    assert ours.shape == theirs.shape
    return float((ours - theirs).norm() / theirs.norm())
