"""Training runs of a second: rows with uneven numbers of targets, and the loop's settings for them."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import ENCODER_DECODERS, ENCODERS, VOCABULARY, ListStream, hot_model, tiny_config
from torch import Tensor, nn

from groundup.record.metrics import VALUES_FILE, read_lines
from groundup.tokens.batches import IGNORE, Int64s, PackedDocuments, Rows, RowSource
from groundup.tokens.corruption import CorruptedSpans, Corruption, MaskedTokens
from groundup.train.balance import published_balance
from groundup.train.learner import Learner, TextModel
from groundup.train.loop import Watch, train
from groundup.train.optim import LearningRates
from groundup.train.parallel import Ranks
from groundup.train.plan import LoopConfig

CONTEXT = 24
# Hot weights blow rounding up, those of these seeds to less than 1e-5 of a gradient in float32.
HOT_SEED = 2
HOT_SEEDS = {"gpt_oss": 1, "modernbert": 1}
STEPS = 6
BOS = 1
# Ids that text holds too, which matters to no row.
EOS, PAD, MASK, SENTINELS = 2, 0, VOCABULARY - 1, (60, 61, 62)
TEXT_IDS = np.arange(2, VOCABULARY)


def loop_config(**changes: Any) -> LoopConfig:
    """Six steps of twelve rows in float32, checkpoints only where asked for."""
    plain = LoopConfig(
        title="test",
        steps=STEPS,
        seconds=None,
        rows_per_step=12,
        micro_rows=12,
        positions_per_step=12 * CONTEXT,
        learning_rates=LearningRates(matrices=0.02, embedding=0.2, head=0.004),
        weight_decay=0.0,
        warmup=0.0,
        cooldown=0.5,
        rounded_from=0.5,
        compute_dtype=torch.float32,
        compile=False,
        evaluations=0,
        checkpoint_seconds=float("inf"),
        bytes_per_token=1.0,
        flops_per_token=1.0,
        peak_flops=1.0,
    )
    return replace(plain, **changes)


def corruption_for(preset: str, seed: int = 0) -> Corruption | None:
    """What hides text from a preset that guesses hidden text."""
    if preset in ENCODER_DECODERS:
        return CorruptedSpans(SENTINELS, BOS, EOS, PAD, seed)
    return MaskedTokens(0.3, MASK, BOS, TEXT_IDS, seed) if preset in ENCODERS else None


@dataclass
class UnevenRows:
    """Packed documents of which some rows carry few targets, so that a mean of means is not the mean.

    With a corruption, rows differ in their targets as documents make them.
    asked: every row number that was asked for, in order.
    """

    seed: int = 0
    asked: list[int] = field(default_factory=list)
    corruption: Corruption | None = None

    def __post_init__(self) -> None:
        generator = np.random.default_rng(self.seed)
        documents = [generator.integers(2, VOCABULARY, length).tolist() for length in generator.integers(1, 60, 80)]
        self._packed = PackedDocuments(ListStream(documents), CONTEXT, BOS, self.seed)

    @property
    def rows_per_epoch(self) -> int:
        return self._packed.rows_per_epoch

    def rows(self, numbers: Int64s) -> Rows:
        self.asked.extend(numbers.tolist())
        rows = self._packed.rows(numbers)
        if self.corruption is not None:
            return self.corruption(rows, numbers)
        first_with_loss = (numbers * 7) % CONTEXT
        targets = np.where(np.arange(CONTEXT) < first_with_loss[:, None], IGNORE, rows.targets)
        return replace(rows, targets=targets)


@dataclass(frozen=True)
class WatchedRanks(Ranks):
    """Keeps the summed gradients of every step."""

    gradients: list[list[Tensor]] = field(default_factory=list)

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        moved = [parameter for parameter in parameters if parameter.grad is not None]
        super().add_gradients(moved)
        self.gradients.append([parameter.grad.clone() for parameter in moved])


def hot_start(preset: str) -> TextModel:
    """The model that `train_tiny` begins with."""
    return hot_model(tiny_config(preset, context=CONTEXT), HOT_SEEDS.get(preset, HOT_SEED), torch.float32)


def train_tiny(
    out: Path,
    preset: str = "nanochat",
    *,
    source: RowSource | None = None,
    ranks: Ranks | None = None,
    watch: Watch = lambda step: {},
    quantize: str | None = None,
    **changes: Any,
) -> TextModel:
    """A hot model (a fresh one starts with zeros, and with it most gradients) after a run of the loop in `out`."""
    model = hot_start(preset).train()
    learner = Learner(model, published_balance(model), quantize)
    source = source or UnevenRows(corruption=corruption_for(preset))
    train(learner, source, loop_config(**changes), out, watch, ranks or Ranks())
    return model


def orthogonalise_exactly(matrices_nij: Tensor) -> Tensor:
    """Stands in for Muon's own, whose bfloat16 turns a difference in the eighth digit into one in the third.

    Directions that are rounding alone stay out: what feeds layer norms has a gradient of 0 along a constant vector.
    """
    left, sizes_nr, right = torch.linalg.svd(matrices_nij.double(), full_matrices=False)
    kept_nr = sizes_nr > 1e-5 * sizes_nr[:, :1]
    return (left * kept_nr[:, None]) @ right


def losses(out: Path) -> list[float]:
    """The loss of every step, from the metrics in `out`."""
    return [line["loss"] for line in read_lines(out / VALUES_FILE)]
