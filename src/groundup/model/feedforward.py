"""The position-wise feed-forward network, plain or gated."""

from torch import Tensor, nn

from groundup.model.config import FeedForward
from groundup.model.parts import Linear, activate


class DenseFeedForward(nn.Module):
    """down(act(gate x) · up x) if gated, else down(act(up x)). Source: Shazeer 2020 for the gated forms."""

    def __init__(self, spec: FeedForward, width: int) -> None:
        super().__init__()
        self.activation = spec.activation
        self.up = Linear(width, spec.width)
        self.gate = Linear(width, spec.width) if spec.gated else None
        self.down = Linear(spec.width, width)

    def forward(self, x_btd: Tensor) -> Tensor:
        up_btf = self.up(x_btd)
        if self.gate is None:
            return self.down(activate(up_btf, self.activation))
        return self.down(activate(self.gate(x_btd), self.activation) * up_btf)
