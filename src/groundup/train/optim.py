"""Optimizers: Muon for the matrices inside the layers, AdamW for everything else.

Muon (Jordan et al. 2024) replaces each matrix update by its nearest orthogonal matrix, so that every direction moves
equally far. Equal-shaped matrices are stacked and orthogonalised together, in bfloat16, by the Polar Express iteration
(Amsel et al. 2025), then normalised per output row by a running second moment (NorMuon, Li et al. 2025).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from groundup.model.experts import ExpertLinear
from groundup.model.parts import Embedding, Linear
from groundup.model.positions import RelativeBias
from groundup.train.learner import TextModel, text_part

# (a, b, c) of x ← a x + b (x xᵀ) x + c (x xᵀ)² x, one triple per iteration: Amsel et al. 2025, table for five steps.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def orthogonalise(matrices_nij: Tensor) -> Tensor:
    """About the nearest (semi-)orthogonal matrix to each of a stack, in bfloat16.

    Singular values of more than a thousandth of the Frobenius norm end within 0.85 to 1.15, smaller ones below that.
    matrices_nij: (n, rows, columns), any float dtype.
    """
    x_nij = matrices_nij.bfloat16()
    tall = x_nij.shape[1] > x_nij.shape[2]
    if tall:
        x_nij = x_nij.mT
    # The iteration needs a spectral norm of at most 1; the Frobenius norm bounds it, 2 % more covers bfloat16 rounding.
    x_nij = x_nij / (x_nij.norm(dim=(1, 2), keepdim=True) * 1.02 + 1e-6)
    for a, b, c in POLAR_EXPRESS:
        gram_nii = x_nij @ x_nij.mT
        x_nij = a * x_nij + torch.baddbmm(gram_nii, gram_nii, gram_nii, beta=b, alpha=c) @ x_nij
    return x_nij.mT if tall else x_nij


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; for matrices, and for stacks of them (experts), each matrix on its own.

    learning_rate is the size of an update of a square matrix, per singular direction; tall matrices (rows > columns)
    move sqrt(rows / columns) further (Jordan et al. 2024). weight_decay acts only where it agrees in sign with the
    update (cautious decay, Chen et al. 2025).
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        second_moment: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "second_moment": second_moment, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient, those of one shape together. Raises TypeError for a closure."""
        if closure is not None:
            raise TypeError("Muon takes no closure")
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for same_shape in by_shape.values():
                self._step_stack(group, same_shape)

    def _step_stack(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        """Update matrices of one shape together."""
        momentum = group["momentum"]
        directions = []
        for parameter in parameters:
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
                state["row_square"] = torch.zeros_like(parameter[..., :1])
            state["momentum"].lerp_(gradient, 1 - momentum)
            directions.append(gradient.lerp(state["momentum"], momentum))  # Nesterov
        stack = torch.stack(directions)
        rows, columns = stack.shape[-2:]
        updates = orthogonalise(stack.view(-1, rows, columns)).to(stack.dtype).view_as(stack)
        size = group["lr"] * max(1.0, rows / columns) ** 0.5
        for parameter, update in zip(parameters, updates, strict=True):
            update = _normalise_rows(update, self.state[parameter]["row_square"], group["second_moment"])
            if group["weight_decay"]:
                agrees = (update * parameter > 0).to(parameter.dtype)
                parameter.addcmul_(parameter, agrees, value=-group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-size)


def _normalise_rows(update: Tensor, row_square: Tensor, decay: float) -> Tensor:
    """Even out the rows of each matrix by their running mean square, keeping its Frobenius norm (NorMuon)."""
    row_square.lerp_(update.square().mean(dim=-1, keepdim=True), 1 - decay)
    evened = update * torch.rsqrt(row_square + 1e-10)
    return evened * (_norms(update) / (_norms(evened) + 1e-10))


def _norms(matrices: Tensor) -> Tensor:
    """The Frobenius norm of each matrix."""
    return matrices.norm(dim=(-2, -1), keepdim=True)


@dataclass(frozen=True)
class LearningRates:
    """Peak learning rates: Muon's for layer matrices; AdamW's for embedding and head, given for a width of 768."""

    matrices: float
    embedding: float
    head: float


# AdamW's rate for norm weights, scalars and gates, which need no scaling with the width.
SMALL_LEARNING_RATE = 0.02
REFERENCE_WIDTH = 768
# Muon's momentum rises over the first steps, while the average still consists of few gradients (Jordan et al. 2024).
FIRST_MOMENTUM, LAST_MOMENTUM, MOMENTUM_STEPS = 0.85, 0.95, 300


def build_optimizers(
    model: TextModel, rates: LearningRates, weight_decay: float = 0.0
) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for every linear map but the head, AdamW for head, tables and the few other weights.

    What is not moved by a gradient has no place in either.
    """
    text = text_part(model)
    scale = (text.config.width / REFERENCE_WIDTH) ** -0.5
    heads: list[Tensor] = [text.head_matrix.weight]
    if text.head is None:
        # Added to an embedding that moves as the head, they have to keep its pace: ten times faster nothing is learned.
        heads += [table.weight for table in (text.positions, text.token_types) if table is not None]
    linear = [module.weight for module in model.modules() if isinstance(module, Linear | ExpertLinear)]
    matrices = [weight for weight in linear if weight is not text.head_matrix.weight]
    # Added to attention scores, they are of the size of scalars.
    biases = {id(module.table.weight) for module in model.modules() if isinstance(module, RelativeBias)}
    placed = {id(parameter) for parameter in (*matrices, *heads)}
    tables = [module.weight for module in model.modules() if isinstance(module, Embedding)]
    tables = [table for table in tables if id(table) not in placed | biases]
    placed |= {id(table) for table in tables}
    learned = (parameter for parameter in model.parameters() if parameter.requires_grad)
    small = [parameter for parameter in learned if id(parameter) not in placed]
    groups = [
        {"params": heads, "lr": rates.head * scale},
        {"params": tables, "lr": rates.embedding * scale},
        {"params": small, "lr": SMALL_LEARNING_RATE},
    ]
    groups = [group for group in groups if group["params"]]
    optimizers = (
        Muon(matrices, lr=rates.matrices, momentum=FIRST_MOMENTUM, weight_decay=weight_decay),
        torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0, fused=True),
    )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def schedule(spent: float, warmup: float, cooldown: float) -> float:
    """Warm-up, plateau, linear cool-down to zero (Hägele et al. 2024): the factor on every peak learning rate.

    spent: part of the budget that is spent, 0 to 1.
    """
    rising = 1.0 if warmup == 0 else min(1.0, (spent + 1e-3) / warmup)
    falling = 1.0 if cooldown == 0 else min(1.0, (1 - spent) / cooldown)
    return min(rising, falling)


def set_learning_rates(optimizers: Iterable[torch.optim.Optimizer], factor: float, step: int) -> None:
    """Put the schedule's factor, and Muon's momentum of this step, into the parameter groups."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
            if isinstance(optimizer, Muon):
                risen = min(1.0, step / MOMENTUM_STEPS)
                group["momentum"] = FIRST_MOMENTUM + (LAST_MOMENTUM - FIRST_MOMENTUM) * risen
