"""A gated convolution over the last few tokens: all that most layers of LFM2 see of other tokens.

Source: Liquid AI 2025, "LFM2 Technical Report". Shape suffixes: b batch, t time, d model width.
"""

from torch import Tensor, nn

from groundup.model.context import LayerCache, Shared
from groundup.model.convolution import CausalConvolution
from groundup.model.delta_specs import ShortConvolution
from groundup.model.parts import Linear


class GatedConvolution(nn.Module):
    """output(after · convolution(before · value)), where both gates are linear maps of the input, as the value is."""

    def __init__(self, spec: ShortConvolution, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.before = Linear(width, width, spec.bias)
        self.after = Linear(width, width, spec.bias)
        self.value = Linear(width, width, spec.bias)
        self.convolution = CausalConvolution(width, spec.kernel, spec.bias)
        self.output = Linear(width, width, spec.bias)

    def forward(self, x_btd: Tensor, shared: Shared, cache: LayerCache | None) -> Tensor:
        """(batch, time, width), as x. cache: gives the state before the first token and takes that after the last."""
        held_bkd = None if cache is None or cache.state is None else cache.state[0]
        gated_btd = self.before(x_btd) * self.value(x_btd)
        mixed_btd, held_bkd = self.convolution(gated_btd, shared.visible.starts(), held_bkd)
        if cache is not None:
            cache.state = (held_bkd,)
        return self.output(self.after(x_btd) * mixed_btd)
