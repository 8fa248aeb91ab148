"""The contract of an objective. Shapes: B images, k parameters, dof target numbers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from avtcli.contracts.transform_families import Size, TransformFamily

Role = Literal["original", "transformed"]
"""What a view of an image is: the cropped image itself, or a transformation of it."""


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
    An objective computes in the precision of its weights, never in reduced precision.
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
        """Predict the transformation of the first transformed view, from vectors in the order of `views`.

        Raises:
            NotImplementedError: for an objective without a decoder.
        """
        raise NotImplementedError(f"{type(self).__name__} has no decoder")

    def log_var_layer(self) -> nn.Module | None:
        """The decoder's log-variance layer, whose learning rate a schedule may set; none without one."""
        return None
