"""Parts that give small models knowledge at almost no arithmetic: token values, hashed n-grams, mixed residuals.

No published family has them, so no other library loads a model that does (preset `groundup`). What each of them is
worth stands in docs/log.md. Shape suffixes: b batch, t time, h kv heads, k head dimension, d model width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model.parts import Embedding
from groundup.model.specs import VALUE_GATE_WIDTH, Attention

# Odd multipliers of the token at distance 0, 1, 2, … in the n-gram hash.
HASH_MULTIPLIERS = (36313, 27191, 15485863)


class TokenValues(nn.Module):
    """What each token adds to its attention values: a vector from a table, gated per head by the layer's input.

    Source: value embeddings of modded-nanogpt (2024) with the gate of nanochat (2026).
    """

    def __init__(self, spec: Attention, vocab_size: int) -> None:
        super().__init__()
        self.table = Embedding(vocab_size, spec.kv_heads * spec.head_dim)
        self.gate = nn.Parameter(torch.empty(spec.kv_heads, VALUE_GATE_WIDTH))

    def forward(self, rows_btk: Tensor, x_btd: Tensor) -> Tensor:
        """rows_btk: the tokens' rows of `table`; returns (batch, time, kv heads, head_dim)."""
        gate_bth = 2 * torch.sigmoid(F.linear(x_btd[..., :VALUE_GATE_WIDTH], self.gate.to(x_btd.dtype)))
        return gate_bth[..., None] * rows_btk.view(*gate_bth.shape, -1)


class NgramEmbedding(nn.Module):
    """The sum of one learned vector for each token's bigram, trigram, …, hashed into tables of fixed size.

    Source: bigram hash embedding of modded-nanogpt (2026).
    """

    def __init__(self, buckets: Sequence[int], width: int) -> None:
        super().__init__()
        self.buckets = tuple(buckets)
        self.tables = nn.ModuleList(Embedding(rows, width) for rows in buckets)

    def forward(self, stream_bs: Tensor, positions_bt: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows (batch, time, width) of the last t tokens of a stream, positions_bt their places in their documents.

        Tokens before the start of a document count as id 0.
        """
        end, time = stream_bs.shape[1] + len(self.tables), positions_bt.shape[1]
        stream_bs = F.pad(stream_bs, (len(self.tables), 0))
        key = stream_bs[:, end - time :] * HASH_MULTIPLIERS[0]
        total = None
        for distance, (buckets, table) in enumerate(zip(self.buckets, self.tables, strict=True), start=1):
            earlier = stream_bs[:, end - time - distance : end - distance]
            key = key ^ (earlier.masked_fill(positions_bt < distance, 0) * HASH_MULTIPLIERS[distance])
            rows_btd = table(key % buckets, dtype)
            total = rows_btd if total is None else total + rows_btd
        assert total is not None
        return total


class ResidualMix(nn.Module):
    """x ← a · x + b · first (+ c · ngrams + d · followers + …), with learned scalars for each layer.

    first is what entered the first layer. Source: x0 and residual scalars of modded-nanogpt (2024).
    """

    def __init__(self, terms: int) -> None:
        super().__init__()
        self.scalars = nn.Parameter(torch.empty(terms))

    def forward(self, x_btd: Tensor, others: Sequence[Tensor]) -> Tensor:
        scalars = self.scalars.to(x_btd.dtype)
        x_btd = x_btd * scalars[0]
        for index, other_btd in enumerate(others, start=1):
            x_btd = x_btd + scalars[index] * other_btd
        return x_btd
