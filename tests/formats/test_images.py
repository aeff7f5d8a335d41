"""Images are prepared as the reference prepares them with Pillow, to the bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from groundup.errors import UserError
from groundup.formats.images import (
    ImagePreparation,
    crop_middle,
    fill_square,
    open_image,
    read_preparation,
    write_preparation,
)
from groundup.formats.resampling import Filter, resize

Image = pytest.importorskip("PIL.Image", reason="compares with Pillow, which comes with the extra `test`")

SIZES = [(33, 20), (7, 9), (20, 64), (1, 5), (64, 64), (97, 3)]
PILLOW: dict[Filter, int] = {"lanczos": 1, "bilinear": 2, "bicubic": 3}


def _image(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Noise with black and white corners, where filters overshoot."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    image[: height // 2, : width // 2] = 0
    image[height // 2 :, width // 2 :] = 255
    return image


@pytest.mark.parametrize("by", PILLOW)
@pytest.mark.parametrize("before", SIZES, ids=str)
@pytest.mark.parametrize("after", [*SIZES, (21, 20)], ids=str)
def test_resizing_is_that_of_pillow_to_the_bit(before: tuple[int, int], after: tuple[int, int], by: Filter):
    image = _image(*before)
    theirs = np.array(Image.fromarray(image).resize((after[1], after[0]), resample=PILLOW[by]))
    assert np.array_equal(resize(image, *after, by), theirs)


# Kind of file: (what stands in it, sizes of images that it makes one batch of).
FILES: dict[str, tuple[str, dict[str, Any], list[tuple[int, int]]]] = {
    "clip": ("CLIP", {}, [(300, 240), (240, 301), (100, 90)]),
    "clip small": (
        "CLIP",
        {"size": {"shortest_edge": 20}, "crop_size": {"height": 18, "width": 16}},
        [(31, 47), (90, 21)],
    ),
    "clip crop larger than the image": ("CLIP", {"size": {"shortest_edge": 9}, "crop_size": 14}, [(12, 17), (30, 11)]),
    "clip numbers alone": ("CLIP", {"size": 20, "crop_size": 18}, [(31, 47), (90, 21)]),
    "clip bilinear, other means": (
        "CLIP",
        {"resample": 2, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "size": 20, "crop_size": 18},
        [(31, 47)],
    ),
    "vit": ("ViT", {}, [(100, 40), (224, 224)]),
    "vit number alone": ("ViT", {"size": 30}, [(31, 47), (90, 21)]),
    "vit only resized": ("ViT", {"size": 30, "do_rescale": False, "do_normalize": False}, [(31, 47)]),
    "vit lanczos, another factor": ("ViT", {"size": 30, "resample": 1, "rescale_factor": 1 / 127.5}, [(31, 47)]),
    "vit not resized": ("ViT", {"do_resize": False}, [(31, 47)]),
    "siglip": ("Siglip", {}, [(100, 40), (224, 224)]),
    "llava": ("Llava", {"size": 20, "crop_size": 20}, [(31, 47), (90, 21)]),
    "llava padded": ("Llava", {"do_pad": True, "size": 20, "crop_size": 20}, [(31, 47), (90, 21), (40, 40)]),
}


def _their_processor(family: str, keys: dict[str, Any]) -> Any:
    import importlib

    name = family.lower()
    module = importlib.import_module(f"transformers.models.{name}.image_processing_pil_{name}")
    return getattr(module, f"{family}ImageProcessorPil")(**keys)


@pytest.mark.parametrize("file", FILES)
def test_pixel_values_are_those_of_the_reference_to_the_bit(file: str, tmp_path: Path):
    family, keys, sizes = FILES[file]
    images = [_image(*size, seed=seed) for seed, size in enumerate(sizes)]
    processor = _their_processor(family, keys)
    theirs = processor(images, return_tensors="pt").pixel_values
    processor.save_pretrained(tmp_path)
    preparation = read_preparation(tmp_path)
    assert torch.equal(preparation(images), theirs.float())
    # What a file leaves out is what the kind of file has.
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(keys | {"feature_extractor_type": f"{family}FeatureExtractor"})
    )
    assert read_preparation(tmp_path) == preparation
    (tmp_path / "ours").mkdir()
    write_preparation(preparation, tmp_path / "ours")
    assert read_preparation(tmp_path / "ours") == preparation
    written = json.loads((tmp_path / "ours/preprocessor_config.json").read_text())
    again = _their_processor(written["image_processor_type"].removesuffix("ImageProcessor"), written)
    assert torch.equal(again(images, return_tensors="pt").pixel_values.float(), theirs.float())


def test_the_joint_file_of_version_5_is_read(tmp_path: Path):
    keys = {"image_processor_type": "CLIPImageProcessorFast", "size": {"shortest_edge": 30}, "do_center_crop": None}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": keys}))
    assert read_preparation(tmp_path).size == 30
    assert read_preparation(tmp_path).crop == (224, 224)


def test_a_grey_image_is_shown_in_all_channels():
    plain = ImagePreparation(size=None, filter="bicubic", mean=(0.0, 0.1, 0.2), deviation=(1.0, 1.0, 1.0))
    grey = _image(4, 5, channels=1)
    expected = plain([np.repeat(grey, 3, axis=2)])
    assert torch.equal(plain([grey]), expected)
    assert torch.equal(plain([grey[..., 0]]), expected)


def test_margins_lie_where_they_should():
    image = np.arange(1, 5, dtype=np.uint8).reshape(2, 2, 1)
    assert fill_square(image[:1], (9,))[..., 0].tolist() == [[1, 2], [9, 9]]
    assert crop_middle(image, 1, 4)[..., 0].tolist() == [[0, 1, 2, 0]]
    assert crop_middle(image, 3, 3)[..., 0].tolist() == [[0, 0, 0], [0, 1, 2], [0, 3, 4]]


def test_a_file_is_opened_upright_and_on_white(tmp_path: Path):
    image = _image(5, 7)
    Image.fromarray(image).save(tmp_path / "plain.png")
    assert np.array_equal(open_image(tmp_path / "plain.png"), image)
    clear = np.concatenate((image, np.zeros((5, 7, 1), np.uint8)), axis=2)
    clear[0, 0, 3] = 255
    Image.fromarray(clear).save(tmp_path / "clear.png")
    opened = open_image(tmp_path / "clear.png")
    assert np.array_equal(opened[0, 0], image[0, 0])
    assert (opened.reshape(-1, 3)[1:] == 255).all()
    turned = Image.fromarray(image)
    turned.getexif()[0x0112] = 6  # to be turned by a quarter
    turned.save(tmp_path / "turned.png", exif=turned.getexif())
    assert np.array_equal(open_image(tmp_path / "turned.png"), np.rot90(image, -1))


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n\x00\x00"])
def test_a_file_that_is_no_image_is_refused(content: bytes, tmp_path: Path):
    (tmp_path / "file.png").write_bytes(content)
    with pytest.raises(UserError, match=r"file\.png is no image that can be opened"):
        open_image(tmp_path / "file.png")
    with pytest.raises(UserError, match=r"nothing\.png is no image"):
        open_image(tmp_path / "nothing.png")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown kind": ({"image_processor_type": "PixtralImageProcessor"}, "`image_processor_type` is 'PixtralImageProc"),
    "no kind": ({"image_processor_type": None}, "known are CLIPImageProcessor"),
    "unknown key": ({"do_thumbnail": True}, "`do_thumbnail` is not a key"),
    "unknown size": ({"size": {"longest_edge": 3}}, "'size.height'"),
    "another key in a size": ({"size": {"shortest_edge": 3, "longest_edge": 4}}, "`size.longest_edge` is not a key"),
    "unknown filter": ({"resample": 0}, "`resample` is 0"),
    "padding": ({"do_pad": True}, "`do_pad`"),
    "uneven statistics": ({"image_mean": [0.5]}, "`image_mean` has 1 numbers, `image_std` 3"),
    "crop by one side": ({"crop_size": {"shortest_edge": 3}}, "`crop_size` must have a height and a width"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused_by_name(case: str, tmp_path: Path):
    keys, message = REFUSED[case]
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"image_processor_type": "CLIPImageProcessor"} | keys))
    with pytest.raises(UserError) as refusal:
        read_preparation(tmp_path)
    assert str(path) in str(refusal.value)
    assert message in str(refusal.value)


def test_a_folder_without_the_file_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"it has no preprocessor_config\.json"):
        read_preparation(tmp_path)


def test_images_that_make_no_batch_are_refused():
    plain = ImagePreparation(size=None, filter="bicubic", mean=(0.5,) * 3, deviation=(0.5,) * 3)
    with pytest.raises(UserError, match=r"\[\(4, 5\), \(5, 4\)\] make no batch"):
        plain([_image(4, 5), _image(5, 4)])
    for image in (_image(4, 5).astype(np.float32), np.zeros((2, 0, 3), np.uint8), np.zeros((2, 2, 2, 2), np.uint8)):
        with pytest.raises(UserError, match="an image must be bytes"):
            plain([image])
    with pytest.raises(UserError, match="an image has 4 channels, the model sees 3"):
        plain([_image(4, 5, channels=4)])
