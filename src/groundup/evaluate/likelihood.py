"""Held-out bits per byte of a model folder: the figure that can be compared across tokenizers; pseudo-likelihoods."""

from pathlib import Path

from groundup.formats.huggingface import load_language_model, load_model
from groundup.model.language_model import LanguageModel
from groundup.tokens.shards import Shards
from groundup.tokens.tokenizer import Tokenizer
from groundup.train.heldout import HeldoutLoss, heldout_loss
from groundup.train.pseudo_likelihood import PseudoLoss, heldout_pseudo_loss, mask_token


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


def score_pseudo_likelihood(folder: Path, heldout: Path, context: int, sample: int) -> PseudoLoss | None:
    """Pseudo-likelihood of `sample` held-out tokens by the model in `folder`, in windows of `context` tokens.

    None for a model that does not read both ways: it has a likelihood.
    Raises UserError as `score_heldout` does, and for a tokenizer without a mask token.
    """
    shards = Shards.open(heldout)
    shards.check_tokenizer(folder)
    model = load_model(folder)
    if not isinstance(model, LanguageModel) or model.config.causal:
        return None
    words, window = Tokenizer.load(folder), min(context, model.config.max_positions)
    return heldout_pseudo_loss(model, shards, window, words.bos_id, mask_token(words), sample)
