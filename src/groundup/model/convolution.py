"""The short causal convolution that recurrent layers mix neighbouring tokens with.

Shape suffixes: b batch, t time, s time after the tokens of the state, k kernel, c channels.
"""

import torch
from torch import Tensor, nn


class CausalConvolution(nn.Module):
    """y[t] = Σ_j weight[j] · x[t - kernel + 1 + j] (+ bias), each channel by itself.

    What precedes a token's segment counts as zero. The weight is (channels, 1, kernel), as that of `nn.Conv1d`.
    """

    def __init__(self, channels: int, kernel: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def forward(self, x_btc: Tensor, starts_bt: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """The outputs (batch, time, channels), and the state after them.

        starts_bt: bool, the tokens that are the first of their segment (`Visibility.starts`), or None.
        state: the kernel - 1 inputs before these, (batch, kernel - 1, channels), with zeros in place of those that a
            next token of the same segment must not see; None before the first token.
        """
        weight_kc = self.weight[:, 0].T.to(x_btc.dtype)
        past, time = len(weight_kc) - 1, x_btc.shape[1]
        if state is None:
            state = x_btc.new_zeros(len(x_btc), past, x_btc.shape[2])
        inputs_bsc = torch.cat((state, x_btc), dim=1)
        segment_bs = None
        if starts_bt is not None:
            # Numbered from that of the state on, which is 0.
            segment_bs = torch.cat((starts_bt.new_zeros(len(x_btc), past), starts_bt), dim=1).cumsum(1)
        y_btc = x_btc * weight_kc[past]
        for tap in range(past):
            earlier_btc = inputs_bsc[:, tap : tap + time] * weight_kc[tap]
            if segment_bs is not None:
                other_bt = segment_bs[:, tap : tap + time] != segment_bs[:, past:]
                earlier_btc = earlier_btc.masked_fill(other_bt[..., None], 0)
            y_btc = y_btc + earlier_btc
        if self.bias is not None:
            y_btc = y_btc + self.bias.to(x_btc.dtype)
        kept_bkc = inputs_bsc[:, time:]
        if segment_bs is not None:
            kept_bkc = kept_bkc.masked_fill((segment_bs[:, time:] != segment_bs[:, -1:])[..., None], 0)
        return y_btc, kept_bkc
