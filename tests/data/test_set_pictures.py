import io
import zlib

import numpy as np
import pytest
from PIL import Image

from contracts.errors import SetError
from data import pictures
from data.pictures import decode_image, image_suffix


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_transparency_is_kept(picture) -> None:
    image = decode_image(picture(1, mode="RGBA"), "row 1")
    assert image.mode == "RGBA"
    assert len(np.unique(np.asarray(image)[..., 3])) > 1


@pytest.mark.parametrize(
    "payload",
    [
        saved(Image.new("L", (2, 2), 128)),
        saved(Image.new("P", (2, 2))),
        saved(Image.new("1", (2, 2))),
        saved(Image.new("CMYK", (2, 2)), "JPEG"),
        saved(Image.new("RGB", (2, 2)), "WEBP"),
    ],
)
def test_every_pixel_format_becomes_rgba(payload) -> None:
    assert decode_image(payload, "row 1").mode == "RGBA"


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    grey = np.array([[0, 0x4000], [0x8000, 0xFFFF]], dtype=np.uint16)
    decoded = np.asarray(decode_image(saved(Image.fromarray(grey)), "row 1"))[..., 0]
    assert decoded.tolist() == [[0, 64], [128, 255]]


def test_phone_photos_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned: rotate 90 degrees clockwise to show
    payload = saved(Image.new("RGB", (4, 2)), "JPEG", exif=exif)
    assert decode_image(payload, "row 1").size == (2, 4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: b"", r"item i-1: the image is empty \(0 bytes\)"),
        (lambda p: b"GIF89a" + p, "item i-1: not a PNG, JPEG or WebP image"),
        (lambda p: p[: len(p) // 2], "item i-1: the image is damaged"),
    ],
)
def test_damaged_bytes_are_refused(picture, damage, message) -> None:
    with pytest.raises(SetError, match=message):
        decode_image(damage(picture(1, side=64)), "item i-1")


def test_other_formats_are_refused() -> None:
    with pytest.raises(SetError, match="not a PNG"):
        image_suffix(saved(Image.new("RGB", (2, 2)), "TIFF"), "row 1")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [12_000, 30_000])  # above our limit; above Pillow's own too
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side, monkeypatch) -> None:
    # A header is enough: if pixels were decoded first, the missing data would be another error.
    whole = saved(Image.new("1", (side, 8)))
    height = side.to_bytes(4)
    header = whole[:20] + height + whole[24:29]
    bomb = header + zlib.crc32(header[12:29]).to_bytes(4) + whole[33:]
    with pytest.raises(SetError, match=f"row 1: the image has more than {pictures.MAX_PIXELS} pixels"):
        decode_image(bomb, "row 1")
