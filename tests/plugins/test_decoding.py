"""Files of every kind that is read, in each layout of their pixels, against values that are known without a decoder."""

import struct
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from avtcli.errors import AvtError
from avtplugins.datasets._decoding import Decoding, decode_image, describe_image

OWN = Decoding(orient=True, background=(255, 255, 255))
GREY = Decoding(channels=1, orient=True, background=(255, 255, 255))
RAMP = np.arange(65536).reshape(256, 256).astype(np.uint16)
CORNERS = np.zeros((2, 3, 3), np.uint8)
CORNERS[0, 0], CORNERS[0, 2], CORNERS[1, 0], CORNERS[1, 2] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
TURNED = {  # by EXIF orientation: where the pixel of row r and column c of a 2x3 image is shown
    1: lambda r, c: (r, c),
    2: lambda r, c: (r, 2 - c),
    3: lambda r, c: (1 - r, 2 - c),
    4: lambda r, c: (1 - r, c),
    5: lambda r, c: (c, r),
    6: lambda r, c: (c, 1 - r),
    7: lambda r, c: (2 - c, 1 - r),
    8: lambda r, c: (2 - c, r),
}


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(content: bytes, how: Decoding = OWN) -> np.ndarray:
    """(H, W, C)."""
    return decode_image(BytesIO(content), name="x", how=how).permute(1, 2, 0).numpy()


def tiff16(pixels: np.ndarray, *, photometric: int = 1, bits: int = 16, order: str = "<") -> bytes:
    """A TIFF of one strip, written by hand: `pixels` (H, W) as they lie in the file."""
    height, width = pixels.shape
    data = pixels.astype(f"{order}u2").tobytes() if bits == 16 else pixels.tobytes()
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data))
    size = pixels.nbytes if bits != 16 else 2 * pixels.size
    tags = {256: width if bits != 12 else width * 2 // 3, 257: height, 258: bits, 259: 1, 262: photometric}
    tags |= {273: 8, 277: 1, 278: height, 279: size}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    return head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("how", [OWN, GREY, Decoding()])
@pytest.mark.parametrize("order", "<>")
def test_16_bit_grey_keeps_its_upper_8_bits(order: str, how: Decoding) -> None:
    expected = np.repeat(np.repeat(np.arange(256, dtype=np.uint8)[:, None], 256, 1)[..., None], how.channels, 2)

    np.testing.assert_array_equal(decoded(tiff16(RAMP, order=order), how), expected)
    np.testing.assert_array_equal(decoded(saved(Image.fromarray(RAMP), "PNG"), how), expected)
    np.testing.assert_array_equal(decoded(b"P5 256 256 65535\n" + RAMP.astype(">u2").tobytes(), how), expected)


def test_16_bit_grey_that_counts_from_white_is_turned_round() -> None:
    np.testing.assert_array_equal(decoded(tiff16(RAMP, photometric=0), GREY)[..., 0], 255 - (RAMP >> 8))


def test_12_bit_grey_is_scaled_by_its_stated_depth() -> None:
    pairs = [(0, 4095), (16, 2048), (4080, 15)]  # two pixels in three bytes
    packed = np.array([[byte for a, b in pairs for byte in (a >> 4, (a & 15) << 4 | b >> 8, b & 255)]], np.uint8)

    assert decoded(tiff16(packed, bits=12), GREY)[0, :, 0].tolist() == [0, 255, 1, 128, 255, 0]


@pytest.mark.parametrize(
    ("pixels", "kind"), [(RAMP.astype(np.int32), "32-bit integers"), (RAMP.astype(np.float32), "floating")]
)
def test_pixels_without_a_stated_range_are_refused(pixels: np.ndarray, kind: str) -> None:
    with pytest.raises(AvtError, match=rf"x does not decode: its pixels are .*{kind}.* without a stated range"):
        decoded(saved(Image.fromarray(pixels), "TIFF"))


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_the_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(Image.fromarray(CORNERS), kind, exif=exif)
    expected = np.zeros((2, 3, 3) if orientation < 5 else (3, 2, 3), np.uint8)
    for row in range(2):
        for column in range(3):
            expected[TURNED[orientation](row, column)] = CORNERS[row, column]

    np.testing.assert_array_equal(decoded(content), expected)
    if kind == "PNG":  # Pillow turns TIFF itself
        np.testing.assert_array_equal(decoded(content, Decoding()), CORNERS)


def test_16_bit_grey_is_turned_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(Image.fromarray(RAMP[:2, :4] + 512), "PNG", exif=exif)

    assert decoded(content, GREY)[..., 0].tolist() == [[3, 2]] * 4


def test_damaged_exif_does_no_harm() -> None:
    content = saved(Image.fromarray(CORNERS), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")

    np.testing.assert_array_equal(decoded(content), CORNERS)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (OWN, [(255, 0, 0), (255, 127, 127), (255, 255, 255)]),
        (Decoding(background=(0, 0, 100)), [(255, 0, 0), (128, 0, 50), (0, 0, 100)]),
        (Decoding(), [(255, 0, 0), (255, 0, 0), (255, 0, 0)]),
    ],
)
def test_alpha_lies_over_the_background_or_is_dropped(how: Decoding, expected: list[tuple[int, ...]]) -> None:
    pixels = np.array([[(255, 0, 0, alpha) for alpha in (255, 128, 0)]], np.uint8)

    for kind in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        found = decoded(saved(Image.fromarray(pixels), kind, **options), how)
        assert np.abs(found[0].astype(int) - expected).max() <= 1, kind


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_entry_of_a_palette_shows_the_background(kind: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    content = saved(image, kind, transparency=0)

    assert decoded(content)[0].tolist() == [[255, 255, 255], [200, 100, 50]]
    assert decoded(content, Decoding())[0].tolist() == [[10, 20, 30], [200, 100, 50]]


def test_grey_with_alpha_stays_grey() -> None:
    content = saved(Image.fromarray(np.array([[(40, 255), (40, 0)]], np.uint8)), "PNG")

    assert decoded(content, GREY)[0].tolist() == [[40], [255]]


def test_grey_of_colour_is_its_luminance() -> None:
    content = saved(Image.fromarray(np.array([[(255, 0, 0), (0, 255, 0), (0, 0, 255)]], np.uint8)), "BMP")

    assert decoded(content, GREY)[0, :, 0].tolist() == [round(255 * weight) for weight in (0.299, 0.587, 0.114)]


def test_cmyk_is_converted() -> None:
    pixels = np.array([[(0, 0, 0, 0), (255, 0, 0, 0), (0, 0, 0, 255), (0, 255, 255, 0)]], np.uint8)
    content = saved(Image.fromarray(pixels, "CMYK"), "TIFF")

    assert decoded(content)[0].tolist() == [[255, 255, 255], [0, 255, 255], [0, 0, 0], [255, 0, 0]]


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP", *(["AVIF"] if features.check("avif") else [])])
def test_of_several_frames_the_first_is_read(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {}))
    with Image.open(BytesIO(content)) as image:
        assert image.n_frames == 3

    found = decoded(content).astype(int)
    assert np.abs(found - (255, 0, 0)).max() <= (3 if kind == "AVIF" else 0)


def test_a_header_states_format_and_mode(tmp_path: Path) -> None:
    found = [
        describe_image(BytesIO(saved(Image.new(mode, (4, 4)), kind)), name="x") for kind, mode in (("PNG", "LA"), ("GIF", "P"))
    ]

    assert found == ["PNG LA", "GIF P"]


def test_a_reduced_jpeg_has_at_least_the_size_asked_for() -> None:
    content = saved(Image.new("RGB", (900, 700), (90, 120, 30)), "JPEG")
    image = decode_image(BytesIO(content), name="x", how=replace(OWN, at_least=100))

    assert 100 <= min(image.shape[1:]) < 350
    assert np.abs(image.numpy().astype(int) - np.array([90, 120, 30])[:, None, None]).max() <= 3
