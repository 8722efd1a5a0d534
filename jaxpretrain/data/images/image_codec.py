"""From the bytes of a file to an RGB picture, and back.

What becomes RGB how:

- grey is repeated; 16 bits a channel are scaled to 8 and rounded; 1 bit is black and white;
- a palette is looked up; CMYK and other colour spaces are converted by Pillow, without profiles;
- transparent pixels show white behind them;
- the EXIF orientation is applied; of several frames or pages the first counts.
"""

import io
from typing import TYPE_CHECKING

import numpy as np

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.package_files import HOW_TO_INSTALL

if TYPE_CHECKING:
    from PIL import Image


class Undecodable(Exception):
    """Bytes that are no picture; says why."""


def decode(content: bytes) -> "Image.Image":
    """The picture in mode RGB. Raises Undecodable: a pure function of the bytes.

    Pillow's limit against decompression bombs holds: above 179 million pixels nothing is decoded.
    """
    import PIL.Image

    try:
        return _rgb(_upright(PIL.Image.open(io.BytesIO(content))))
    except MemoryError:
        raise
    except PIL.UnidentifiedImageError:  # its text is about the object that holds the bytes
        raise Undecodable("no kind of image that Pillow knows") from None
    except Exception as error:  # Pillow's parsers raise whatever meets them in broken files
        raise Undecodable(f"{type(error).__name__}: {error}") from None


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 [height, width] or [height, width, 3]."""
    require_pillow()
    import PIL.Image

    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def require_pillow() -> None:
    """Raises InputError when Pillow is not installed."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise InputError(
            f"images need Pillow: install the extra vision, {HOW_TO_INSTALL}"
        ) from None


def _upright(image: "Image.Image") -> "Image.Image":
    from PIL import ImageOps

    # Almost no picture has an orientation, and exif_transpose copies those without one.
    return ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image


def _rgb(image: "Image.Image") -> "Image.Image":
    import PIL.Image

    if image.mode.startswith("I"):  # converting these would clip at 255
        pixels = np.asarray(image, np.int64)
        if pixels.min() < 0 or pixels.max() >= 2**16:
            raise Undecodable("pixels are not of 16 bits")
        image = PIL.Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise Undecodable("pixels are floating-point numbers")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image)
    image.load()  # until here only the header was read
    return image if image.mode == "RGB" else image.convert("RGB")


_ORIENTATION = 0x0112  # the EXIF tag
