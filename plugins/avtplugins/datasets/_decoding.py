"""Image files to pixels: safely, and each kind of file in one stated way."""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, features
from torch import Tensor

from avtcli.contracts import MAX_PIXELS
from avtcli.errors import AvtError

FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF", *(["AVIF"] if features.check("avif") else []))
SUFFIXES: Final = (
    *(b".jpeg", b".jpg", b".jfif", b".png", b".webp", b".bmp", b".ppm", b".pgm", b".pbm", b".pnm"),
    *(b".tiff", b".tif", b".gif", *([b".avif"] if "AVIF" in FORMATS else [])),
)
_WHITE_IS_ZERO, _BITS, _PHOTOMETRIC = 0, 258, 262  # of TIFF's tags


@dataclass(frozen=True)
class Decoding:
    """How image files become pixels.

    Attributes:
        channels: 3 for RGB, 1 for grey (luminance).
        orient: whether the EXIF orientation is applied; that of TIFF files always is.
        background: the colour under transparent pixels; none drops the transparency, and the colours below it show.
        may_reduce: whether a JPEG that is resized may be decoded at a lower resolution before.
        at_least: that a JPEG may be decoded at, in pixels on each side; none for the full resolution.
    """

    channels: int = 3
    orient: bool = False
    background: tuple[int, int, int] | None = None
    may_reduce: bool = False
    at_least: int | None = None


AS_PUBLISHED: Final = Decoding()
"""As torchvision's ImageFolder decodes, and the published runs did."""


@contextlib.contextmanager
def _opened(file: BinaryIO, name: str) -> Iterator[Image.Image]:
    """Open an image file whose stated size is allowed; what fails in it is an `AvtError` that names the file."""
    with warnings.catch_warnings():  # Pillow warns of odd metadata in thousands of published images
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"{image.width}x{image.height} px")
                if not image.width * image.height:
                    raise ValueError(f"it has {image.width}x{image.height} px")
                yield image
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise AvtError(
                f"{name} states more than {MAX_PIXELS // 1_000_000} million pixels ({error}). Remove it from the data set, or "
                "shrink it."
            ) from error
        except Exception as error:  # a damaged image can fail in any way
            cause = "it is no image of a known format" if isinstance(error, UnidentifiedImageError) else error
            raise AvtError(f"{name} does not decode: {cause}.") from error


def describe_image(file: BinaryIO, *, name: str) -> str:
    """Return format and mode of an image file, such as `PNG RGBA`, from its header; raises as `decode_image`."""
    with _opened(file, name) as image:
        return f"{image.format} {image.mode}"


def decode_image(file: BinaryIO, *, name: str, how: Decoding = AS_PUBLISHED) -> Tensor:
    """Decode an image file, the first frame or page of several, to uint8 (C, H, W).

    Of 16 bits a channel the upper 8 remain, so that the stated range becomes 0 to 255. CMYK is converted without a colour
    profile. Decoders of other formats than `FORMATS` never run.

    Raises:
        AvtError: if it does not decode, is cut short, states more than `MAX_PIXELS` pixels, or has floating-point or 32-bit
            pixels, whose range no file states.
    """
    with _opened(file, name) as image:
        if how.at_least is not None:
            image.draft(None, (how.at_least, how.at_least))
        return torch.from_numpy(_pixels(image, how)).permute(2, 0, 1)


def _pixels(image: Image.Image, how: Decoding) -> NDArray[np.uint8]:
    """Decode to (H, W, C); Pillow clips grey levels above 255, and takes the upper 8 of 16 bits in colour."""
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        kind = "floating-point numbers" if image.mode == "F" else "signed or 32-bit integers"
        raise ValueError(f"its pixels are {kind} without a stated range")
    image.load()
    if how.orient:
        with contextlib.suppress(Exception):  # damaged metadata does no harm to the pixels
            ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):
        return np.repeat(_upper_8_bits(image)[..., None], how.channels, axis=-1)
    if how.background is not None and image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*how.background, 255)), image.convert("RGBA"))
    mode = "RGB" if how.channels == 3 else "L"
    image = image if image.mode == mode else image.convert(mode)
    pixels = np.array(image)
    return pixels if how.channels == 3 else pixels[..., None]


def _upper_8_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Scale 16-bit grey, (H, W), from its range: of PPM Pillow has scaled it, of TIFF the tags state depth and direction."""
    pixels, tags = np.asarray(image), getattr(image, "tag_v2", {})
    grey: NDArray[np.uint8] = (pixels >> (tags.get(_BITS, (16,))[0] - 8)).astype(np.uint8)
    return ~grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey
