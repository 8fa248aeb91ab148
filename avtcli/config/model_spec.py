"""Specification of a model."""

from typing import Literal

from pydantic import Field

from avtcli.config.components import Frozen, Plugin


class ModelSpec(Frozen):
    """Everything needed to build a model before its weights are loaded; stored in every checkpoint and export."""

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
    outputs: int = Field(default=0, ge=0)
    """How many numbers the decoder predicts; 0 means that there is no decoder."""
    has_log_var: bool = False
    """Whether the decoder predicts a log-variance."""
    log_var_scale: float = 1.0
    """Factor on the log-variance layer's output."""
    views: Literal["both", "transformed"] = "both"
    """Whose codes the decoder sees: the pair's, or the transformed image's alone."""
    layer: str | None = None
    """The layer that calling the encoder returns; none means the mean of the code."""
