"""One encoded image to pixels, and every reason why it cannot be used."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from foreign import slow_jpeg
from PIL import Image

from trainer.data.images import decode
from trainer.data.images.decode import Unusable, decode_all, image_form, open_image, to_form
from trainer.errors import UserError


def encoded(image: Image.Image, **options: Any) -> dict[str, Any]:
    stream = io.BytesIO()
    image.save(stream, **{"format": "PNG", **options})
    return {"bytes": stream.getvalue(), "path": None}


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze())


def test_pixels_are_those_of_the_file() -> None:
    image = noise(6, 6)
    form = image_form(image, None, "stretch", None)
    assert (form.channels, form.height, form.width) == (3, 6, 6)
    np.testing.assert_array_equal(to_form(open_image(encoded(image)), form), np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGBA", 3), ("CMYK", 3)])
def test_channels_of_each_mode(mode: str, channels: int) -> None:
    image = noise(4, 4).convert(mode)
    form = image_form(image, None, "stretch", None)
    assert form.channels == channels
    assert to_form(image, form).shape == (channels, 4, 4)


def test_conversion_to_grey_is_luma() -> None:
    image = Image.new("RGB", (2, 2), (255, 0, 0))
    form = image_form(image, None, "stretch", 1)
    assert to_form(image, form).tolist() == [[[76, 76], [76, 76]]]  # 0.299 of 255, ITU-R 601


def test_stretch_and_crop_against_pillow() -> None:
    image = noise(40, 60)
    stretched = to_form(image, image_form(image, 20, "stretch", None))
    np.testing.assert_array_equal(
        stretched, np.asarray(image.resize((20, 20), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    )
    cropped = to_form(image, image_form(image, 40, "crop", None))
    np.testing.assert_array_equal(cropped, np.asarray(image)[:, 10:50].transpose(2, 0, 1))


def test_crop_never_enlarges() -> None:
    image = noise(19, 60)
    with pytest.raises(Unusable, match=r"60x19 is smaller than data\.image_size=20; data\.resize=stretch"):
        to_form(image, image_form(image, 20, "crop", None))
    assert to_form(image, image_form(image, 20, "stretch", None)).shape == (3, 20, 20)


def test_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    assert open_image(encoded(noise(4, 8), exif=exif)).size == (4, 8)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_to_8_bits(file_format: str) -> None:
    levels = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    levels[-1, -1] = 65535
    image = open_image(encoded(Image.fromarray(levels), format=file_format))
    form = image_form(image, None, "stretch", None)
    assert form.channels == 1
    np.testing.assert_array_equal(to_form(image, form)[0], np.rint(levels / 257))


def test_16_bit_grey_is_turned_by_its_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(encoded(Image.fromarray(np.zeros((4, 8), np.uint16)), exif=exif)).size == (4, 8)


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.new("L", (4, 4), value) for value in (10, 200)]
    image = open_image(encoded(frames[0], format="GIF", save_all=True, append_images=frames[1:]))
    assert to_form(image, image_form(image, None, "stretch", 1)).max() == 10


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_deeper_images_are_refused(dtype: type) -> None:
    deep = Image.fromarray(np.zeros((4, 4), dtype))
    with pytest.raises(Unusable, match="has neither 8 nor 16 bits a channel"):
        image_form(open_image(encoded(deep, format="TIFF")), None, "stretch", None)


@pytest.mark.parametrize("content", [b"", b"not an image", encoded(noise(32, 32))["bytes"][:200]])
def test_damaged_content(content: bytes) -> None:
    with pytest.raises(Unusable):
        open_image({"bytes": content, "path": None})


def test_missing_content(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="No such file"):
        open_image({"bytes": None, "path": str(tmp_path / "gone.png")})
    with pytest.raises(Unusable, match="no image"):
        open_image({"bytes": None, "path": None})


def rows_of(images: list[dict[str, Any]]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(decode=False)})
    return datasets.Dataset.from_dict({"image": images}, features=features)


def test_all_rows_in_order_with_the_unusable_ones_named() -> None:
    images = [noise(8, 8, seed=i) for i in range(600)]
    contents = [encoded(image) for image in images]
    contents[300] = {"bytes": b"broken", "path": "b.png"}
    form = image_form(images[0], None, "stretch", None)
    pixels = np.zeros((600, 3, 8, 8), dtype=np.uint8)
    unusable = decode_all(rows_of(contents), "image", form, pixels, "set")
    assert unusable == {300: "b.png: not an image"}
    for row in (0, 255, 256, 599):
        np.testing.assert_array_equal(pixels[row], np.asarray(images[row]).transpose(2, 0, 1))
    assert not pixels[300].any()


@pytest.mark.parametrize(
    ("other", "message", "advice"),
    [
        (noise(8, 8, 1), "set: row 1 has 1 channel, the first image has 3 channels", "data.channels=1 or"),
        (noise(9, 8), "set: row 1 has 8x9 pixels, the first image has 8x8 pixels", "data.image_size="),
    ],
)
def test_mixtures_need_a_decision(other: Image.Image, message: str, advice: str) -> None:
    first = noise(8, 8)
    form = image_form(first, None, "stretch", None)
    with pytest.raises(UserError, match=message) as caught:
        decode_all(rows_of([encoded(first), encoded(other)]), "image", form, np.zeros((2, 3, 8, 8), np.uint8), "set")
    assert advice in str(caught.value)


def test_an_image_that_takes_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    innocent, slow = {"bytes": slow_jpeg(2000, 0)}, {"bytes": slow_jpeg(2000, 40)}
    assert len(slow["bytes"]) < len(innocent["bytes"]) + 1000
    assert open_image(innocent).size == open_image(slow).size == (2000, 2000)
    monkeypatch.setattr(decode, "DECODE_LIMIT_S", 0.001)  # no machine makes 41 passes over 4 million pixels within it
    with pytest.raises(Unusable, match=r"longer than 0.001 s to decode"):
        open_image(slow)
