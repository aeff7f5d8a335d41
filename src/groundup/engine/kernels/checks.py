"""Tensors as addresses for the library, which checks nothing: types, layouts, shapes and bounds, each a ValueError."""

import torch
from torch import Tensor


def round_up(number: int, multiple: int) -> int:
    """The next multiple from `number` on."""
    return -(-number // multiple) * multiple


def rows_address(name: str, x: Tensor) -> int:
    """The address of float32 rows, of which each is contiguous."""
    require_type(name, x, torch.float32)
    if not x.is_contiguous() and x.numel() and not x[0].is_contiguous():
        raise ValueError(f"every row of `{name}` must be contiguous")
    return x.data_ptr()


def address(name: str, x: Tensor | None, dtype: torch.dtype = torch.float32) -> int | None:
    """The address of a contiguous tensor, or None."""
    if x is None:
        return None
    require_type(name, x, dtype)
    if not x.is_contiguous():
        raise ValueError(f"`{name}` must be contiguous")
    return x.data_ptr()


def require_type(name: str, x: Tensor, dtype: torch.dtype) -> None:
    """Raises ValueError for another type, and for what does not lie in memory that the CPU reads."""
    if x.dtype != dtype or not x.is_cpu:
        raise ValueError(f"`{name}` must be {dtype} on the CPU, not {x.dtype} on {x.device}")


def require_shape(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError for another shape."""
    if x.shape != shape:
        raise ValueError(f"`{name}` must have shape {shape}, not {tuple(x.shape)}")


def require_within(name: str, x: Tensor, count: int) -> None:
    """Raises ValueError if one of the integers is not in 0 … count - 1."""
    if x.numel():
        least, most = x.aminmax()
        if int(least) < 0 or int(most) >= count:
            raise ValueError(f"`{name}` must be in 0 … {count - 1}")
