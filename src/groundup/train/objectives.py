"""What each kind of model learns from text: the next token, masked tokens, or corrupted spans.

An objective is a way to make rows; the loss is the same for all (`learner.py`). A held-out figure bears the name of its
objective, since they cannot be compared: only what guesses every token of a text has bits per byte.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from groundup.errors import UserError
from groundup.model.config import EncoderDecoderConfig, ModelConfig
from groundup.tokens.batches import RowSource
from groundup.tokens.config import MASK_TOKEN, SENTINEL_TOKENS
from groundup.tokens.corruption import CorruptedRows, CorruptedSpans, Corruption, MaskedTokens, target_width
from groundup.tokens.tokenizer import Tokenizer
from groundup.train.heldout import HeldoutLoss

TextConfig = ModelConfig | EncoderDecoderConfig

# Held-out text is hidden in the same places in every run.
HELDOUT_SEED = 0


@dataclass(frozen=True)
class Objective:
    """name: as summaries say it. heldout: what its loss on held-out text is called, in nats per target.

    control_tokens: what its tokenizer needs beyond the usual ones.
    corrupt: from tokenizer, share of masked tokens and seed to what hides parts of rows; None hides nothing.
    """

    name: str
    heldout: str
    control_tokens: tuple[str, ...]
    corrupt: Callable[[Tokenizer, float, int], Corruption] | None

    @property
    def continues_text(self) -> bool:
        """Whether the model can go on from a text: be sampled, scored in bits per byte, taught to chat."""
        return self.corrupt is None

    def rows(self, source: RowSource, words: Tokenizer, mask_fraction: float, seed: int) -> RowSource:
        """The rows to train on, made from rows of the next token."""
        return source if self.corrupt is None else CorruptedRows(source, self.corrupt(words, mask_fraction, seed))

    def heldout_corruption(self, words: Tokenizer, mask_fraction: float) -> Corruption | None:
        """What hides parts of held-out text."""
        return None if self.corrupt is None else self.corrupt(words, mask_fraction, HELDOUT_SEED)

    def figures(self, loss: HeldoutLoss) -> dict[str, float]:
        """The figures to follow while training."""
        return {"heldout_bits_per_byte": loss.bits_per_byte} if self.continues_text else {self.heldout: loss.per_target}

    def summary(self, loss: HeldoutLoss) -> dict[str, Any]:
        """The same and more at the end: the loss per target beside the entropy of the targets."""
        return {
            "objective": self.name,
            **self.figures(loss),
            self.heldout: loss.per_target,
            "heldout_unigram_entropy": loss.unigram_entropy,
            "heldout_targets": loss.tokens,
        }

    def flops_per_token(self, shape: TextConfig, context: int, mask_fraction: float) -> float:
        """FLOPs of training for each of the `context` tokens of text in a row."""
        if isinstance(shape, EncoderDecoderConfig):
            return shape.training_flops(context, target_width(context, len(SENTINEL_TOKENS))) / context
        flops = shape.training_flops_per_token(context)
        if self is MASKED_TOKENS:  # the head is for what is masked alone
            flops -= round(6 * (1 - mask_fraction) * shape.vocab_size * shape.table_width)
        return flops


def objective_of(shape: TextConfig) -> Objective:
    """What a model of this shape learns."""
    if isinstance(shape, EncoderDecoderConfig):
        return CORRUPTED_SPANS
    return NEXT_TOKEN if shape.causal else MASKED_TOKENS


def _mask(words: Tokenizer, fraction: float, seed: int) -> Corruption:
    if words.mask_id is None:
        raise UserError(f"this tokenizer has no control token `{MASK_TOKEN}`, which masks text; take one that has")
    return MaskedTokens(fraction, words.mask_id, words.bos_id, np.flatnonzero(words.token_bytes()), seed)


def _hide_spans(words: Tokenizer, fraction: float, seed: int) -> Corruption:
    return CorruptedSpans(words.sentinel_ids, words.bos_id, words.eos_id, words.pad_id, seed)


NEXT_TOKEN = Objective("next token", "heldout_loss", (), None)
MASKED_TOKENS = Objective("masked tokens", "heldout_masked_loss", (MASK_TOKEN,), _mask)
CORRUPTED_SPANS = Objective("corrupted spans", "heldout_span_loss", SENTINEL_TOKENS, _hide_spans)
