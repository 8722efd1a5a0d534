import io
import sys

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.data.images.image_codec import Undecodable, decode, encode_png, import_pillow

Image = pytest.importorskip("PIL.Image")


def _encoded(image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _pixels(content: bytes) -> np.ndarray:
    image = decode(content)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.fixture
def picture() -> np.ndarray:
    """Smooth, so that JPEG keeps it."""
    y, x = np.mgrid[0:48, 0:64]
    return np.stack([4 * x, 5 * y, 2 * (x + y)], axis=-1).astype(np.uint8)


def test_png_keeps_every_pixel(picture: np.ndarray):
    np.testing.assert_array_equal(_pixels(encode_png(picture)), picture)


def test_jpeg_is_close(picture: np.ndarray):
    found = _pixels(_encoded(Image.fromarray(picture), "JPEG", quality=95, subsampling=0))
    assert np.abs(found.astype(int) - picture).mean() < 2


def test_grey_is_repeated(picture: np.ndarray):
    found = _pixels(encode_png(picture[..., 0]))
    np.testing.assert_array_equal(found, np.repeat(picture[..., :1], 3, axis=-1))


def test_one_bit_is_black_and_white():
    bits = np.eye(8, dtype=bool)
    found = _pixels(_encoded(Image.fromarray(bits)))
    np.testing.assert_array_equal(found[..., 0], 255 * bits)


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 128, 129, 257, 25700, 65535]], np.uint16)
    for form in ("PNG", "TIFF"):
        found = _pixels(_encoded(Image.fromarray(values), form))
        np.testing.assert_array_equal(found[0, :, 0], [0, 0, 1, 1, 100, 255])


def test_a_palette_is_looked_up(picture: np.ndarray):
    palette = Image.fromarray(picture).quantize(16)
    found = _pixels(_encoded(palette))
    np.testing.assert_array_equal(found, np.asarray(palette.convert("RGB")))
    assert len(np.unique(found.reshape(-1, 3), axis=0)) == 16


def test_cmyk_becomes_its_colours():
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    found = _pixels(_encoded(cyan, "JPEG", quality=95))
    assert np.abs(found.astype(int) - [0, 255, 255]).max() < 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_white(mode: str):
    image = Image.new("RGBA", (4, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (10, 10, 10, 0))
    options = {}
    if mode == "P":
        image = Image.fromarray(np.array([[0, 1, 0, 0]], np.uint8)).convert("P")
        image.putpalette([0, 0, 0, 10, 10, 10])
        options = {"transparency": 1}
    else:
        image = image.convert(mode)
    found = _pixels(_encoded(image, **options))
    np.testing.assert_array_equal(found[0, :, 0], [0, 255, 0, 0])


def test_half_transparent_is_half_white():
    image = Image.new("RGBA", (1, 1), (100, 0, 0, 128))
    assert np.abs(_pixels(_encoded(image))[0, 0].astype(int) - [177, 127, 127]).max() <= 1


def test_the_orientation_is_applied(picture: np.ndarray):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by a quarter to see it upright
    found = _pixels(_encoded(Image.fromarray(picture), exif=exif))
    np.testing.assert_array_equal(found, np.rot90(picture, k=-1))


def test_of_several_frames_the_first_counts():
    red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    found = _pixels(_encoded(red, "TIFF", save_all=True, append_images=[blue]))
    np.testing.assert_array_equal(found[0, 0], [255, 0, 0])


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_other_bytes_are_undecodable(content: bytes):
    with pytest.raises(Undecodable):
        decode(content)


def test_the_reason_is_the_same_in_every_process():
    """So it is no address of an object."""
    with pytest.raises(Undecodable) as error:
        decode(b"<html>404</html>")
    assert str(error.value) == "no kind of image that Pillow knows"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_half_a_file_is_undecodable(form: str):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    content = _encoded(Image.fromarray(noise), form)
    decode(content)
    with pytest.raises(Undecodable):
        decode(content[: len(content) // 2])


def test_floating_point_pixels_are_undecodable():
    with pytest.raises(Undecodable, match="floating-point"):
        decode(_encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


def test_a_decompression_bomb_is_undecodable(monkeypatch: pytest.MonkeyPatch):
    content = _encoded(Image.new("RGB", (64, 64)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Undecodable, match="DecompressionBombError"):
        decode(content)


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(InputError, match=r"images need Pillow: pip install .*pillow"):
        import_pillow()
