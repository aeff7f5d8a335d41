"""The training loop, whole in one place: rows in, one optimizer step out, until the budget is spent.

It never asks what it trains or why: a `RowSource` gives the rows, a `Learner` their loss, `watch` takes held-out loss
and samples. Two runs with equal inputs write equal weights and metrics to the bit, however often they were killed and
taken up again (on CPU, with the same number of threads; a budget in seconds follows the clock and is exempt).
"""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from groundup.errors import UserError
from groundup.quantize.training import rounded_share
from groundup.record.metrics import MetricsWriter, Progress
from groundup.tokens.batches import RowSource, rank_rows, row_to_end_whole
from groundup.train.checkpoint import Counters, Keeper, load_checkpoint
from groundup.train.learner import Learner
from groundup.train.optim import build_optimizers, schedule, set_learning_rates
from groundup.train.parallel import Ranks
from groundup.train.plan import LoopConfig
from groundup.train.token_loss import TokenLoss

# Steps at the start whose speed says nothing: compilation and first touches of memory.
WARM_STEPS = 3
# Steps after which a budget in seconds can tell how many rows it will read.
SPEED_STEPS = 12

# Called at each evaluation with the number of finished steps, the model computing as it will be served; returns figures
# for the metrics stream.
Watch = Callable[[int], Mapping[str, float]]


@dataclass(frozen=True)
class TrainingResult:
    """What a finished loop says of itself; the speed is the median over this process's steps after the first few.

    rounded_steps: in which weights were rounded as they will be served; none of a model that is served as it is.
    """

    steps: int
    rounded_steps: int
    tokens: int
    seconds: float
    tokens_per_second: float


def train(
    learner: Learner, source: RowSource, config: LoopConfig, out: Path, watch: Watch, ranks: Ranks
) -> TrainingResult:
    """Train the learner's model in place, keeping checkpoint and metrics in `out`; goes on from a checkpoint there.

    Raises UserError when the loss is no number any more, and KeyboardInterrupt after Ctrl-C or SIGTERM, then with a
    checkpoint of the last step on disk.
    """
    model = learner.model
    learner.compute_in(config.compute_dtype)
    optimizers = build_optimizers(model, config.learning_rates, config.weight_decay)
    counters = load_checkpoint(out, model, optimizers) or Counters()
    started = time.monotonic() - counters.seconds
    speeds: list[float] = []
    with (
        learner.compiled(config.compile),
        _metrics(out, counters, config, ranks) as metrics,
        _progress(config, counters) as progress,
        Keeper(out, model, optimizers, config.checkpoint_seconds, ranks) as keeper,
    ):
        while (spent := config.spent(counters)) < 1:
            step_started = time.monotonic()
            if not counters.settled and (config.steps is not None or len(speeds) == SPEED_STEPS):
                left = config.rows_left(counters, ranks.agree(_usual(speeds)))
                row = row_to_end_whole(counters.row, left, source.rows_per_epoch)
                counters = replace(counters, row=row, settled=True)
            rate = schedule(spent, config.warmup, config.cooldown)
            set_learning_rates(optimizers, rate, counters.step)
            share = 0.0 if learner.quantize is None else rounded_share(spent, config.rounded_from)
            with learner.rounded(share):
                loss, tally = _accumulate_gradients(learner, source, counters.row, config, ranks)
            ranks.add_gradients(model.parameters())
            values = _values(model, loss, rate, counters, config)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            values |= learner.end_step(tally, config.rows_per_step)
            now = time.monotonic()
            speeds.append(config.positions_per_step / (now - step_started))
            counters = replace(
                counters,
                step=counters.step + 1,
                tokens=counters.tokens + int(loss.targets),
                seconds=ranks.agree(now - started),
                row=counters.row + config.rows_per_step,
                rounded_steps=counters.rounded_steps + (share > 0),
            )
            if _passes_mark(spent, config.spent(counters), config.evaluations):
                with torch.compiler.set_stance("force_eager"), learner.as_served():
                    values |= watch(counters.step)
            metrics.write(counters.step, values, _measured(counters, speeds[-1], config))
            progress.advance(
                (config.spent(counters) - spent) * 100,
                loss=values["loss"],
                tokens=counters.tokens,
                tokens_per_second=speeds[-1],
            )
            keeper.after_step(counters)
    return TrainingResult(counters.step, counters.rounded_steps, counters.tokens, counters.seconds, _usual(speeds))


def _usual(speeds: Sequence[float]) -> float:
    """The usual speed of a step, those that compile left out where there are others; 0 where there is none at all."""
    return statistics.median(speeds[WARM_STEPS:] or speeds or [0.0])


def _accumulate_gradients(
    learner: Learner, source: RowSource, row: int, config: LoopConfig, ranks: Ranks
) -> tuple[TokenLoss, Tensor]:
    """Gradients of this rank's rows of the step that begins at `row`; returns the global loss and tally.

    What is minimised is (sum of losses) / (targets in the global batch) + (sum of auxiliary losses) / (rows in it).
    """
    rows = source.rows(rank_rows(row, config.rows_per_step, ranks.rank, ranks.count))
    count = ranks.add(torch.tensor(rows.target_count()))
    sums: Tensor | None = None
    for micro in rows.split(config.micro_rows):
        loss = learner.loss(micro)
        minimised = loss.total / count
        if loss.auxiliary is not None:
            minimised = minimised + loss.auxiliary / config.rows_per_step
        minimised.backward()
        seen = torch.cat((loss.total.detach().double()[None], loss.tally))
        sums = seen if sums is None else sums + seen
    assert sums is not None
    ranks.add(sums)
    return TokenLoss(sums[0], count), sums[1:]


def _values(model: nn.Module, loss: TokenLoss, rate: float, before: Counters, config: LoopConfig) -> dict[str, float]:
    """The figures of a step that depend on nothing but its inputs."""
    mean = float(loss.total) / int(loss.targets)
    if not math.isfinite(mean):
        raise UserError(
            f"{config.title}: the loss is {mean} at step {before.step + 1}; lower the learning rates and run again"
        )
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    per_byte = {"bits_per_byte": mean / math.log(2) / config.bytes_per_token} if config.bytes_per_token else {}
    return {
        "tokens": before.tokens + int(loss.targets),
        "loss": mean,
        **per_byte,
        "learning_rate": rate * config.learning_rates.matrices,
        "grad_norm": float(torch.nn.utils.get_total_norm(gradients)),
    }


def _measured(counters: Counters, tokens_per_second: float, config: LoopConfig) -> dict[str, float]:
    """The figures of a step that the clock gives."""
    flops = tokens_per_second * config.flops_per_token
    return {
        "seconds": counters.seconds,
        "tokens_per_second": tokens_per_second,
        "flops_per_second": flops,
        "utilisation": flops / config.peak_flops,
    }


def _passes_mark(before: float, after: float, marks: int) -> bool:
    """Whether one of `marks` evenly spaced points of the budget, the last at its end, lies in (before, after]."""
    return math.floor(before * marks) < math.floor(after * marks)


@contextmanager
def _metrics(out: Path, counters: Counters, config: LoopConfig, ranks: Ranks) -> Iterator[MetricsWriter]:
    """The metrics files of `out`, cut back to the checkpoint; those of other ranks are thrown away."""
    with tempfile.TemporaryDirectory() as thrown_away:
        folder = out if ranks.leads else Path(thrown_away)
        track = config.track if ranks.leads else ()
        with MetricsWriter(folder, counters.step or None, track) as metrics:
            yield metrics


def _progress(config: LoopConfig, counters: Counters) -> Progress:
    return Progress(config.title, total=100, unit="%", done=config.spent(counters) * 100)
