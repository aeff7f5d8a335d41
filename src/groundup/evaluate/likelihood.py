"""Held-out loss of a model folder; where it continues text in bits per byte, to be compared across tokenizers."""

import json
from collections.abc import Callable
from pathlib import Path

from groundup.engine.loading import use_kernels
from groundup.errors import UserError
from groundup.formats.huggingface import load_model
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.language_model import LanguageModel
from groundup.tokens.sample import sample_text
from groundup.tokens.shards import Shards
from groundup.tokens.tokenizer import Tokenizer
from groundup.train.config import USUAL
from groundup.train.heldout import HeldoutLoss, heldout_loss
from groundup.train.objectives import Objective, objective_of
from groundup.train.pseudo_likelihood import PseudoLoss, heldout_pseudo_loss, mask_token


def score_heldout(
    folder: Path,
    heldout: Path,
    context: int,
    megabytes: float = 0.0,
    advance: Callable[[float], None] = lambda windows: None,
) -> tuple[Objective, HeldoutLoss]:
    """Loss of the model in `folder` on the shards in `heldout`, in windows of `context` tokens, by what it has learned.

    megabytes: of a sample of so much text (`tokens/sample.py`), 0 for all of it. advance: see `heldout_loss`.
    A decoder predicts every token once, from its window alone; the window's first from `<|begin_of_text|>`. Other
    models guess what is hidden of each window, always the same.
    Raises UserError if the shards were made with another tokenizer than the model's, or if the model is none of text.
    """
    shards = Shards.open(heldout)
    shards.check_tokenizer(folder)
    model, words = load_model(folder), Tokenizer.load(folder)
    if not isinstance(model, LanguageModel | EncoderDecoder):
        raise UserError(f"{folder} holds a {model.config.family} model; held-out text is for models of tokens")
    if isinstance(model, LanguageModel):
        use_kernels(model)
    objective = objective_of(model.config)
    corruption = objective.heldout_corruption(words, _mask_fraction(folder))
    window = min(context, model.config.max_positions)
    text = sample_text(shards, words, megabytes)
    return objective, heldout_loss(model, text, window, words.bos_id, corruption=corruption, advance=advance)


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


def _mask_fraction(folder: Path) -> float:
    """The share of tokens that was masked in training, or the usual one for a model from elsewhere."""
    path = folder / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return float(summary.get("mask_fraction", USUAL["mask_fraction"]))
