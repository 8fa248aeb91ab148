"""Specification of a model."""

from pydantic import Field

from avtcli.config.components import Frozen, Plugin


class ModelSpec(Frozen):
    """What a model is built from before its weights are loaded; stored with every checkpoint and export."""

    backbone: Plugin
    """The network."""
    channels: int = Field(gt=0)
    """Channels of the images."""
    size: tuple[int, int]
    """(height, width) of the training images."""
    mean: tuple[float, ...]
    """Mean of each channel, of images in [0, 1]."""
    std: tuple[float, ...]
    """Standard deviation of each channel."""
    noise_scale: float = 0.0
    """Noise scale of the encoder; 0 means no log-variance branch."""
    objective: Plugin | None = None
    """The pretraining objective with its heads; none for an encoder alone."""
    transform: Plugin | None = None
    """The family of transformations that the objective was built for."""
    layer: str | None = None
    """The layer that the encoder returns when called; none means the mean of the code."""
