"""The encoder's part of a step: sources are read, and what the decoder's layers see of them lies in blocks.

Shape suffixes: b sources or sequences, s places of a source, n places of all sources, d model width, h kv heads, k head
dimension.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from groundup.engine.paged import PagedStore, slots_of
from groundup.engine.prompts import left_padded
from groundup.engine.sequence import Chunk
from groundup.engine.source import Source
from groundup.model.audio import AudioTower
from groundup.model.context import Memory
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.specs import Attention
from groundup.model.stack import Block


class SourceLayout(NamedTuple):
    """Where the sources of a call's sequences lie: the slots of each, and of padding in front, and who may see what."""

    slots_bs: Tensor
    memory: Memory


class Encoding:
    """Reads sources into a store that holds the decoder's tokens, too.

    Raises ValueError for a decoder in which cross-attention has other heads than attention: they would not fit.
    """

    def __init__(self, model: EncoderDecoder, store: PagedStore) -> None:
        self._model, self._store = model, store
        for layer in model.config.decoder.layers:
            own, cross = layer.mixer, layer.cross
            if isinstance(own, Attention) and cross is not None and _heads(own) != _heads(cross):
                raise ValueError(
                    f"the engine needs cross-attention with as many heads, as large, as attention has; in this "
                    f"{model.config.family} model they are {_heads(cross)} and {_heads(own)}"
                )

    def read(self, chunks: Sequence[Chunk]) -> None:
        """Read what has not been read of these sequences' sources, those of about equal length together."""
        unread = {chunk.sequence.source: None for chunk in chunks if chunk.sequence.unread}
        together: list[Source] = []
        for source in sorted((one for one in unread if one is not None), key=lambda one: one.length, reverse=True):
            if together and not self._goes_with(together[0], source):
                self._read(together)
                together = []
            together.append(source)
        if together:
            self._read(together)

    def layout(self, chunks: Sequence[Chunk]) -> SourceLayout:
        """Of the sequences of one call, all of whose sources have been read."""
        slots = [_slots(chunk.sequence.source) for chunk in chunks]
        longest = max(map(len, slots))
        slots_bs = np.full((len(slots), longest), self._store.padding_slot, dtype=np.int64)
        for row, own in zip(slots_bs, slots, strict=True):
            row[longest - len(own) :] = own
        padded = min(map(len, slots)) < longest
        segments_bs = torch.from_numpy(-(slots_bs == self._store.padding_slot).astype(np.int32)) if padded else None
        device = self._model.device
        memory = Memory(None, None if segments_bs is None else segments_bs.to(device))
        return SourceLayout(torch.from_numpy(slots_bs).to(device), memory)

    def _goes_with(self, longest: Source, other: Source) -> bool:
        """At most half of what is computed is padding; sound has none."""
        if isinstance(self._model.encoder, AudioTower):
            return longest.content.shape == other.content.shape
        return longest.length <= 2 * other.length

    def _read(self, sources: Sequence[Source]) -> None:
        hidden_bsd, segments_bs = self._encode(sources)
        assert hidden_bsd is not None
        slots_n = torch.from_numpy(np.concatenate([_slots(source) for source in sources])).to(hidden_bsd.device)
        places_n = None if segments_bs is None else (segments_bs.flatten() == 0).nonzero()[:, 0]
        for layer, *kept in zip(self._model.decoder.layers, self._store.keys, self._store.values, strict=True):
            assert isinstance(layer, Block) and layer.cross is not None
            for slots, new_bhsk in zip(kept, layer.cross.keys_values(hidden_bsd), strict=True):
                new_hnk = new_bhsk.transpose(0, 1).flatten(1, 2)
                slots.write(slots_n, (new_hnk if places_n is None else new_hnk[:, places_n])[None])
        for source in sources:
            source.is_read = True

    def _encode(self, sources: Sequence[Source]) -> Memory:
        contents = [source.content for source in sources]
        if isinstance(self._model.encoder, AudioTower):
            return self._model.read(torch.stack(contents).to(self._model.device))
        input_ids, mask_bs = left_padded([content.tolist() for content in contents], self._model.device)
        padded = min(map(len, contents)) < max(map(len, contents))
        return self._model.read(input_ids, mask_bs if padded else None)


def _slots(source: Source | None) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Where a source that is held lies."""
    assert source is not None and source.table is not None
    return slots_of(source.table, source.length)


def _heads(spec: Attention) -> tuple[int, int]:
    """How many kv heads, and how large."""
    return spec.kv_heads, spec.head_dim
