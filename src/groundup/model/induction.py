"""Hard-wired induction: what followed when the last tokens of a document stood there before.

Names, arguments and phrases repeat inside a document. A model has to learn heads that find the earlier place and copy
from it, but finding it needs no learning: for each length n the last earlier place with the same n tokens is looked up,
and the token that followed there is offered to every layer and to the output head.

Source: n-gram heads (Akyürek et al. 2024, "In-Context Language Learning"), which are induction heads (Olsson et al.
2022) built in. What they are worth stands in docs/log.md. No other library loads a model that has them (preset
`groundup`). Shape suffixes: b batch, t time, s time of the whole stream, n lengths, d model width, v vocabulary.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model.parts import Embedding

# Stands for "no such place" among the followers.
NOWHERE = -1


def followers(stream_bs: Tensor, segments_bs: Tensor | None, lengths: Sequence[int]) -> list[Tensor]:
    """For each of `lengths`, (batch, stream): the token after the last earlier place with the same n tokens up to it.

    NOWHERE where the last n tokens do not lie in one segment, or did not stand in it before. Exact: places are numbered
    by what stands there, one length after the other, so that no hash can collide.
    stream_bs: int64 token ids; segments_bs: see `attention.py`, None where each row is one document.
    """
    stream = stream_bs.flatten()
    starts_bs = torch.zeros_like(stream_bs, dtype=torch.bool)
    starts_bs[:, 0] = True
    if segments_bs is not None:
        starts_bs[:, 1:] = segments_bs[:, 1:] != segments_bs[:, :-1]
    starts = starts_bs.flatten()
    # Before the first token a place is told by its segment alone. Where a segment begins, nothing longer can end.
    numbers = starts.cumsum(0)
    unique = -1 - torch.arange(len(stream), device=stream.device)
    vocabulary = stream.max() + 1
    found = []
    for length in range(1, max(lengths) + 1):
        if length > 1:
            numbers = numbers.roll(1)
        keys = numbers * vocabulary + stream
        numbers, previous = _number(keys if length == 1 else torch.where(starts, unique, keys))
        if length in lengths:
            # The place after the earlier one is at most this one, so it lies in the same segment.
            tokens = stream[(previous + 1).clamp(max=len(stream) - 1)]
            found.append(tokens.masked_fill(previous < 0, NOWHERE).view(stream_bs.shape))
    return found


def _number(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Equal keys get equal numbers from 0 on; and where each place's key stood last before it, -1 for never."""
    ordered, order = keys.sort(stable=True)
    repeats = ordered[1:] == ordered[:-1]
    numbers, previous = torch.zeros_like(keys), torch.full_like(keys, -1)
    numbers[order[1:]] = (~repeats).cumsum(0)
    previous[order[1:]] = torch.where(repeats, order[:-1], -1)
    return numbers, previous


class Induction(nn.Module):
    """Offers the followers to the layers, as rows of a table, and to the head, as its own rows under a gate."""

    def __init__(self, lengths: Sequence[int], vocab_size: int, width: int) -> None:
        super().__init__()
        self.lengths = tuple(lengths)
        self.table = Embedding(vocab_size, width)
        self.gate = nn.Parameter(torch.empty(len(self.lengths), width))
        self.gate_bias = nn.Parameter(torch.empty(len(self.lengths)))

    def rows(self, followers_nbt: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
        """For each length the followers' rows (batch, time, width), zero where there is none."""
        return tuple(_rows_or_zero(self.table.weight, tokens_bt, dtype) for tokens_bt in followers_nbt)

    def point(self, hidden_btd: Tensor, followers_nbt: Sequence[Tensor], head_vd: Tensor) -> Tensor:
        """hidden + sum over n of (gate_n · hidden + bias_n) · head[follower_n]: raises the followers' own logits."""
        strength_btn = F.linear(hidden_btd, self.gate.to(hidden_btd.dtype), self.gate_bias.to(hidden_btd.dtype))
        for strength_bt, tokens_bt in zip(strength_btn.unbind(-1), followers_nbt, strict=True):
            hidden_btd = hidden_btd + strength_bt[..., None] * _rows_or_zero(head_vd, tokens_bt, hidden_btd.dtype)
        return hidden_btd


def _rows_or_zero(table_vd: Tensor, tokens_bt: Tensor, dtype: torch.dtype) -> Tensor:
    rows_btd = F.embedding(tokens_bt.clamp(min=0), table_vd).to(dtype)
    return rows_btd * (tokens_bt != NOWHERE)[..., None]
