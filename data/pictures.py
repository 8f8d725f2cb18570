"""Encoded image bytes to pixels, without trusting them."""

import io

from PIL import Image, ImageOps

from contracts.errors import SetError

# Few parsers, little attack surface.  MPO is what Pillow calls the JPEGs of many phone cameras.
_SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp"}
_PARSERS = ("PNG", "JPEG", "WEBP")

# Refused before decoding (RGBA of this size is 320 MiB).  Below Pillow's own limit, which only warns.
MAX_PIXELS = 80 * 2**20


def image_suffix(payload: bytes, name: str) -> str:
    """The file suffix that belongs to the bytes' format; only the header is read.

    Raises:
        SetError: not a PNG, JPEG or WebP image; the message starts with `name`.
    """
    return _SUFFIXES[str(_open(payload, name).format)]


def decode_image(payload: bytes, name: str) -> Image.Image:
    """Decode to RGBA, upright (the EXIF orientation that phones write is applied).

    Args:
        payload: the encoded bytes.
        name: what to call the image in a message: an item id or a row number, no file name.

    Raises:
        SetError: not a PNG, JPEG or WebP image, damaged, cut short, or above `MAX_PIXELS`.
    """
    image = _open(payload, name)
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip instead of scale
            image = image.convert("I").point(lambda value: value / 256).convert("L")
        if not image.has_transparency_data:
            image = image.convert("RGB")  # CMYK has no direct way to RGBA
        return image.convert("RGBA")
    except Exception:
        raise SetError(f"{name}: the image is damaged and cannot be decoded") from None


def _open(payload: bytes, name: str) -> Image.Image:
    if not payload:
        raise SetError(f"{name}: the image is empty (0 bytes)")
    try:
        image = Image.open(io.BytesIO(payload), formats=_PARSERS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise SetError(f"{name}: the image has more than {MAX_PIXELS} pixels") from None
    except Exception:  # parsers raise nearly anything on hostile bytes
        raise SetError(f"{name}: not a PNG, JPEG or WebP image") from None
    if image.width * image.height > MAX_PIXELS:
        raise SetError(f"{name}: the image has more than {MAX_PIXELS} pixels")
    return image
