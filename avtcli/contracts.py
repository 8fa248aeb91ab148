"""Contracts of plugins: backbones, transformations, data sets, objectives, exporters and trackers.

Shapes: B images, C channels, H rows, W columns; n draws, k parameters, dof target numbers. A size is (height, width).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Generator, Tensor, nn

if TYPE_CHECKING:
    from avtcli.models.encoder import Encoder

Size = tuple[int, int]
"""(height, width) in pixels."""

Code = Callable[[Tensor], Tensor]
"""Takes the map at the code tap, (B, C, H, W), and returns the code to go on with, of the same shape."""


class Backbone(nn.Module, ABC):
    """A network that hands its map at one place to the encoder and goes on with what comes back.

    A concrete backbone sets the three attributes and defines `forward`; nothing else is asked of it.
    """

    taps: Mapping[str, int]
    """The places where features can be read, in order: name -> channels. A tap is (B, C, H, W), or (B, C) for a vector."""
    code_tap: str
    """The tap whose map is the mean of the code."""
    vector_dim: int
    """The length of the vector that the decoder sees."""

    @abstractmethod
    def forward(self, x: Tensor, code: Code, want: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode images.

        Args:
            x: normalised images, (B, C, H, W).
            code: called once, with the map at `code_tap`; the layers after it work on what it returns.
            want: the taps to hand out. The code tap itself is the encoder's affair and never asked for here.

        Returns:
            The vector, (B, vector_dim), and the wanted taps by name.
        """

    def bare(self) -> nn.Module:
        """Return the network with its own parameter names, as its library saves them: a submodule, or this module itself."""
        return self


class TransformFamily(ABC):
    """A distribution of random transformations, and how a decoder's output is read as one of them.

    Convention:
        - parameters are (n, k), float64, on the CPU when drawn
        - targets are (n, dof), normalised to about zero mean and unit spread by `statistics`
        - in_from_out matrices map an output pixel (x, y, 1) to an input pixel, Pillow's direction
    """

    kind: Literal["geometric", "photometric", "mixed"]
    names: tuple[str, ...]
    """One name a target number."""
    units: tuple[str, ...]
    """One unit a target number; an empty string for a pure number."""
    n_classes: int | None = None
    """The number of classes, for families that can be classified."""

    @property
    def dof(self) -> int:
        """The length of a target."""
        return len(self.names)

    @abstractmethod
    def sample(self, n: int, size: Size, generator: Generator) -> Tensor:
        """Draw n transformations for images of a size: (n, k), float64."""

    @abstractmethod
    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Transform a batch: float images (B, C, H, W) in [0, 1] and parameters (B, k) give the same shape and range."""

    @abstractmethod
    def statistics(self, size: Size) -> tuple[Tensor, Tensor]:
        """The mean and the standard deviation of the raw target under this distribution: (dof,) each, float64."""

    @abstractmethod
    def target(self, parameters: Tensor, size: Size) -> Tensor:
        """What the decoder is to predict: parameters (n, k) give normalised targets (n, dof)."""

    @abstractmethod
    def decode(self, target: Tensor, size: Size) -> Tensor:
        """Read normalised targets (n, dof) as parameters (n, k); differentiable, the inverse of `target`."""

    def in_from_out(self, parameters: Tensor, size: Size) -> Tensor:
        """The matrices (n, 3, 3) that geometric families warp by.

        Raises:
            NotImplementedError: for a photometric family, which has none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no matrix")

    def classes(self, parameters: Tensor) -> Tensor:
        """The class of each transformation, (n,) int64.

        Raises:
            NotImplementedError: for a family without classes.
        """
        raise NotImplementedError(f"{type(self).__name__} has no classes")


class Split(ABC):
    """One part of a data set: images by their number."""

    labels: Tensor | None
    """(n,) int64, or none."""
    images: Tensor | None
    """All images as one uint8 tensor (n, C, H, W) where that is small, else none."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, i: int) -> Tensor:
        """Image i, uint8 (C, H, W)."""

    @abstractmethod
    def name(self, i: int) -> str:
        """What image i is called, for messages and embeddings."""


class MemorySplit(Split):
    """A part whose images all lie in memory.

    Args:
        images: uint8, (n, C, H, W).
        labels: int64, (n,), or none.
        prefix: names are `prefix/i`.
    """

    def __init__(self, images: Tensor, labels: Tensor | None, *, prefix: str) -> None:
        self.images: Tensor = images
        self.labels = labels
        self.prefix = prefix

    def __len__(self) -> int:
        return len(self.images)

    def read(self, i: int) -> Tensor:
        """Image i, uint8 (C, H, W)."""
        return self.images[i]

    def name(self, i: int) -> str:
        """`prefix/i`."""
        return f"{self.prefix}/{i}"


@dataclass(frozen=True)
class ImageData:
    """A data set. Resize, padding and crop belong to the recipe."""

    train: Split
    test: Split | None
    channels: int
    size: Size | None
    """(height, width) of every image, or none where they differ."""
    mean: tuple[float, ...]
    """Per channel, of images in [0, 1]."""
    std: tuple[float, ...]
    classes: tuple[str, ...] | None
    fingerprint: str
    """Changes when the data does: a hash of what the files say of themselves."""


@dataclass(frozen=True)
class Target:
    """What an objective compares a prediction with.

    Attributes:
        values: normalised targets, (B, dof), on the model's device.
        parameters: what was drawn, (B, k), on the model's device, float32 or better.
        family: the family that drew them.
        size: of the images.
    """

    values: Tensor
    parameters: Tensor
    family: TransformFamily
    size: Size


@dataclass(frozen=True)
class Loss:
    """An objective's loss on a batch: the loss of each sample, (B,), and named parts of it, (B,) each, for the log."""

    per_sample: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(ABC):
    """What pretraining minimises."""

    noise_scale: float = 0.0
    """The factor before exp(log_var / 2) * eps in the encoder; 0 means no noise and no log-variance branch."""
    has_log_var: bool = False
    """Whether the decoder predicts a log-variance beside the mean."""
    log_var_scale: float = 1.0
    """What the log-variance head's output is multiplied by to give the log-variance of the likelihood."""
    views: Literal["both", "transformed"] = "both"
    """Which images the decoder sees the vectors of: the original and the transformed one, or the transformed one alone."""
    predicts_classes: bool = False
    """Whether the mean holds the logits of the family's classes, which `decode` cannot read, and not a normalised target."""

    @abstractmethod
    def outputs(self, family: TransformFamily) -> int:
        """How many numbers the decoder predicts: dof or the number of classes.

        Raises:
            AvtError: if the objective cannot work with the family.
        """

    @abstractmethod
    def loss(self, mean: Tensor, log_var: Tensor | None, target: Target) -> Loss:
        """Compare a prediction, mean and log-variance (B, outputs) each, with the truth."""


class Exporter(ABC):
    """A format of exported encoders."""

    suffix: str
    """The ending of its files, with the dot; an empty string for a folder."""

    def check(self, encoder: "Encoder", layer: str) -> None:  # noqa: B027
        """Raise AvtError, naming a format that can, if the format cannot hold an encoder whose output is `layer`."""

    @abstractmethod
    def write(self, encoder: "Encoder", path: Path, about: Mapping[str, Any]) -> None:
        """Write an encoder.

        Args:
            encoder: in eval mode, on the CPU; the loaded module returns its layer `encoder.output`.
            path: the file or folder to make, which does not exist.
            about: plain JSON: version, model (to build the encoder), step and config, which may be none.
        """

    @abstractmethod
    def load(self, path: Path) -> nn.Module:
        """Load a module that maps normalised images, (B, C, H, W), to the features of the exported layer."""

    @abstractmethod
    def load_with(self, path: Path) -> tuple[str, ...]:
        """Return the lines of Python that load the file as `encoder`, without compound statements."""


class Tracker(ABC):
    """A log of a run's figures outside of avt; it is called in the main process only."""

    @abstractmethod
    def start(self, run_dir: Path, config: Mapping[str, Any], step: int) -> None:
        """Begin or continue a run.

        Args:
            run_dir: the run folder. The tracker's state lies in its folder `trackers`, which exists.
            config: the settings as plain JSON.
            step: steps done; values of later steps, logged before an interruption, are logged again.
        """

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record values by name after `step` steps; steps do not decrease, and a step may come several times."""

    @abstractmethod
    def finish(self) -> None:
        """End the run: all values are stored when this returns."""


@dataclass(frozen=True)
class PublishedCheckpoint:
    """The recipe of a published checkpoint, and our module name for each module of its encoder that holds tensors."""

    recipe: str
    modules: Mapping[str, str]
