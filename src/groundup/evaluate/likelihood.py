"""Held-out bits per byte of a model folder: the figure that can be compared across tokenizers."""

from pathlib import Path

from groundup.formats.huggingface import load_language_model
from groundup.tokens.shards import Shards
from groundup.tokens.tokenizer import Tokenizer
from groundup.train.heldout import HeldoutLoss, heldout_loss


def score_heldout(folder: Path, heldout: Path, context: int) -> HeldoutLoss:
    """Loss of the model in `folder` on the shards in `heldout`, in windows of `context` tokens.

    Every token is predicted once, from its window alone; the window's first from `<|begin_of_text|>`.
    Raises UserError if the shards were made with another tokenizer than the model's.
    """
    shards = Shards.open(heldout)
    shards.check_tokenizer(folder)
    model = load_language_model(folder)
    window = min(context, model.config.max_positions)
    return heldout_loss(model, shards, window, Tokenizer.load(folder).bos_id)
