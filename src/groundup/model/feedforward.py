"""The position-wise feed-forward network, plain or gated."""

from torch import Tensor, nn

from groundup.model.parts import Linear, activate
from groundup.model.specs import FeedForward


def gated_activation(spec: FeedForward, up: Tensor, gate: Tensor | None) -> Tensor:
    """What the last matrix is given: act(gate) · up, or act(up) where there is no gate."""
    if gate is None:
        return _activate(spec, up)
    if spec.limit is not None:
        gate, up = gate.clamp(max=spec.limit), up.clamp(-spec.limit, spec.limit)
    return _activate(spec, gate) * (up + spec.up_offset if spec.up_offset else up)


def _activate(spec: FeedForward, x: Tensor) -> Tensor:
    if spec.sharpness == 1:
        return activate(x, spec.activation)
    return activate(x * spec.sharpness, spec.activation) / spec.sharpness


class DenseFeedForward(nn.Module):
    """down(act(gate x) · up x) if gated, else down(act(up x)). Source: Shazeer 2020 for the gated forms."""

    def __init__(self, spec: FeedForward, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.up = Linear(width, spec.width, spec.bias)
        self.gate = Linear(width, spec.width, spec.bias) if spec.gated else None
        self.down = Linear(spec.width, width, spec.bias)

    def forward(self, x_btd: Tensor) -> Tensor:
        """Each token by itself; shape and type stay."""
        up_btf = self.up(x_btd)
        return self.down(gated_activation(self.spec, up_btf, None if self.gate is None else self.gate(x_btd)))
