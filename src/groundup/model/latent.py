"""Multi-head latent attention: keys and values made of one small vector for each token.

Written as the definition; a cache here holds whole keys and values. Source: DeepSeek-V2 (2024), section 2.1.
Shape suffixes: b batch, t query time, s key time, h heads, k head dimension, d model width, r latent rank.
"""

import torch
from torch import Tensor, nn

from groundup.model.attention import attend
from groundup.model.context import LayerCache, Shared
from groundup.model.parts import Linear, Normalise
from groundup.model.positions import rotate
from groundup.model.specs import LatentAttention


class LatentSelfAttention(nn.Module):
    """Queries through a rank of their own or directly, keys and values through a shared latent."""

    def __init__(self, spec: LatentAttention, width: int) -> None:
        super().__init__()
        self.spec = spec
        queries = spec.heads * (spec.plain_dim + spec.rotated_dim)
        rank = spec.query_rank
        self.query_down = None if rank is None else Linear(width, rank, spec.bias)
        self.query_norm = None if rank is None else Normalise(spec.norm, rank)
        self.query = Linear(width if rank is None else rank, queries)
        self.latent = Linear(width, spec.latent_rank + spec.rotated_dim, spec.bias)
        self.latent_norm = Normalise(spec.norm, spec.latent_rank)
        self.key_value = Linear(spec.latent_rank, spec.heads * (spec.plain_dim + spec.value_dim))
        self.output = Linear(spec.heads * spec.value_dim, width, spec.bias)

    def forward(self, x_btd: Tensor, shared: Shared, cache: LayerCache | None) -> Tensor:
        """(batch, time, width), as x. cache: has the keys and values of all tokens before."""
        spec, rope = self.spec, shared.rope
        assert rope is not None
        batch, time, _ = x_btd.shape
        latent_btr, shared_key_btk = self.latent(x_btd).split((spec.latent_rank, spec.rotated_dim), dim=-1)
        key_value_bthk = self.key_value(self.latent_norm(latent_btr)).view(batch, time, spec.heads, -1)
        plain_bthk, v_bthk = key_value_bthk.split((spec.plain_dim, spec.value_dim), dim=-1)
        turned_bt1k = rotate(shared_key_btk[:, :, None], spec.rope, rope)
        k_bthk = torch.cat((plain_bthk, turned_bt1k.expand(-1, -1, spec.heads, -1)), dim=-1)
        q_bthk = self._queries(x_btd).view(batch, time, spec.heads, -1)
        plain_bthk, turning_bthk = q_bthk.split((spec.plain_dim, spec.rotated_dim), dim=-1)
        q_bthk = torch.cat((plain_bthk, rotate(turning_bthk, spec.rope, rope)), dim=-1)
        q_bhtk, k_bhtk, v_bhtk = (each.transpose(1, 2) for each in (q_bthk, k_bthk, v_bthk))
        attend_all = attend if cache is None else cache.attend
        out_bhtk = attend_all(spec.scored, q_bhtk, k_bhtk, v_bhtk, shared.visible)
        return self.output(out_bhtk.transpose(1, 2).reshape(batch, time, -1))

    def _queries(self, x_btd: Tensor) -> Tensor:
        if self.query_down is not None and self.query_norm is not None:
            x_btd = self.query_norm(self.query_down(x_btd))
        return self.query(x_btd)
