"""What the training loop is told: a stage's settings, as numbers that fit the model and this machine."""

from dataclasses import dataclass
from typing import Protocol

import torch

from groundup import hardware
from groundup.errors import UserError
from groundup.train.checkpoint import Counters
from groundup.train.config import Compile, Precision
from groundup.train.optim import LearningRates

# Below this many training FLOPs compilation (15 s to 31 s on two cores, cold) is not repaid (docs/log.md).
COMPILE_FROM_FLOPS = 1.5e13
# The same for budgets in time. Mixtures and recurrent layers take a minute or two to compile.
COMPILE_FROM_SECONDS = 180.0


@dataclass(frozen=True)
class LoopConfig:
    """What the loop needs to know, whoever calls it.

    Exactly one of `steps` and `seconds` is the budget. rows_per_step counts all ranks; micro_rows is the most that one
    forward pass takes; positions_per_step counts all places of a row, trained on or not, and is what speed means.
    warmup and cooldown are parts of the budget; rounded_from is the part after which a model that will be served in few
    bits is rounded (`quantize/training.py`). bytes_per_token is that of the text, or None where not every token is a
    target. peak_flops is the machine's, for the utilisation.
    """

    title: str
    steps: int | None
    seconds: float | None
    rows_per_step: int
    micro_rows: int
    positions_per_step: int
    learning_rates: LearningRates
    weight_decay: float
    warmup: float
    cooldown: float
    rounded_from: float
    compute_dtype: torch.dtype
    compile: bool
    evaluations: int
    checkpoint_seconds: float
    bytes_per_token: float | None
    flops_per_token: float
    peak_flops: float
    track: tuple[str, ...] = ()

    def spent(self, counters: Counters) -> float:
        """How much of the budget is spent, 0 to 1."""
        if self.steps is not None:
            return min(1.0, counters.step / self.steps)
        assert self.seconds is not None
        return min(1.0, counters.seconds / self.seconds)

    def rows_left(self, counters: Counters, tokens_per_second: float) -> int:
        """Rows that the rest of the budget will read; of one in seconds, about so many at this speed (0: unknown)."""
        if self.steps is not None:
            return (self.steps - counters.step) * self.rows_per_step
        assert self.seconds is not None
        steps = (self.seconds - counters.seconds) * tokens_per_second / self.positions_per_step
        return round(steps) * self.rows_per_step


class Settings(Protocol):
    """The settings that every stage that trains has."""

    @property
    def context(self) -> int: ...
    @property
    def batch_tokens(self) -> int: ...
    @property
    def minutes(self) -> float | None: ...
    @property
    def precision(self) -> Precision: ...
    @property
    def compile(self) -> Compile: ...
    @property
    def evaluations(self) -> int: ...
    @property
    def checkpoint_minutes(self) -> float: ...


def plan(
    settings: Settings,
    flops_per_token: float,
    *,
    title: str,
    steps: int | None,
    default_minutes: float,
    micro_rows: int,
    learning_rates: LearningRates,
    weight_decay: float,
    warmup: float,
    cooldown: float,
    rounded_from: float,
    bytes_per_token: float | None,
    track: tuple[str, ...] = (),
) -> LoopConfig:
    """The loop's settings on this machine; what differs from stage to stage is given.

    steps: the budget, or None for one in minutes; default_minutes: for settings that name no budget.
    """
    seconds = None if steps is not None else 60 * (settings.minutes or default_minutes)
    compute_dtype = resolve_dtype(settings.precision, hardware.describe().computes_bfloat16)
    return LoopConfig(
        title=title,
        steps=steps,
        seconds=seconds,
        rows_per_step=settings.batch_tokens // settings.context,
        micro_rows=micro_rows,
        positions_per_step=settings.batch_tokens,
        learning_rates=learning_rates,
        weight_decay=weight_decay,
        warmup=warmup,
        cooldown=cooldown,
        rounded_from=rounded_from,
        compute_dtype=compute_dtype,
        compile=resolve_compile(settings.compile, steps, seconds, flops_per_token * settings.batch_tokens),
        evaluations=settings.evaluations,
        checkpoint_seconds=60 * settings.checkpoint_minutes,
        bytes_per_token=bytes_per_token,
        flops_per_token=flops_per_token,
        peak_flops=hardware.peak_flops(compute_dtype, size=2048, tries=3),
        track=track,
    )


def resolve_dtype(precision: Precision, computes_bfloat16: bool) -> torch.dtype:
    """The type to compute in; `auto` takes bfloat16 where the machine multiplies it natively."""
    if precision == "auto":
        return torch.bfloat16 if computes_bfloat16 else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def resolve_compile(choice: Compile, steps: int | None, seconds: float | None, flops_per_step: float) -> bool:
    """Whether to compile; `auto` does where the machine can and the budget repays the start-up."""
    if choice != "auto":
        return choice == "always"
    machine = hardware.describe()
    if machine.gpu is None and (machine.compiler is None or not machine.python_headers):
        return False
    if steps is not None:
        return steps * flops_per_step >= COMPILE_FROM_FLOPS
    return seconds is not None and seconds >= COMPILE_FROM_SECONDS


def check_split(rows_per_step: int, micro_rows: int, ranks: int) -> None:
    """Refuse a batch that ranks and micro-batches cannot share evenly (compiled code has fixed shapes)."""
    rows_per_rank, rest = divmod(rows_per_step, ranks)
    if rest:
        raise UserError(f"a batch of {rows_per_step} rows cannot be split evenly over {ranks} ranks")
    if rows_per_rank > micro_rows and rows_per_rank % micro_rows:
        raise UserError(
            f"{rows_per_rank} rows per rank cannot be split evenly into micro-batches of {micro_rows} rows; "
            "choose `micro_batch_tokens` so that it divides `batch_tokens`"
        )
