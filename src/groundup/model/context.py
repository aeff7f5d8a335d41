"""What a layer is told beside its input: positions, who may see whom, what was there before.

Shape suffixes: b batch, t query time, s key time, h heads, k head dimension, d model width.

Every token belongs to a *segment* (a packed document; -1 for padding) and has an index in the row. A query sees a key
if both are in the same segment and the key is not later (unless the layer is bidirectional) and not outside its window.
Training packs, left padding and the cache all say what they mean with segments alone; padding rows see themselves, so
no softmax is ever empty.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from groundup.model.positions import RopeTables
from groundup.model.specs import Attention


class Visibility(NamedTuple):
    """Segments of the queries and of the keys; queries are the last t of the s keys, or keys are another text's.

    segments_bt, segments_bs: int32, or None where every token of the row is one segment.
    """

    segments_bt: Tensor | None
    segments_bs: Tensor | None

    def block(self, spec: Attention, queries: range, keys: range, first: int, device: torch.device) -> Tensor | None:
        """The rule for some queries against some keys: bool (batch or 1, 1, queries, keys), None where all see all.

        first: index of query 0 among the keys.
        """
        if self.segments_bt is None and spec.window is None and first + queries.start + 1 >= keys.stop:
            return None
        rows = torch.arange(first + queries.start, first + queries.stop, device=device)[:, None]
        columns = torch.arange(keys.start, keys.stop, device=device)[None, :]
        rule = rows >= columns if spec.causal else None
        if spec.window is not None:
            near = rows - columns < spec.window if spec.causal else (rows - columns).abs() <= spec.window
            rule = near if rule is None else rule & near
        rule = None if rule is None else rule[None, None]
        if self.segments_bt is None or self.segments_bs is None:
            return rule
        query_segments = self.segments_bt[:, None, queries.start : queries.stop, None]
        same = query_segments == self.segments_bs[:, None, None, keys.start : keys.stop]
        return same if rule is None else rule & same

    def starts(self) -> Tensor | None:
        """Which of the t tokens are the first of their segment, bool (batch, t); None where each row is one segment.

        Recurrent layers begin anew there; a row's very first token needs no such mark, as nothing came before.
        """
        if self.segments_bt is None or self.segments_bs is None:
            return None
        earlier_bs = torch.cat((self.segments_bs[:, :1], self.segments_bs[:, :-1]), dim=1)
        return (self.segments_bs != earlier_bs)[:, -self.segments_bt.shape[1] :]


class Memory(NamedTuple):
    """An encoder's output, (batch, source time, width), and its segments, as int32 (batch, source time) or None.

    hidden_bsd: None where a cache keeps what every layer has made of it.
    """

    hidden_bsd: Tensor | None
    segments_bs: Tensor | None

    def visible(self, segments_bt: Tensor | None, time: int) -> Visibility:
        """Who sees what of it: target tokens of segments_bt, or `time` of them in segment 0."""
        if self.segments_bs is None:
            return Visibility(None, None)
        # Padding sees the first segment, and all of a source that is padding alone: what sees nothing at all is not a
        # number.
        keys_bs = self.segments_bs.masked_fill((self.segments_bs < 0).all(1, keepdim=True), 0)
        first_bt = keys_bs.new_zeros(len(keys_bs), time)
        return Visibility(first_bt if segments_bt is None else segments_bt.clamp(min=0), keys_bs)


class Shared(NamedTuple):
    """What the layers of one kind share.

    rope: the tables of the layer's own rotation, if it has one.
    bias_hts: added to the scores of self-attention, (heads, t, s), or None.
    memory_bsd, memory_visible: the encoder's output for cross-attention, and who sees what of it.
    """

    rope: RopeTables | None
    visible: Visibility
    bias_hts: Tensor | None = None
    memory_bsd: Tensor | None = None
    memory_visible: Visibility = Visibility(None, None)


class LayerCache(Protocol):
    """What a layer needs of a cache.

    state: of a recurrent layer after the last token, None before the first.
    load: tokens that each expert has taken, (batch, experts), where experts have a capacity; None before the first.
    """

    state: tuple[Tensor, ...] | None
    load: Tensor | None

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
        """Keep the new keys and values, then `attention.attend` of the queries to all that are kept."""
        ...

    def memory(self, compute: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Keys and values of the encoder's output: those that are kept, or else what is computed now."""
        ...


class Cache(Protocol):
    """What a model needs of a cache: its length in tokens, a part for each layer, and the tokens themselves."""

    @property
    def length(self) -> int: ...

    @property
    def layers(self) -> Sequence[LayerCache]: ...

    def take_ids(self, input_ids: Tensor) -> Tensor:
        """Keep `input_ids` (batch, time); returns all tokens so far, these included."""
        ...
