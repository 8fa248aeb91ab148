"""Parts that the settings of several commands share: frozen models, every field documented."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Frozen(BaseModel):
    """A value: every field documented, nothing unknown, no NaN."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


class Plugin(BaseModel):
    """A plugin by name; what stands beside the name are its options, and the plugin checks them."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    name: str
    """NAME or NAME:VARIANT."""

    @property
    def options(self) -> dict[str, Any]:
        """The options beside the name."""
        return dict(self.model_extra or {})


class Augment(Frozen):
    """What happens to an image before it is transformed; both views share it."""

    resize: int | None = Field(default=None, gt=0)
    """The shorter side, in pixels, after resizing; none keeps the images as they are."""
    crop: int | None = Field(default=None, gt=0)
    """The side of the random crop, in pixels; none means the images' own size."""
    padding: int = Field(default=0, ge=0)
    """Black pixels added on each side before the crop."""
    flip: bool = True
    """Whether half of the images are flipped."""


class Optimizer(Frozen):
    """The optimiser; its rates come from the schedule."""

    name: Literal["sgd", "adamw"] = "adamw"
    """sgd or adamw."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """SGD's momentum."""
    nesterov: bool = True
    """Whether SGD's momentum is Nesterov's."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Applied to every parameter, as in the release."""
    fused: bool | None = None
    """Whether a step walks each parameter once; none means as measured for the class of device."""


class Piece(Frozen):
    """From one epoch on: a rate, and how it changes each epoch."""

    start: float = Field(ge=0)
    """The epoch, counted from 0, at which the piece begins."""
    rate: float = Field(ge=0)
    """The learning rate at its start."""
    slope: float = 0.0
    """Added to the rate for each epoch since the start."""


class Schedule(Frozen):
    """The learning rate as a pure function of the epoch."""

    epochs: int = Field(default=100, gt=0)
    """The length it was written for; running more or fewer epochs stretches or shrinks it in proportion."""
    rate: float = Field(default=2e-3, gt=0)
    """The peak of the cosine; not used where there are pieces."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """The share of the cosine's length over which the rate rises to its peak."""
    pieces: tuple[Piece, ...] = ()
    """A rate that is constant or linear in pieces; none means a cosine that falls to 0 after a linear warm-up."""
    log_var_pieces: tuple[Piece, ...] = ()
    """The rates of the decoder's log-variance layer, where it has its own; none means as the rest."""

    @model_validator(mode="after")
    def _pieces_in_order(self) -> "Schedule":
        for name in ("pieces", "log_var_pieces"):
            starts = [piece.start for piece in getattr(self, name)]
            if starts and (starts[0] != 0 or starts != sorted(set(starts))):
                raise ValueError(f"schedule.{name} must begin at epoch 0 and go on in order, found starts {starts}")
        return self

    @property
    def peak(self) -> float:
        """The highest rate of the backbone."""
        return max((piece.rate for piece in self.pieces), default=self.rate)

    def with_peak(self, peak: float) -> "Schedule":
        """The same schedule with another peak; all rates keep their ratio to it."""
        by = peak / self.peak

        def scaled(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
            return tuple(Piece(start=p.start, rate=p.rate * by, slope=p.slope * by) for p in pieces)

        update = {"rate": peak, "pieces": scaled(self.pieces), "log_var_pieces": scaled(self.log_var_pieces)}
        return self.model_copy(update=update)


def plugin_fields(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the names of a settings model's fields that are plugins, each called as its kind."""
    return tuple(name for name, field in model.model_fields.items() if field.annotation is Plugin)
