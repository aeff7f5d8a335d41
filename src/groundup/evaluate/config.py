"""Settings of evaluation."""

from dataclasses import dataclass

from groundup.settings import setting
from groundup.train.config import HELDOUT_MEGABYTES

MAX_NGRAM_ORDER = 7  # what fits an n-gram's key, see ngram.py


@dataclass(frozen=True)
class EvaluateConfig:
    """Held-out bits per byte beside baselines, and questions on held-out passages."""

    questions: int = setting(200, "questions of each kind: with the passage (and without), unanswerable, calculator")
    answer_tokens: int = setting(128, "an answer is cut after this many tokens")
    heldout_megabytes: float = setting(
        HELDOUT_MEGABYTES,
        "held-out text that models and baselines are scored on: at most so much, spread over all there is; 0: all",
    )
    context: int = setting(512, "tokens of held-out text read at a time")
    masked_tokens: int = setting(1000, "held-out tokens that a model which reads both ways must guess, one at a time")
    ngram_order: int = setting(MAX_NGRAM_ORDER, "bytes that the n-gram baseline looks at, the predicted one included")

    def __post_init__(self) -> None:
        for name in ("questions", "answer_tokens", "context", "masked_tokens"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, not {getattr(self, name)}")
        if self.heldout_megabytes < 0:
            raise ValueError(f"`heldout_megabytes` must be positive, or 0 for all, not {self.heldout_megabytes}")
        if not 1 <= self.ngram_order <= MAX_NGRAM_ORDER:
            raise ValueError(f"`ngram_order` must lie between 1 and {MAX_NGRAM_ORDER}, not {self.ngram_order}")
