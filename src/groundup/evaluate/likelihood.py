"""Held-out text as a model folder sees it: bits per byte, the figure that can be compared across tokenizers.

Models that read both ways have none; theirs is the pseudo-likelihood of a sample of tokens.
"""

from pathlib import Path

from groundup.formats.huggingface import load_language_model
from groundup.tokens.shards import Shards
from groundup.tokens.tokenizer import Tokenizer
from groundup.train.heldout import HeldoutLoss, heldout_loss
from groundup.train.pseudo_likelihood import PseudoLoss, heldout_pseudo_loss, mask_token


def score_heldout(
    folder: Path, heldout: Path, context: int, masked_tokens: int | None = None
) -> HeldoutLoss | PseudoLoss:
    """Loss of the model in `folder` on the shards in `heldout`, in windows of `context` tokens.

    Every token is predicted once, from its window alone; the window's first from `<|begin_of_text|>`. By a model that
    reads both ways each token is guessed from all others of its window, or each of `masked_tokens` of them.
    Raises UserError if the shards were made with another tokenizer than the model's.
    """
    shards = Shards.open(heldout)
    shards.check_tokenizer(folder)
    model, words = load_language_model(folder), Tokenizer.load(folder)
    window = min(context, model.config.max_positions)
    if model.config.causal:
        return heldout_loss(model, shards, window, words.bos_id)
    return heldout_pseudo_loss(model, shards, window, words.bos_id, mask_token(words), masked_tokens)
