"""Contracts of the plugins: backbone, family of transformations, data set, objective, exporter, tracker.

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

Role = Literal["original", "transformed"]
"""What a view of an image is: the cropped image itself, or a transformation of it."""

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
    """A distribution of random transformations, and the decoding of predicted targets.

    Convention:
        - sampled parameters are (n, k), float64, on the CPU
        - targets are (n, dof), normalised to about zero mean and unit standard deviation by `statistics`
        - in_from_out matrices map an output pixel (x, y, 1) to an input pixel, Pillow's direction
    """

    kind: Literal["geometric", "photometric", "mixed"]
    names: tuple[str, ...]
    """Names of the target's components."""
    units: tuple[str, ...]
    """Units of the target's components; an empty string for a pure number."""
    n_classes: int | None = None
    """The number of classes, for families that can be classified."""

    @property
    def dof(self) -> int:
        """The length of a target."""
        return len(self.names)

    @abstractmethod
    def sample(self, n: int, size: Size, generator: Generator) -> Tensor:
        """Sample the parameters of n transformations for images of a size: (n, k), float64."""

    @abstractmethod
    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Transform a batch: float images (B, C, H, W) in [0, 1] and parameters (B, k) give the same shape and range."""

    @abstractmethod
    def statistics(self, size: Size) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the raw target under this distribution: (dof,) each, float64."""

    @abstractmethod
    def target(self, parameters: Tensor, size: Size) -> Tensor:
        """Convert parameters (n, k) to the normalised targets (n, dof) that the decoder predicts."""

    @abstractmethod
    def decode(self, target: Tensor, size: Size) -> Tensor:
        """Convert normalised targets (n, dof) to parameters (n, k): the inverse of `target`, differentiable."""

    def in_from_out(self, parameters: Tensor, size: Size) -> Tensor:
        """Return the matrices (n, 3, 3) of a geometric family's warps.

        Raises:
            NotImplementedError: for a photometric family.
        """
        raise NotImplementedError(f"{type(self).__name__} has no matrix")

    def classes(self, parameters: Tensor) -> Tensor:
        """Return the class of each transformation, (n,) int64.

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
    """The transformations of one view, which an objective compares its prediction with.

    Attributes:
        values: normalised targets, (B, dof), on the model's device.
        parameters: as sampled, (B, k), on the model's device, float32 or better.
        family: the family that sampled them.
        size: (height, width) of the images.
    """

    values: Tensor
    parameters: Tensor
    family: TransformFamily
    size: Size


@dataclass(frozen=True)
class Prediction:
    """The output of a decoder.

    Attributes:
        mean: (B, outputs): the normalised target, or the logits of the family's classes.
        log_var: natural logarithm of the variance that the likelihood uses, likewise; none without a variance.
    """

    mean: Tensor
    log_var: Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """The loss of a batch: of each sample, (B,), and named parts of it for the log, (B,) each."""

    per_sample: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module, ABC):
    """What pretraining minimises; it owns the heads that it needs on top of the encoder.

    The encoder is called once for each view, in the order of `views`; each view is normalised by its own batch statistics.
    An objective computes in the precision of its own weights, never in reduced precision.
    """

    views: tuple[Role, ...] = ("original", "transformed")
    """The role of each view: the cropped image, or a transformation of it with a separate random draw."""
    noise_scale: float = 0.0
    """Factor before exp(log_var / 2) * eps in the encoder; 0 means no noise and no log-variance branch."""
    prediction: Literal["target", "classes"] | None = "target"
    """What `predict` returns as mean: the normalised target, logits of the family's classes, or none: there is no decoder."""
    depends_on_batch: bool = False
    """Whether the loss of a sample depends on the other samples: it then sees the vectors of all processes."""

    @abstractmethod
    def forward(self, codes: tuple[Tensor, ...], targets: tuple[Target, ...]) -> Loss:
        """Compute the loss of a batch.

        Args:
            codes: the encoder's vector of each view, (B, vector_dim), in the order of `views`.
            targets: one for each transformed view, in their order.
        """

    def predict(self, codes: tuple[Tensor, ...]) -> Prediction:
        """Predict the transformation from the vectors of the views.

        Raises:
            NotImplementedError: for an objective without a decoder.
        """
        raise NotImplementedError(f"{type(self).__name__} has no decoder")

    def log_var_layer(self) -> nn.Module | None:
        """The decoder's log-variance layer, whose learning rate a schedule may set; none without one."""
        return None


class Exporter(ABC):
    """A format of exported encoders."""

    suffix: str
    """The ending of its files, with the dot; an empty string for a format that is a folder."""

    def check(self, encoder: "Encoder", layer: str) -> None:  # noqa: B027
        """Check that the format can hold an encoder whose output is `layer`; every encoder passes by default.

        Raises:
            AvtError: if it cannot; the message names a format that can.
        """

    @abstractmethod
    def write(self, encoder: "Encoder", path: Path, about: Mapping[str, Any]) -> None:
        """Write an encoder.

        Args:
            encoder: in eval mode, on the CPU; `encoder.output` is the layer that the loaded module returns.
            path: the file or folder to make; it does not exist.
            about: plain JSON: version, model (everything needed to build the encoder), step and config (may be none).
        """

    @abstractmethod
    def load(self, path: Path) -> nn.Module:
        """Load a module that maps normalised images, (B, C, H, W), to the features of the exported layer."""

    @abstractmethod
    def load_with(self, path: Path) -> tuple[str, ...]:
        """Return the lines of Python, without compound statements, that load the file as `encoder`."""


class Tracker(ABC):
    """A log of a run's figures outside of avt. Its methods are called in the main process only."""

    @abstractmethod
    def start(self, run_dir: Path, config: Mapping[str, Any], step: int) -> None:
        """Begin a run, or continue one.

        Args:
            run_dir: the run folder. What the tracker needs to continue lies in its folder `trackers`.
            config: the run's settings as plain JSON.
            step: steps done; values logged for later steps, by a run that was interrupted, come again.
        """

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record values by name after `step` steps; steps do not decrease, and one step may come several times."""

    @abstractmethod
    def finish(self) -> None:
        """End the run: everything logged is safe when this returns."""


@dataclass(frozen=True)
class PublishedCheckpoint:
    """How a published checkpoint of a backbone maps to ours.

    Attributes:
        recipe: the recipe of the published run.
        modules: each module of the published encoder that holds tensors, and the name of ours.
    """

    recipe: str
    modules: Mapping[str, str]
