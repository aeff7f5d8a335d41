"""Settings of supervised fine-tuning: which conversations are made, and how the model learns from them."""

from dataclasses import dataclass

from groundup.settings import setting
from groundup.train.config import Compile, Format, Precision


@dataclass(frozen=True)
class SftConfig:
    """Fine-tuning on conversations made from the passages of the corpus.

    Each passage is asked about several times; a question is put with its passage given
    (`document_share`), with other passages only (`unanswerable_share`, the right answer is "I don't know"), or with
    none (the rest). Calculations and small talk come on top, as shares of the whole.
    """

    passages: int = setting(20_000, "use at most this many passages, chosen by hash")
    questions_per_passage: int = setting(2, "questions asked about each training passage")
    heldout_questions_per_passage: int = setting(
        6, "questions asked about each held-out passage, of which there are few"
    )
    document_share: float = setting(0.5, "part of the questions put with the right passage among others")
    unanswerable_share: float = setting(0.05, "part of the questions put with wrong passages only")
    multi_turn_share: float = setting(0.15, "part of the questions about passages that follow an earlier exchange")
    calculator_share: float = setting(0.12, "part of all conversations that use the calculator")
    chat_share: float = setting(0.02, "part of all conversations that are small talk")
    document_characters: int = setting(1000, "characters of all passages given in one conversation")
    context: int = setting(512, "tokens a row holds; longer conversations are left out")
    minutes: float | None = setting(
        None, "budget: wall-clock minutes, compilation included (default: 2)", one_of="budget"
    )
    epochs: float | None = setting(None, "budget: times each training conversation is seen", one_of="budget")
    batch_tokens: int = setting(2048, "tokens per optimizer step, over all ranks")
    learning_rate: float = setting(0.3, "of each parameter group, as a part of its peak rate in pre-training")
    precision: Precision = setting("auto", "of activations and matrix products; weights are float32 in any case")
    compile: Compile = setting(
        "auto", "torch.compile; auto: where a compiler exists and the budget repays its start-up"
    )
    quantize: Format | None = setting(
        None,
        "learn with activations and, more and more, weights rounded as `groundup quantize` will store them; held-out "
        "figures are those of the rounded model (default: not at all)",
    )
    evaluations: int = setting(4, "how often held-out loss and samples are taken on the way")
    checkpoint_minutes: float = setting(2.0, "minutes between checkpoints to resume from")
    seed: int = setting(0, "of the conversations and their order")

    def __post_init__(self) -> None:
        shares = ("document_share", "unanswerable_share", "multi_turn_share", "calculator_share", "chat_share")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie between 0 and 1, not {getattr(self, name)}")
        if self.document_share + self.unanswerable_share > 1:
            raise ValueError("`document_share` and `unanswerable_share` together must not pass 1")
        if self.calculator_share + self.chat_share >= 1:
            raise ValueError("`calculator_share` and `chat_share` together must stay below 1")
        if self.minutes is not None and self.epochs is not None:
            raise ValueError("give one budget, not minutes and epochs")
        for name in ("minutes", "epochs"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, not {getattr(self, name)}")
        sizes = ("passages", "questions_per_passage", "heldout_questions_per_passage", "context", "batch_tokens")
        for name in (*sizes, "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, not {getattr(self, name)}")
        if self.document_characters < 500:
            raise ValueError(f"`document_characters` must be at least 500, not {self.document_characters}")
        if self.batch_tokens % self.context:
            raise ValueError(f"`batch_tokens` ({self.batch_tokens}) must be a multiple of `context` ({self.context})")
