"""Metrics for those who already live in TensorBoard or Weights & Biases (extra `track`), imported only when asked.

Their files lie in the hidden folder `.track` of the stage: they hold clock times, so they are no content of it.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from groundup.errors import UserError

FOLDER = ".track"


class Tracker(Protocol):
    """Takes the metrics of a run elsewhere, as `MetricsWriter` writes them."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def open_trackers(names: Sequence[str], out: Path, resume_at_step: int | None) -> list[Tracker]:
    """One open tracker per name. Raises UserError for an unknown name or a package that is not installed."""
    kinds: dict[str, Callable[[Path, int | None], Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
    for name in names:
        if name not in kinds:
            raise UserError(f"unknown tracker `{name}`: known trackers are {', '.join(kinds)}")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"tracker `{name}` is not installed: pip install 'groundup[track]'")
    return [kinds[name](out / FOLDER, resume_at_step) for name in names]


class TensorBoard:
    """Event files in `.track/tensorboard`; show them with `tensorboard --logdir RUN`."""

    def __init__(self, folder: Path, resume_at_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = None if resume_at_step is None else resume_at_step + 1
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A W&B run that a resumed training goes on with; WANDB_MODE=offline keeps it on this machine."""

    def __init__(self, folder: Path, resume_at_step: int | None) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        id_file = folder / "wandb-id"
        known = id_file.read_text() if resume_at_step is not None and id_file.exists() else None
        self._run: Any = wandb.init(project="groundup", dir=str(folder), id=known, resume="allow" if known else None)
        id_file.write_text(self._run.id)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
