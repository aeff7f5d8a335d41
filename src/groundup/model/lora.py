"""Low-rank adapters: what is added to a model's linear layers, for each row of a batch by an adapter of its own.

The layers stay as they are, of whatever kind: a forward hook adds to what leaves them. Without adapters there is none.
Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.

Shape suffixes: b rows of a batch, t tokens of a row, i inputs, r rank, o outputs, v rows of a table.
"""

import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class LowRank(NamedTuple):
    """What is added to a linear map, up (down x), computed in the type of x; `up_or` has the adapter's scale in it."""

    down_ri: Tensor
    up_or: Tensor

    def of(self, x: Tensor) -> Tensor:
        """(…, inputs) → (…, outputs)."""
        return F.linear(F.linear(x, self.down_ri.to(x.dtype)), self.up_or.to(x.dtype))


class LowRankTable(NamedTuple):
    """What is added to the vectors of a table, up (down of the row), of v rows."""

    down_rv: Tensor
    up_or: Tensor

    def of(self, ids: Tensor) -> Tensor:
        """(…) int64 → (…, width)."""
        return F.linear(F.embedding(ids, self.down_rv.T), self.up_or)


@dataclass(frozen=True, eq=False)
class Adapter:
    """changes: name of a linear layer or table → what is added to it; the output head is called `head_product`.

    key: its own, so that nothing kept of texts with one adapter is ever taken for that of another, whatever its name.
    """

    name: str
    changes: Mapping[str, LowRank | LowRankTable]
    key: bytes = field(default_factory=lambda: secrets.token_bytes(16))


class _Call(threading.local):
    """What the rows of the present call have, for each thread its own: two may run the same model.

    parts: the adapters among them, each with the indices of its rows, None for all.
    """

    rows = 0
    parts: tuple[tuple[Adapter, Tensor | None], ...] = ()


class Adapters:
    """The adapters that a model can be run with. Layers that were compiled before one was added do not see it."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._by_name: dict[str, Adapter] = {}
        self._hooks: dict[str, RemovableHandle] = {}
        self._call = _Call()

    def __contains__(self, adapter: Adapter) -> bool:
        return self._by_name.get(adapter.name) is adapter

    def named(self, name: str) -> Adapter:
        """Raises ValueError, naming those there are, if it is not among them."""
        if not isinstance(name, str) or name not in self._by_name:
            there = f"there are {', '.join(self._by_name)}" if self._by_name else "none has been added"
            raise ValueError(f"there is no adapter `{name}`; {there}")
        return self._by_name[name]

    def add(self, adapter: Adapter) -> None:
        """Raises ValueError if its name is taken."""
        if adapter.name in self._by_name:
            raise ValueError(f"there is an adapter `{adapter.name}` already; drop it first or choose another name")
        self._by_name[adapter.name] = adapter
        self._watch()

    def remove(self, adapter: Adapter) -> None:
        """Raises KeyError if it was not added."""
        del self._by_name[adapter.name]
        self._watch()

    @contextmanager
    def applied(
        self, rows: Sequence[Adapter | None], device: torch.device
    ) -> Iterator[Sequence[tuple[Adapter, Tensor | None]]]:
        """Within it, each row of a call has its adapter, or none; in this thread alone.

        Yields the adapters that there are, each with the indices of its rows, None for all.
        """
        present = dict.fromkeys(adapter for adapter in rows if adapter is not None)
        places = [[place for place, one in enumerate(rows) if one is adapter] for adapter in present]
        indices = [None if len(one) == len(rows) else torch.tensor(one, device=device) for one in places]
        self._call.rows, self._call.parts = len(rows), tuple(zip(present, indices, strict=True))
        try:
            yield self._call.parts
        finally:
            self._call.parts = ()

    def _watch(self) -> None:
        """Hook exactly the layers that some adapter changes."""
        changed = {name for adapter in self._by_name.values() for name in adapter.changes}
        for name in self._hooks.keys() - changed:
            self._hooks.pop(name).remove()
        for name in changed - self._hooks.keys():
            layer = self._model.get_submodule(name)
            self._hooks[name] = layer.register_forward_hook(partial(self._add_to, name))

    def _add_to(self, name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """What leaves a layer with what the adapters of the rows add to it; None where they add nothing."""
        changes = [(adapter.changes.get(name), rows) for adapter, rows in self._call.parts]
        if not any(change is not None for change, _ in changes):
            return None
        # Experts and their router see the tokens of all rows one after the other; a table is given ids.
        x, y_bto = inputs[0], output.reshape(self._call.rows, -1, output.shape[-1])
        x_bt = x.reshape(self._call.rows, -1, *(x.shape[-1:] if x.is_floating_point() else ()))
        for change, rows in changes:
            if change is not None:
                added = change.of(x_bt if rows is None else x_bt[rows]).to(y_bto.dtype)
                y_bto = y_bto + added if rows is None else y_bto.index_add(0, rows, added)
        return y_bto.view(output.shape)
