"""From an image to what a tower sees: a folder's `preprocessor_config.json`, followed to the bit.

Resizing is Pillow's (`resampling.py`) and what follows is computed in float32, as `transformers` does with Pillow. Its
other way, with torchvision, rounds differently: docs/families.md says by how much.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from groundup.errors import UserError
from groundup.formats.folder import read_object
from groundup.formats.keys import Keys
from groundup.formats.resampling import Bytes, Filter, resize
from groundup.storage import write_json

FILE = "preprocessor_config.json"
# Version 5 keeps it in here where there is a tokenizer too.
JOINT_FILE, JOINT_KEY = "processor_config.json", "image_processor"
FILTERS: Mapping[int, Filter] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True, kw_only=True)
class ImagePreparation:
    """What is done to an image, in this order.

    square: the colour with which the shorter sides are filled up first, or None.
    size: height and width to resize to, or the length of the shorter side, or None; filter: by which.
    crop: height and width of the middle that is kept, black around what is smaller, or None.
    rescale: factor on the bytes, or None.
    mean, deviation: subtracted from and divided by, for each channel, or None.
    """

    square: tuple[int, ...] | None = None
    size: tuple[int, int] | int | None
    filter: Filter
    crop: tuple[int, int] | None = None
    rescale: float | None = 1 / 255
    mean: tuple[float, ...] | None
    deviation: tuple[float, ...] | None

    def __call__(self, images: Sequence[Bytes]) -> Tensor:
        """`pixel_values` (images, channels, height, width), float32.

        images: bytes, (height, width, channels) or (height, width); see `open_image`.
        Raises UserError for what is no such image, and where the results differ in size.
        """
        prepared = [self._prepare(image) for image in images]
        sizes = sorted({one.shape[1:] for one in prepared})
        if len(sizes) != 1:
            raise UserError(f"images that end in the sizes {sizes} make no batch; resize or crop them to one size")
        return torch.from_numpy(np.stack(prepared))

    def _prepare(self, image: Bytes) -> NDArray[np.float32]:
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or not image.size:
            raise UserError(
                f"an image must be bytes of the shape (height, width, channels), not {image.dtype} of {image.shape}"
            )
        image = image[..., None] if image.ndim == 2 else image
        if self.mean is not None:
            image = image.repeat(len(self.mean), axis=2) if image.shape[2] == 1 else image
            if image.shape[2] != len(self.mean):
                raise UserError(f"an image has {image.shape[2]} channels, the model sees {len(self.mean)}")
        if self.square is not None:
            image = fill_square(image, self.square)
        if self.size is not None:
            image = resize(image, *_target(image, self.size), self.filter)
        if self.crop is not None:
            image = crop_middle(image, *self.crop)
        pixels: NDArray[np.float32] = image.astype(np.float32)
        if self.rescale is not None:
            pixels = (image.astype(np.float64) * self.rescale).astype(np.float32)
        if self.mean is not None and self.deviation is not None:
            mean, deviation = np.array(self.mean, np.float32), np.array(self.deviation, np.float32)
            pixels = (pixels - mean) / deviation
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def fill_square(image: Bytes, colour: Sequence[int]) -> Bytes:
    """The image in the middle of a square of this colour."""
    height, width, channels = image.shape
    side = max(height, width)
    square = np.empty((side, side, channels), np.uint8)
    square[:] = colour
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square


def crop_middle(image: Bytes, height: int, width: int) -> Bytes:
    """The middle of an image, with black around it where it is smaller."""
    rows, columns, channels = image.shape
    canvas = np.zeros((max(height, rows), max(width, columns), channels), np.uint8)
    top, left = (len(canvas) - rows + 1) // 2, (canvas.shape[1] - columns + 1) // 2
    canvas[top : top + rows, left : left + columns] = image
    top, left = top + (rows - height) // 2, left + (columns - width) // 2
    return canvas[top : top + height, left : left + width]


def open_image(path: Path) -> Bytes:
    """A file as (height, width, 3), upright, on white where it is transparent.

    Raises UserError for a file that is no image, and where Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError:
        raise UserError("opening image files needs Pillow; pip install 'groundup[images]' brings it") from None
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if "A" in image.getbands() or "transparency" in image.info:
                white = Image.new("RGBA", image.size, (255, 255, 255, 255))
                image = Image.alpha_composite(white, image.convert("RGBA"))
            return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no image that can be opened: {error}") from None


_SQUARE = {"height": 224, "width": 224}
_USUAL = {
    "crop_size": _SQUARE,
    "default_to_square": False,
    "do_center_crop": False,
    "do_normalize": True,
    "do_pad": False,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": _SQUARE,
}
_CLIP = _USUAL | {
    "do_center_crop": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "size": {"shortest_edge": 224},
}
# What each kind of file means where it leaves keys out.
KINDS: Mapping[str, Mapping[str, Any]] = {
    "CLIPImageProcessor": _CLIP,
    "LlavaImageProcessor": _CLIP,
    "SiglipImageProcessor": _USUAL,
    "ViTImageProcessor": _USUAL | {"default_to_square": True, "resample": 2},
}
WITHOUT_EFFECT = (
    "_valid_processor_keys device disable_grouping do_convert_rgb feature_extractor_type image_processor_type "
    "input_data_format processor_class return_tensors"
).split()


def read_preparation(folder: Path) -> ImagePreparation:
    """How the folder's model wants its images. Raises UserError, naming file and key, for what is not understood."""
    path, values = _read(folder)
    try:
        kind = _kind(values)
        keys = Keys({**KINDS[kind], **{name: value for name, value in values.items() if value is not None}})
        preparation = _preparation(keys, kind)
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None
    if unread := keys.unread():
        raise UserError(f"{path}: `{unread[0]}` is not a key that is known here")
    return preparation


def write_preparation(preparation: ImagePreparation, folder: Path) -> None:
    """The file that `read_preparation` reads, and `transformers` too."""
    keys = {
        "crop_size": _write_size(preparation.crop),
        "do_center_crop": preparation.crop is not None,
        "do_convert_rgb": True,
        "do_normalize": preparation.mean is not None,
        "do_pad": preparation.square is not None or None,
        "do_rescale": preparation.rescale is not None,
        "do_resize": preparation.size is not None,
        "image_mean": preparation.mean,
        "image_processor_type": "CLIPImageProcessor" if preparation.square is None else "LlavaImageProcessor",
        "image_std": preparation.deviation,
        "resample": next(number for number, name in FILTERS.items() if name == preparation.filter),
        "rescale_factor": preparation.rescale,
        "size": _write_size(preparation.size),
    }
    write_json(folder / FILE, {name: value for name, value in keys.items() if value is not None})


def _read(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file that says it, and what it says."""
    if (folder / FILE).exists():
        return folder / FILE, read_object(folder / FILE)
    joint = folder / JOINT_FILE
    values = read_object(joint).get(JOINT_KEY) if joint.exists() else None
    if not isinstance(values, dict):
        raise UserError(f"{folder} does not say how its model wants images: it has no {FILE}")
    return joint, values


def _kind(values: Mapping[str, Any]) -> str:
    """The name in `KINDS` of a file's kind: which library runs it makes no difference."""
    given = str(values.get("image_processor_type") or values.get("feature_extractor_type"))
    kind = given.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if kind not in KINDS:
        raise ValueError(f"`image_processor_type` is {given!r}; known are {', '.join(KINDS)}")
    return kind


def _preparation(keys: Keys, kind: str) -> ImagePreparation:
    keys.without_effect(*WITHOUT_EFFECT)
    keys.fixed(data_format="channels_first")
    number, pads = keys.count("resample"), keys.flag("do_pad")
    if number not in FILTERS:
        raise ValueError(f"`resample` is {number}; known are 1 (Lanczos), 2 (bilinear) and 3 (bicubic)")
    if pads and kind != "LlavaImageProcessor":
        raise ValueError("`do_pad` is supported for LlavaImageProcessor alone")
    mean, deviation = keys.positives("image_mean"), keys.positives("image_std")
    if len(mean) != len(deviation):
        raise ValueError(f"`image_mean` has {len(mean)} numbers, `image_std` {len(deviation)}")
    square, normalises = keys.flag("default_to_square"), keys.flag("do_normalize")
    size, crop = _read_size(keys, "size", square), _read_size(keys, "crop_size", True)
    rescale = keys.positive("rescale_factor")
    if isinstance(crop, int):
        raise ValueError("`crop_size` must have a height and a width")
    return ImagePreparation(
        square=tuple(int(value * 255) for value in mean) if pads else None,
        size=size if keys.flag("do_resize") else None,
        filter=FILTERS[number],
        crop=crop if keys.flag("do_center_crop") else None,
        rescale=rescale if keys.flag("do_rescale") else None,
        mean=mean if normalises else None,
        deviation=deviation if normalises else None,
    )


def _read_size(keys: Keys, name: str, square: bool) -> tuple[int, int] | int:
    """Height and width, or the length of the shorter side; square: what one number by itself means."""
    if keys.holds_number(name):
        size = keys.size(name)
        return (size, size) if square else size
    part = keys.section(name)
    return part.size("shortest_edge") if "shortest_edge" in part else (part.size("height"), part.size("width"))


def _write_size(size: tuple[int, int] | int | None) -> dict[str, int] | None:
    if isinstance(size, int):
        return {"shortest_edge": size}
    return None if size is None else {"height": size[0], "width": size[1]}


def _target(image: Bytes, size: tuple[int, int] | int) -> tuple[int, int]:
    """Height and width to resize an image to."""
    if not isinstance(size, int):
        return size
    height, width = image.shape[:2]
    longer = int(size * max(height, width) / min(height, width))
    return (longer, size) if width <= height else (size, longer)
