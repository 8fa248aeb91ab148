"""Images in batches: those that fit in memory live on the device, as far as it has room."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat

import torch
from torch import Tensor

from avtcli.contracts import Size, Split
from avtcli.data.bad_images import BadImages
from avtcli.data.images import CropSpec, Images, resize_batch
from avtcli.data.streaming import StreamedImages
from avtcli.errors import AvtError
from avtcli.geometry.cropping import centre_crop, crop_and_flip, resized_size
from avtcli.runtime.devices import has_room, upload
from avtcli.storage.run_data import BadImage

EVAL_BATCH_SIZE = 250
"""Images of a batch where nothing is trained."""


class ResidentImages(Images):
    """Images as uint8, resized once, that live on the device, or in the host's memory where they would take half of it or more.

    The arguments are those of `build_images`; all images of the split are in one tensor.
    """

    def __init__(self, split: Split, indices: Tensor, *, device: torch.device, shorter: int | None = None) -> None:
        assert split.images is not None
        images = split.images if len(indices) == len(split) else split.images[indices]
        images, self.device = _resize_all(images, shorter), device
        self.images = images.to(device) if has_room(device, images.nbytes) else images

    def __len__(self) -> int:
        return len(self.images)

    def read_batches(
        self, batches: Sequence[Tensor], crop: CropSpec, uniforms: Iterable[Tensor] | None = None
    ) -> Iterator[Tensor]:
        """Crop batches in their order, each when it is requested; see `Images`."""
        place, counts = self.images.device, [len(rows) for rows in batches]
        draws: Iterable[Tensor | None] = repeat(None, len(counts))
        if uniforms is not None and (crop.flip or crop.padding or tuple(self.images.shape[-2:]) != crop.size):
            draws = torch.split(upload(torch.cat(list(uniforms)), place), counts)
        for rows, own in zip(torch.split(upload(torch.cat(list(batches)), place), counts), draws, strict=True):
            batch = self.images.index_select(0, rows.to(place))
            if own is not None:
                batch = crop_and_flip(batch, own, crop=crop.size, padding=crop.padding, flip=crop.flip)
            elif uniforms is None:
                batch = centre_crop(batch, crop=crop.size)
            yield upload(batch, self.device)


def _resize_all(images: Tensor, shorter: int | None) -> Tensor:
    before = (images.shape[-2], images.shape[-1])
    size = resized_size(before, shorter)
    if size == before:
        return images
    out = images.new_empty(*images.shape[:2], *size)
    for first in range(0, len(images), 1000):  # in parts: no second copy of all images
        part = slice(first, first + 1000)
        out[part] = resize_batch(images[part], size)
    return out


def build_images(
    split: Split,
    indices: Tensor,
    *,
    device: torch.device,
    shorter: int | None,
    workers: int,
    bad: BadImages | None = None,
) -> Images:
    """Open images for reading in batches: on the device where they fit in memory, else streamed.

    Args:
        split: the images.
        indices: which of them, (n,) int64.
        device: where the batches go.
        shorter: `augment.resize`, the shorter side after resizing, or none.
        workers: processes that read streamed images; 0 reads in the main process (see `streaming.choose_workers`).
        bad: replaces streamed images that cannot be used, and notes them; without it the first one is an error.
    """
    if split.images is not None:
        return ResidentImages(split, indices, device=device, shorter=shorter)
    return StreamedImages(split, indices, device=device, shorter=shorter, workers=workers, bad=bad)


def find_bad_images(split: Split, indices: Tensor, size: Size, *, shorter: int | None, workers: int) -> dict[int, str]:
    """Read images once, as `StreamedImages` does, cropped to (height, width): those that cannot be used, by index, and why."""
    if not len(indices):
        return {}
    bad = BadImages(split, "", used=len(indices), max_fraction=1.0)
    images = StreamedImages(split, indices, device=torch.device("cpu"), shorter=shorter, workers=workers, bad=bad)
    try:
        for _ in images.read_batches(torch.split(torch.arange(len(indices)), EVAL_BATCH_SIZE), CropSpec(size)):
            pass
    except AvtError:
        if len(bad.reasons) < len(indices):  # else none can be used
            raise
    return dict(sorted(bad.reasons.items()))


def still_bad(split: Split, known: Sequence[BadImage], size: Size, *, shorter: int | None) -> list[BadImage]:
    """Read images of a split again that could not be used, see `find_bad_images`, and return those that still cannot be."""
    indices = torch.tensor([i for i, _ in split.find({bad.name for bad in known})], dtype=torch.int64)
    found = find_bad_images(split, indices, size, shorter=shorter, workers=0)
    return [BadImage(known[0].split, split.name(i), reason) for i, reason in found.items()]


def evaluation_batches(images: Images, batches: Sequence[Tensor], size: Size) -> Iterator[Tensor]:
    """Read batches without randomness: the center crop of each resized image, uint8 (B, C, *size), on the device."""
    return images.read_batches(batches, CropSpec(size)) if batches else iter(())
