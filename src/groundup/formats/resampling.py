"""Resizing an image as Pillow does, to the bit: what published image towers were trained on.

Each output pixel is a weighted mean of the inputs under a filter, which is as wide as the reduction is strong. Width
and height are changed one after the other, with values rounded to bytes in between. Weights are integers of 22
fractional bits. Source: the arithmetic of Pillow 13's `Image.resize` for 8-bit images, which `transformers` uses too.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Filter = Literal["lanczos", "bilinear", "bicubic"]
Bytes = NDArray[np.uint8]

FRACTION_BITS = 22


def resize(image_yxc: Bytes, height: int, width: int, by: Filter) -> Bytes:
    """The image (rows, columns, channels) in another size."""
    # Versions before 13 began with the width always; the order shows in the last bit, more where an image is enlarged.
    shrinks = image_yxc.shape[0] - height
    if shrinks > max(0, 2 * (image_yxc.shape[1] - width)):
        return _resize_width(_resize_height(image_yxc, height, by), width, by)
    return _resize_height(_resize_width(image_yxc, width, by), height, by)


def _resize_width(image_yxc: Bytes, width: int, by: Filter) -> Bytes:
    return _resize_height(image_yxc.transpose(1, 0, 2), width, by).transpose(1, 0, 2)


def _resize_height(rows: Bytes, size: int, by: Filter) -> Bytes:
    if len(rows) == size:
        return rows
    places_st, weights_st = _taps(len(rows), size, by)
    total = np.full((size, *rows.shape[1:]), 1 << (FRACTION_BITS - 1), dtype=np.int32)  # rounds to the nearest
    for places_s, weights_s in zip(places_st.T, weights_st.T, strict=True):
        total += rows[places_s].astype(np.int32) * weights_s[:, None, None]
    return np.clip(total >> FRACTION_BITS, 0, 255).astype(np.uint8)


def _taps(inputs: int, outputs: int, by: Filter) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """For each output the inputs that it is made of and their weights, (outputs, taps); spare ones weigh nothing."""
    reach, filter_ = FILTERS[by]
    scale = inputs / outputs
    stretch = max(scale, 1.0)
    support = reach * stretch
    taps = math.ceil(support) * 2 + 1
    places = np.zeros((outputs, taps), dtype=np.int64)
    weights = np.zeros((outputs, taps), dtype=np.int32)
    for output in range(outputs):
        centre = (output + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        last = min(int(centre + support + 0.5), inputs)
        near = np.arange(first, last, dtype=np.float64)
        values = filter_((near - centre + 0.5) * (1.0 / stretch))
        values = values / np.cumsum(values)[-1]  # summed one by one, as there
        places[output, : len(near)] = range(first, last)
        weights[output, : len(near)] = np.trunc(values * (1 << FRACTION_BITS) + np.copysign(0.5, values))
    return places, weights


def _bilinear(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys 1981 with a = -1/2."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


# How far each filter reaches, in pixels of the smaller image, and its values.
FILTERS: dict[Filter, tuple[float, Callable[[NDArray[np.float64]], NDArray[np.float64]]]] = {
    "lanczos": (3.0, _lanczos),
    "bilinear": (1.0, _bilinear),
    "bicubic": (2.0, _bicubic),
}
