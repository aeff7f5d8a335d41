"""The cache of one generation: per layer the keys and values of every token so far, or a recurrent state."""

from collections.abc import Callable

import torch
from torch import Tensor

from groundup.model.attention import attend
from groundup.model.context import Visibility
from groundup.model.language_model import LanguageModel
from groundup.model.specs import Attention


class LayerKeyValues:
    """Keys and values of one layer, (batch, kv heads, tokens, head_dim), in buffers that double when full.

    state, load: see `model/context.py`.
    """

    def __init__(self) -> None:
        self.length = 0
        self.state: tuple[Tensor, ...] | None = None
        self.load: Tensor | None = None
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self._memory: tuple[Tensor, Tensor] | None = None

    def attend(
        self,
        spec: Attention,
        q_bhtk: Tensor,
        k_bhtk: Tensor,
        v_bhtk: Tensor,
        visible: Visibility,
        sinks_h: Tensor | None = None,
        bias_hts: Tensor | None = None,
    ) -> Tensor:
        """Append the new tokens; the queries see all keys and values."""
        start, self.length = self.length, self.length + k_bhtk.shape[2]
        self._keys = _append(self._keys, k_bhtk, start)
        self._values = _append(self._values, v_bhtk, start)
        kept = self._keys[:, :, : self.length], self._values[:, :, : self.length]
        return attend(spec, q_bhtk, *kept, visible, sinks_h, bias_hts)

    def memory(self, compute: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Keys and values of the encoder's output, computed once."""
        if self._memory is None:
            self._memory = compute()
        return self._memory


class KeyValueCache:
    """An empty cache for every layer of a model."""

    def __init__(self, model: LanguageModel) -> None:
        self.layers = [LayerKeyValues() for _ in model.layers]
        self._ids: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens held so far, padding included."""
        return 0 if self._ids is None else self._ids.shape[1]

    def take_ids(self, input_ids: Tensor) -> Tensor:
        """Keep `input_ids` (batch, time); returns all tokens so far, these included."""
        self._ids = input_ids if self._ids is None else torch.cat((self._ids, input_ids), dim=1)
        return self._ids


def _append(buffer: Tensor | None, new_bhtk: Tensor, start: int) -> Tensor:
    batch, heads, time, head_dim = new_bhtk.shape
    if buffer is None or buffer.shape[2] < start + time:
        larger = torch.empty(batch, heads, max(64, 2 * (start + time)), head_dim, dtype=new_bhtk.dtype)
        larger = larger.to(new_bhtk.device)
        if buffer is not None:
            larger[:, :, :start] = buffer[:, :, :start]
        buffer = larger
    buffer[:, :, start : start + time] = new_bhtk
    return buffer
