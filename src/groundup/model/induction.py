"""Hard-wired induction: what followed when the last tokens of a document stood there before.

Names, arguments and phrases repeat inside a document. A model has to learn heads that find the earlier place and copy
from it, but finding it needs no learning: for each length n the last earlier places with the same n tokens are looked
up, and the tokens that followed there are offered to every layer and to the output head.

Source: n-gram heads (Akyürek et al. 2024, "In-Context Language Learning"), which are induction heads (Olsson et al.
2022) built in. What they are worth stands in docs/log.md. No other library loads a model that has them (preset
`groundup`). Shape suffixes: b batch, t time, s time of the whole stream, n each length's places, d model width,
v vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model.parts import Embedding, Matrix
from groundup.model.specs import Induction

# Stands for "no such place" among the followers.
NOWHERE = -1


def followers(stream_bs: Tensor, segments_bs: Tensor | None, spec: Induction) -> Tensor:
    """What followed the last earlier places with the same n last tokens: ids (places of all lengths, batch, stream).

    Ordered by length, then from the latest place to earlier ones. NOWHERE where the last n tokens do not lie in one
    segment, or did not stand in it that often. Exact: places are numbered by what stands there, one length after the
    other, so that no hash can collide.
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
    for length in range(1, max(spec.lengths) + 1):
        if length > 1:
            numbers = numbers.roll(1)
        keys = numbers * vocabulary + stream
        numbers, previous = _number(keys if length == 1 else torch.where(starts, unique, keys))
        if length in spec.lengths:
            found += _tokens_after(stream, previous, spec.places)
    return torch.stack(found).view(-1, *stream_bs.shape)


def _number(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Equal keys get equal numbers from 0 on; and where each place's key stood last before it, -1 for never."""
    ordered, order = keys.sort(stable=True)
    repeats = ordered[1:] == ordered[:-1]
    numbers, previous = torch.zeros_like(keys), torch.full_like(keys, -1)
    numbers[order[1:]] = (~repeats).cumsum(0)
    previous[order[1:]] = torch.where(repeats, order[:-1], -1)
    return numbers, previous


def _tokens_after(stream: Tensor, previous: Tensor, places: int) -> list[Tensor]:
    """The token after each place's previous one, after the one before that, and so on."""
    found, at = [], previous
    for _ in range(places):
        # The place after an earlier one is at most this one, so it lies in the same segment.
        token = stream[(at + 1).clamp(max=len(stream) - 1)]
        found.append(token.masked_fill(at < 0, NOWHERE))
        at = torch.where(at < 0, -1, previous[at])
    return found


class NgramHeads(nn.Module):
    """Looks up the followers, for the layers as rows of a table and for the output head as its own rows.

    Both are weighted sums over the followers. How much one counts depends on the longest length that was found, since
    what followed five equal tokens is worth more than what followed one; each layer has weights of its own.
    """

    def __init__(self, spec: Induction, layers: int, vocab_size: int, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.table = Embedding(vocab_size, width)
        self.weight = nn.Parameter(torch.empty(layers, len(spec.lengths) + 1, spec.terms))
        self.gate = nn.Parameter(torch.empty(spec.terms, width))
        self.gate_bias = nn.Parameter(torch.empty(len(spec.lengths) + 1, spec.terms))

    def forward(self, stream_bs: Tensor, segments_bs: Tensor | None, time: int) -> "Found":
        """What is found for the last `time` tokens of a stream (see `followers`)."""
        return Found(self, followers(stream_bs, segments_bs, self.spec)[..., -time:])


class Found:
    """The followers of some tokens, and what the heads make of them.

    followers_nbt: ids, NOWHERE where there is none.
    """

    def __init__(self, heads: NgramHeads, followers_nbt: Tensor) -> None:
        self._heads = heads
        tokens_btn = followers_nbt.permute(1, 2, 0)
        self._present_btn = tokens_btn != NOWHERE
        self._tokens_btn = tokens_btn.clamp(min=0)
        # How many lengths found a place; where one did, so did all shorter ones.
        self._lengths_bt = self._present_btn[..., :: heads.spec.places].sum(-1)

    def offer(self, layer: int, dtype: torch.dtype) -> Tensor:
        """sum over n of weight_n · table[follower_n], (batch, time, width), with the weights of one layer."""
        weights_btn = F.embedding(self._lengths_bt, self._heads.weight[layer])
        return self._sum_of_rows(weights_btn, self._heads.table).to(dtype)

    def point(self, hidden_btd: Tensor, head: Matrix) -> Tensor:
        """hidden + sum over n of (gate_n · hidden + bias_n) · head[follower_n]: raises the followers' own logits."""
        dtype = hidden_btd.dtype
        strength_btn = F.linear(hidden_btd, self._heads.gate.to(dtype)).to(head.dtype)
        strength_btn = strength_btn + F.embedding(self._lengths_bt, self._heads.gate_bias)
        return hidden_btd + self._sum_of_rows(strength_btn, head).to(dtype)

    def _sum_of_rows(self, weights_btn: Tensor, table: Matrix) -> Tensor:
        """sum over n of weights · table[followers], (batch, time, width), in the table's type."""
        batch, time, count = self._tokens_btn.shape
        weights_btn = weights_btn * self._present_btn
        return table.sum_of_rows(self._tokens_btn.reshape(-1, count), weights_btn.reshape(-1, count)).view(
            batch, time, -1
        )
