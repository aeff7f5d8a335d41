"""A model's norms as instructions of a program."""

from torch import Tensor, nn

from groundup.engine.kernels.program import Program
from groundup.model.parts import Normalise


def write_norm(program: Program, norm: nn.Module | None, x_mk: Tensor, out_mk: Tensor, pieces: int = 1) -> None:
    """The norm, if it is one, of each of so many equal pieces of a token."""
    if isinstance(norm, Normalise):
        weight, bias = (None if one is None else one.detach().float().flatten() for one in (norm.weight, norm.bias))
        kinds = {"centred": norm.kind.startswith("layer"), "plus_one": norm.kind == "rms_plus_one"}
        program.norm(x_mk, out_mk, weight, bias, norm.eps, pieces=pieces, **kinds)
