"""Images in batches by row, and resizing and cropping one image."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from avtcli.contracts import MAX_PIXELS, Size
from avtcli.errors import AvtError
from avtcli.geometry.cropping import centre_crop, resized_size


@dataclass(frozen=True)
class CropSpec:
    """The crop of each image."""

    size: Size  # (height, width)
    padding: int = 0  # black pixels added on each side before a random crop
    flip: bool = False  # whether half of the images are flipped


class Images(ABC):
    """Images by row, read in batches."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read_batches(
        self, batches: Sequence[Tensor], crop: CropSpec, uniforms: Iterable[Tensor] | None = None
    ) -> Iterator[Tensor]:
        """Read batches in their order.

        Args:
            batches: rows, (B,) int64 each.
            crop: the crop of each image.
            uniforms: of each batch (B, 3) float64 in [0, 1): top, left, and flipped where below one half; none for center
                crops.

        Yields:
            uint8 (B, C, *crop.size), on the device.
        """


def resize(image: Tensor, shorter: int | None, *, name: str) -> Tensor:
    """Resize one uint8 image (C, H, W) by its shorter side, bilinearly with antialiasing, as `resize_batch` does.

    Raises:
        AvtError: naming the image, if it would have more than `MAX_PIXELS` pixels.
    """
    size = (image.shape[-2], image.shape[-1])
    height, width = resized_size(size, shorter)
    if size == (height, width):
        return image
    if height * width > MAX_PIXELS:
        raise AvtError(
            f"{name} is {size[0]}x{size[1]} px, and would be {height}x{width} px by `augment.resize={shorter}`: more than "
            f"{MAX_PIXELS // 1_000_000} million pixels. Crop or remove it."
        )
    return resize_batch(image[None], (height, width))[0]


def resize_batch(images: Tensor, size: Size) -> Tensor:
    """Resize uint8 images, (B, C, H, W) -> (B, C, *size), on the CPU; each value is within one grey level of Pillow's."""
    return functional.interpolate(images, size, mode="bilinear", antialias=True)


def crop_image(image: Tensor, crop: CropSpec, uniforms: list[float] | None, *, name: str) -> Tensor:
    """Crop one image, (C, H, W) -> (C, *crop.size), as `geometry.cropping` crops each image of a batch.

    Raises:
        AvtError: naming the image, if it is smaller than the crop: padding does not count, as evaluation has none.
    """
    if image.shape[-2] < crop.size[0] or image.shape[-1] < crop.size[1]:
        raise AvtError(
            f"{name} is {image.shape[-2]}x{image.shape[-1]} px, smaller than the crop of {crop.size[0]}x{crop.size[1]} px: "
            f"give `-o augment.resize={max(crop.size)}`, or a smaller augment.crop."
        )
    if uniforms is None:
        return centre_crop(image, crop=crop.size)
    image = functional.pad(image, [crop.padding] * 4) if crop.padding else image
    room = (image.shape[-2] - crop.size[0], image.shape[-1] - crop.size[1])
    top, left = (int(u * (r + 1)) for u, r in zip(uniforms[:2], room, strict=True))
    image = image[:, top : top + crop.size[0], left : left + crop.size[1]]
    return image.flip(-1) if crop.flip and uniforms[2] < 0.5 else image
