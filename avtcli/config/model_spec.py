"""Specification of a model."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from avtcli.config.components import Frozen, Plugin


class ModelSpec(Frozen):
    """What a model is built from before its weights are loaded; stored with every checkpoint and export."""

    backbone: Plugin
    """The network."""
    channels: int = Field(gt=0)
    """Channels of the images."""
    size: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
    """(height, width) of the training images."""
    mean: tuple[float, ...]
    """Mean of each channel, of images in [0, 1]."""
    std: tuple[Annotated[float, Field(gt=0)], ...]
    """Standard deviation of each channel."""
    noise_scale: float = Field(default=0.0, ge=0)
    """Noise scale of the encoder; 0 means no log-variance branch."""
    objective: Plugin | None = None
    """The pretraining objective with its heads; none for an encoder alone."""
    transform: Plugin | None = None
    """The family of transformations that the objective was built for."""
    bn_statistics: Literal["per-view", "shared"] = "shared"
    """Running statistics of BatchNorm in the Siamese model; see `config.components.Model`."""
    layer: str | None = None
    """The layer that the encoder returns when called; none means the mean of the code."""

    @model_validator(mode="after")
    def _statistics_of_each_channel(self) -> "ModelSpec":
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, self.channels):
            found = f"mean of {len(self.mean)} and std of {len(self.std)}"
            raise ValueError(f"mean and std have one value, or one for each of {self.channels} channels; found {found}")
        return self
