"""Where a killed run goes on from: one safetensors file with weights, optimizer state and the loop's counters.

The file appears whole or not at all. Its counters travel in the safetensors header, so nothing is ever unpickled.
"""

import json
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from groundup.storage import write_atomically
from groundup.train.parallel import Ranks

FILE = "checkpoint.safetensors"


@dataclass(frozen=True)
class Counters:
    """How far a run is: finished steps, target tokens seen, seconds of training spent, and the row to go on from.

    settled: whether it is settled which rows the run ends with. rounded_steps: of the finished ones, those in which
    weights were rounded as they will be served.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    row: int = 0
    settled: bool = False
    rounded_steps: int = 0


def save_checkpoint(
    folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], counters: Counters
) -> None:
    """Write everything that the next step depends on; the older checkpoint stays until the new one is on disk."""
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    tensors |= {name: tensor for name, tensor, *_ in _optimizer_tensors(model, optimizers)}
    write_atomically(folder / FILE, save(tensors, metadata={"counters": json.dumps(asdict(counters))}))


def load_checkpoint(folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> Counters | None:
    """Put the checkpoint of `folder` back into place, or return None where there is none."""
    path = folder / FILE
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        counters = Counters(**json.loads(file.metadata()["counters"]))
        for name, parameter in model.named_parameters():
            parameter.data.copy_(file.get_tensor(f"model.{name}"))
        owners = _owners(model, optimizers)
        for name in file.keys():  # noqa: SIM118 - a safetensors file is not a mapping
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                parameter_name, _, key = rest.rpartition(".")
                optimizer, parameter = owners[parameter_name]
                optimizer.state[parameter][key] = file.get_tensor(name)
    return counters


class Keeper:
    """Saves checkpoints while the loop runs: every so often, and before a signal ends it.

    Ctrl-C and SIGTERM wait for the end of the step; the signal is then raised again under the caller's own handler.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        every_seconds: float,
        ranks: Ranks,
    ) -> None:
        self._folder, self._model, self._optimizers = folder, model, optimizers
        self._every_seconds, self._ranks = every_seconds, ranks
        self._saved_at = time.monotonic()
        self._received: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "Keeper":
        # Python delivers signals to the main thread alone; elsewhere there is nothing to wait for.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore_handlers()

    def after_step(self, counters: Counters) -> None:
        """Save if it is time or a signal came; in the second case the signal takes effect now."""
        stop = self._ranks.agree(float(self._received or 0))
        if stop or self._ranks.agree(time.monotonic() - self._saved_at) >= self._every_seconds:
            if self._ranks.leads:
                save_checkpoint(self._folder, self._model, self._optimizers, counters)
            self._saved_at = time.monotonic()
        if stop:
            self._restore_handlers()
            signal.raise_signal(int(stop))
            raise KeyboardInterrupt

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._received = number

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()


def remove_checkpoint(folder: Path) -> None:
    """Drop the checkpoint of a run that has ended."""
    (folder / FILE).unlink(missing_ok=True)


def _owners(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, tuple[torch.optim.Optimizer, nn.Parameter]]:
    """Parameter name → the optimizer that moves it, and the parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (optimizer, parameter)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def _optimizer_tensors(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> list[tuple[str, Tensor]]:
    return [
        (f"optimizer.{name}.{key}", tensor)
        for name, (optimizer, parameter) in _owners(model, optimizers).items()
        for key, tensor in optimizer.state[parameter].items()
    ]
