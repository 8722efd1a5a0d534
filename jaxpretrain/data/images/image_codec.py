"""The bytes of a file to an RGB picture, and back.

Pictures of other modes become RGB:

- grey is repeated; 16 bits a channel are scaled to 8 and rounded; 1 bit is black and white;
- a palette is looked up; CMYK and other colour spaces are converted by Pillow, without profiles;
- transparent pixels show white behind them;
- the EXIF orientation is applied; of several frames or pages the first counts.
"""

import io
from typing import TYPE_CHECKING

import numpy as np

from jaxpretrain.config.errors import InputError, install

if TYPE_CHECKING:
    from PIL import Image


Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels."""

_ORIENTATION = 0x0112  # the EXIF tag


class Undecodable(Exception):
    """The error for bytes that are no picture; it says why."""


def decode(content: bytes) -> "Image.Image":
    """Returns the picture in mode RGB. Raises Undecodable: a pure function of the bytes.

    Pillow's limit against decompression bombs holds: above 179 million pixels nothing is decoded.
    """
    images, ops = import_pillow()
    try:
        image = images.open(io.BytesIO(content))
        # Almost no picture has an orientation, and exif_transpose copies those without one.
        is_upright = image.getexif().get(_ORIENTATION, 1) == 1
        return _rgb(image if is_upright else ops.exif_transpose(image))
    except MemoryError:
        raise
    except images.UnidentifiedImageError:  # its text is about the object that holds the bytes
        raise Undecodable("no kind of image that Pillow knows") from None
    except Exception as error:  # Pillow's parsers raise whatever meets them in broken files
        raise Undecodable(f"{type(error).__name__}: {error}") from None


def encode_png(pixels: np.ndarray) -> bytes:
    """Returns a PNG of pixels, uint8 [height, width] or [height, width, 3]."""
    file = io.BytesIO()
    images, _ = import_pillow()
    images.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def resized(image: "Image.Image", box: Box, size: int) -> np.ndarray:
    """Returns the part in the box, resized by Pillow's bicubic filter: uint8 [size, size, 3]."""
    images, _ = import_pillow()
    # Not `resize(box=)`, whose filter also reads pixels around the box.
    return np.asarray(image.crop(box).resize((size, size), images.Resampling.BICUBIC))


def import_pillow():
    """Returns Pillow's modules Image and ImageOps. Raises InputError where there is no Pillow."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise InputError(f"images need Pillow: {install('vision')}") from None
    return Image, ImageOps


def _rgb(image: "Image.Image") -> "Image.Image":
    images, _ = import_pillow()
    if image.mode.startswith("I"):  # converting these would clip at 255
        pixels = np.asarray(image, np.int64)
        if pixels.min() < 0 or pixels.max() >= 2**16:
            raise Undecodable("pixels are not of 16 bits")
        image = images.fromarray(((pixels + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise Undecodable("pixels are floating-point numbers")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = images.new("RGBA", image.size, "white")
        image = images.alpha_composite(white, image)
    image.load()  # until here only the header was read
    return image if image.mode == "RGB" else image.convert("RGB")
