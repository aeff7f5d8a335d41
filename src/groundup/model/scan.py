"""What scans share: chunks, and a linear recurrence in a number of steps that grows with the logarithm of its length.

Each step h → decay · h + entry is an affine map, and two of them after each other are one again (Blelloch 1990), so
pairs are joined, the sequence of half the length is solved, and what lies between is filled in. Decays are only ever
multiplied: nothing overflows, as 1/decay would, and a decay of zero (a new document) is as good as any other.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_scan(decay: Tensor, entry: Tensor, initial: Tensor) -> Tensor:
    """h[t] = decay[t] · h[t - 1] + entry[t] for all t, along dimension 1, where h[-1] is `initial`.

    entry: (batch, time, …); decay: the same or with sizes of 1 in place of others than time; initial: (batch, …).
    """
    time = entry.shape[1]
    if time == 1:
        return torch.addcmul(entry, decay, initial[:, None])
    first, second = slice(0, time - 1, 2), slice(1, None, 2)
    joined_decay = decay[:, second] * decay[:, first]
    joined_entry = torch.addcmul(entry[:, second], decay[:, second], entry[:, first])
    odd = linear_scan(joined_decay, joined_entry, initial)
    before_even = torch.cat((initial[:, None], odd[:, : (time - 1) // 2]), dim=1)
    even = torch.addcmul(entry[:, ::2], decay[:, ::2], before_even)
    if time % 2:
        odd = F.pad(odd, (0, 0) * (odd.ndim - 2) + (0, 1))
    return torch.stack((even, odd), dim=2).flatten(1, 2)[:, :time]


def in_chunks(x: Tensor, longest: int) -> Tensor:
    """(batch, time, …) as (batch, chunks, tokens, …), in as few chunks of at most `longest` tokens as there can be.

    They are equally long; what fills up the last one is zeros.
    """
    time = x.shape[1]
    chunks = -(-time // longest)
    size = -(-time // chunks)
    return F.pad(x, (0, 0) * (x.ndim - 2) + (0, chunks * size - time)).unflatten(1, (chunks, size))
