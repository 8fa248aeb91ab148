"""Independent baseline: one image, one equation system and one loss at a time, written from the mathematics.

It uses Pillow, NumPy, torchvision's transforms and a DataLoader, as the release does, and shares only the network with the rest
of avt. On a GPU it is written as PyTorch's guides advise: pinned batches, autocast, and no waiting for the device at each step.
`avt bench` compares with it, and tests take it as a reference.
"""

import random
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional as image_transforms

from avtcli.features.pooling import pool_features
from avtcli.models.encoder import Encoder
from avtcli.models.siamese import SiameseModel
from avtcli.seeding import keyed_generator

FloatArray = npt.NDArray[np.float64]
NO_SCALING: Final = torch.amp.GradScaler(enabled=False)
Pair = tuple[Tensor, Tensor, Tensor]
"""Original and transformed image, normalised, and the normalised target; of one image or of a batch."""


def sample_corners(side: int, rng: random.Random) -> list[tuple[float, float]]:
    """Sample the transformed corners of a square image, by the distribution of the release (its cifar/dataset.py).

    They are scaled about W/2 + 0.5 by U(0.8, 1.2), their order is rotated by a multiple of 90 degrees, and each coordinate is
    shifted by an integer number of pixels, at most an eighth of the side. Four (x, y), in pixels.
    """
    centre, largest = side / 2 + 0.5, side // 8
    scale, turn = rng.uniform(0.8, 1.2), rng.randrange(4)
    scaled = [(centre + (x - centre) * scale, centre + (y - centre) * scale) for x, y in _corners(side)]
    turned = [scaled[(i + turn) % 4] for i in range(4)]
    return [(x + rng.randint(-largest, largest), y + rng.randint(-largest, largest)) for x, y in turned]


def _corners(side: int) -> list[tuple[int, int]]:
    return [(0, 0), (side, 0), (side, side), (0, side)]


def solve_homography(transformed: Sequence[tuple[float, float]], side: int) -> FloatArray:
    """Solve for Pillow's coefficients a to h, (8,), which map transformed corners (x, y) to corners (u, v) of the image.

    u = (a x + b y + c) / (g x + h y + 1) and v = (d x + e y + f) / (g x + h y + 1), multiplied out: two rows per corner. As
    in the release by the normal equations, (A'A)^-1 A' times the corners, though A is square.
    """
    rows, right = [], []
    for (x, y), (u, v) in zip(transformed, _corners(side), strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    matrix = np.array(rows, dtype=np.float64)
    solved: FloatArray = np.linalg.inv(matrix.T @ matrix) @ matrix.T @ np.array(right, dtype=np.float64)
    return solved


def sample_homographies(count: int, side: int, *, seed: int) -> FloatArray:
    """Sample and solve one after another: (count, 8)."""
    rng = random.Random(seed)
    return np.stack([solve_homography(sample_corners(side, rng), side) for _ in range(count)])


def to_pillow(pixels: Tensor) -> Image.Image:
    """Convert a uint8 image (C, H, W) of one or three channels."""
    array = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if len(pixels) == 1 else array)


def from_pillow(image: Image.Image) -> Tensor:
    """Convert to float32 (C, H, W) in [0, 1]."""
    tensor: Tensor = image_transforms.to_tensor(image)
    return tensor


def warp_image(image: Image.Image, coefficients: FloatArray) -> Image.Image:
    """Warp by Pillow's PERSPECTIVE, bilinearly, grey outside."""
    fill = 128 if image.mode == "L" else (128,) * 3
    method, resampling = Image.Transform.PERSPECTIVE, Image.Resampling.BILINEAR
    return image.transform(image.size, method, coefficients.tolist(), resampling, fillcolor=fill)


def crop_and_flip(image: Image.Image, *, top: int, left: int, flipped: bool, padding: int) -> Image.Image:
    """Pad with black, crop to the image's own size, and flip where `flipped`."""
    width, height = image.size
    crop: Image.Image = image_transforms.crop(image_transforms.pad(image, [padding]), top, left, height, width)
    return image_transforms.hflip(crop) if flipped else crop


@dataclass(frozen=True)
class PairDataset(Dataset[Pair]):
    """Pairs made item by item: padded, cropped, flipped, transformed, normalised.

    `images` is uint8 (n, C, side, side); `mean` and `std` are those of its channels in [0, 1], `target_mean` and `target_std`
    of the eight coefficients. The random values of an item depend on the seed and its index.
    """

    images: Tensor
    padding: int
    mean: Sequence[float]
    std: Sequence[float]
    target_mean: Sequence[float]
    target_std: Sequence[float]
    seed: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Pair:
        rng, side = random.Random(f"{self.seed}/{i}"), self.images.shape[-1]
        top, left = rng.randint(0, 2 * self.padding), rng.randint(0, 2 * self.padding)
        image = crop_and_flip(to_pillow(self.images[i]), top=top, left=left, flipped=rng.random() < 0.5, padding=self.padding)
        coefficients = solve_homography(sample_corners(side, rng), side)
        target = (coefficients - np.array(self.target_mean)) / np.array(self.target_std)
        views = [from_pillow(view) for view in (image, warp_image(image, coefficients))]
        original, transformed = (image_transforms.normalize(view, list(self.mean), list(self.std)) for view in views)
        return original, transformed, torch.from_numpy(target).float()


def pair_batches(pairs: PairDataset, device: torch.device, *, batch_size: int, workers: int) -> Iterator[Pair]:
    """Yield batches of shuffled pairs without end, on a device, read ahead by worker processes."""
    order, pinned = keyed_generator(pairs.seed, "order"), device.type == "cuda"
    loader = DataLoader(
        pairs,
        batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=order,
        pin_memory=pinned,
    )
    with _child_handler_kept():
        while True:
            for pair in loader:
                original, transformed, target = (part.to(device, non_blocking=pinned) for part in pair)
                yield original, transformed, target


@contextmanager
def _child_handler_kept() -> Iterator[None]:
    """Restore the handler of SIGCHLD: a DataLoader leaves its own, which would raise when a later worker ends."""
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)


def image_loader(folder: str, *, shorter: int, crop: int, batch_size: int, workers: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """Build a DataLoader of the images in class folders, uint8 (B, 3, crop, crop), resized by the shorter side and cropped."""
    flip, pixels = transforms.RandomHorizontalFlip(), transforms.PILToTensor()
    images = ImageFolder(folder, transforms.Compose([transforms.Resize(shorter), transforms.RandomCrop(crop), flip, pixels]))
    return DataLoader(images, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def read_epoch(loader: DataLoader[tuple[Tensor, Tensor]], device: torch.device) -> None:
    """Read all batches of a loader to a device."""
    with _child_handler_kept():
        for images, _ in loader:
            images.to(device)


def decoder_heads(net: SiameseModel) -> tuple[nn.Module, nn.Module]:
    """The linear layers that predict the mean and 1000 times the log-variance."""
    decoder = net.objective.get_submodule("decoder")
    return decoder.get_submodule("mean_head"), decoder.get_submodule("log_var_head")


def build_optimizer(net: SiameseModel) -> torch.optim.Optimizer:
    """The release's SGD: Nesterov momentum 0.9, weight decay 5e-4; the log-variance layer is the second group."""
    log_var = list(decoder_heads(net)[1].parameters())
    rest = [p for p in net.parameters() if all(p is not q for q in log_var)]
    groups = [{"params": rest}, {"params": log_var}]
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True, weight_decay=5e-4)


def gaussian_loss(mean: Tensor, raw: Tensor, target: Tensor) -> Tensor:
    """The release's loss: [sum raw / 1000 + sum (mean - t)^2 / (exp(raw / 1000) + 1e-4)] / batch; (B, 8) each."""
    log_var = raw / 1000
    return (log_var + (mean - target) ** 2 / (torch.exp(log_var) + 1e-4)).sum() / len(target)


def train_step(
    net: SiameseModel,
    optimizer: torch.optim.Optimizer,
    pair: Pair,
    noise: Sequence[Tensor | None],
    *,
    autocast: torch.dtype | None = None,
    scaler: torch.amp.GradScaler = NO_SCALING,
) -> Tensor:
    """Take one eager step: the network, in train mode, runs on one view, then on the other.

    Args:
        net: the network.
        optimizer: of its parameters.
        pair: a batch, on the network's device.
        noise: eps of the codes of both views.
        autocast: the type that the network, but not its heads, computes in under autocast; none for that of its weights.
        scaler: scales the loss, for float16.

    Returns:
        The loss, without dimensions, detached, on the device.
    """
    optimizer.zero_grad()
    with torch.autocast(pair[0].device.type, autocast, enabled=autocast is not None):
        codes = torch.cat([net.encoder.encode(view, eps)[0] for view, eps in zip(pair[:2], noise, strict=True)], dim=1)
    mean, raw = (head(codes.to(pair[2].dtype)) for head in decoder_heads(net))
    loss = gaussian_loss(mean, raw, pair[2])
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    scaler.step(optimizer)
    scaler.update()
    return loss.detach()


def probe_epoch(
    encoder: Encoder, layer: str, head: nn.Module, optimizer: torch.optim.Optimizer, batches: Sequence[tuple[Tensor, Tensor]]
) -> list[float]:
    """Train a head for an epoch on 4x4 max-pooled features, and return the loss of each step.

    Every image is forwarded through the frozen encoder. Batches are images (B, C, H, W) uint8 and labels (B,), on its device.
    """
    losses = []
    for images, labels in batches:
        with torch.no_grad():
            features = encoder.features(encoder.normalise(images), [layer])[layer]
        loss = functional.cross_entropy(head(pool_features(features, "max", 4)), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
    values: list[float] = torch.stack(losses).tolist()
    return values
