"""Components shared by the settings of several commands: frozen models, every field documented."""

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from avtcli.errors import AvtError
from avtcli.plugin_options import parts_of

Workers = Annotated[int | None, BeforeValidator(lambda value: None if value == "auto" else value)]
"""A number of processes; none and `auto` leave it to the machine."""
FEW_IMAGES: Final = 200
"""Measured on fewer images no figure is called the best: few images make most differences."""

Panel = Literal["Probe", "Model", "Data", "Optimisation", "Hardware", "Output"]


@dataclass(frozen=True)
class Flag:
    """Marks a field that the command line sets; type, bounds, default and help come from the field.

    Attributes:
        panel: section of the help.
        name: the flag, without dashes, where it is not the field's name.
        metavar: placeholder of the value.
        auto: `auto` is accepted, and is a value: it replaces that of a recipe or of a resumed run.
        repeat: a tuple is given by repeating the flag; otherwise by one text with commas.
        on_resume: a resumed run may change the setting, and reports it.
    """

    panel: Panel | None = None
    name: str | None = None
    metavar: str | None = None
    auto: bool = False
    repeat: bool = False
    on_resume: bool = False

    def option(self, field: str) -> str:
        """Return the option of a field, with its dashes."""
        return f"--{self.name or field.replace('_', '-')}"


def flags_of(model: type[BaseModel]) -> dict[str, Flag]:
    """Map each field that the command line sets to its flag."""
    return {name: mark for name, field in model.model_fields.items() for mark in field.metadata if isinstance(mark, Flag)}


def value_type(field: FieldInfo) -> Any:
    """Return the type of a field's values, but for None."""
    parts = [part for part in get_args(field.annotation) if part is not type(None)]
    return parts[0] if type(None) in get_args(field.annotation) else field.annotation


def read_setting(value: Any, field: FieldInfo) -> Any:
    """Turn what was given for a field into its setting; None where nothing was given.

    A plugin is given by its name, several values as `A,B`, as a sequence, or as one of them, and a path as text or `Path`.
    """
    if value in (None, []):
        return None
    if value_type(field) is Plugin:
        return {"name": value}
    if get_origin(value_type(field)) is tuple:
        return parts_of(value)
    return str(value) if isinstance(value, Path) else value


def component_kinds(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the kinds of components whose options `-o KIND.KEY=VALUE` overrides: the fields that are tables."""
    parts = {name: get_args(field.annotation) or (field.annotation,) for name, field in model.model_fields.items()}
    return tuple(name for name, kinds in parts.items() if any(isinstance(k, type) and issubclass(k, BaseModel) for k in kinds))


def plugin_fields(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the names of a settings model's fields that are plugins, each called as its kind."""
    return tuple(name for name, field in model.model_fields.items() if field.annotation is Plugin)


class Frozen(BaseModel):
    """An immutable value that refuses unknown fields, NaN and infinity."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


class Plugin(BaseModel):
    """A plugin by name and its options, which the plugin itself checks."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    name: str
    """NAME or NAME:VARIANT."""

    @property
    def options(self) -> dict[str, Any]:
        """The options without the name."""
        return dict(self.model_extra or {})


class Model(Frozen):
    """How the encoder is used on the views."""

    bn_statistics: Literal["per-view", "shared"] = "per-view"
    """Running statistics of BatchNorm: originals and transformed images apart, or shared by both, as published."""


class Augment(Frozen):
    """Augmentation before the transformation; both views share it."""

    resize: int | None = Field(default=None, gt=0)
    """Shorter side after resizing, in pixels. Default: no resizing."""
    crop: int | None = Field(default=None, gt=0)
    """Side of the random crop, in pixels. Default: the size of the images."""
    padding: int = Field(default=0, ge=0)
    """Black pixels added on each side before the crop."""
    flip: bool = True
    """Flip each image horizontally with probability 1/2."""


class Optimizer(Frozen):
    """The optimiser; its learning rates come from the schedule."""

    name: Literal["sgd", "adamw"] = "adamw"
    """Algorithm: sgd or adamw."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD."""
    nesterov: bool = True
    """Use Nesterov momentum in SGD."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Weight decay of every parameter."""
    fused: bool | None = None
    """Use the fused implementation. Default: chosen by device class."""

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "Optimizer":
        if self.name == "sgd" and self.nesterov and not self.momentum:
            raise ValueError("Nesterov momentum needs a momentum above 0: give `-o optimizer.nesterov=false` for SGD without")
        return self


class Piece(Frozen):
    """One linear piece of a learning-rate schedule."""

    start: float = Field(ge=0)
    """Epoch at which the piece begins, counted from 0."""
    rate: float = Field(ge=0)
    """Learning rate at the start."""
    slope: float = 0.0
    """Change of the rate per epoch."""


class Schedule(Frozen):
    """Learning rate as a function of the epoch."""

    epochs: int = Field(default=100, gt=0)
    """Nominal length; a run of another length stretches or shrinks the schedule in proportion."""
    rate: float = Field(default=2e-3, gt=0)
    """Peak of the cosine; unused if there are pieces."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Fraction of the length over which the rate rises linearly to its peak."""
    pieces: tuple[Piece, ...] = ()
    """Piecewise linear rates. Default: a linear warm-up, then a cosine that falls to 0."""
    log_var_pieces: tuple[Piece, ...] = ()
    """Piecewise linear rates of the decoder's log-variance layer. Default: those of the other layers."""

    @model_validator(mode="after")
    def _pieces_are_a_schedule(self) -> "Schedule":
        for name in ("pieces", "log_var_pieces"):
            pieces: tuple[Piece, ...] = getattr(self, name)
            starts = [piece.start for piece in pieces]
            if starts and (starts[0] != 0 or starts != sorted(set(starts))):
                raise ValueError(f"schedule.{name} must start at epoch 0 and be in ascending order, found starts {starts}")
            if starts and starts[-1] >= self.epochs:
                hint = "another length of the run, --epochs, stretches or shrinks the schedule"
                raise ValueError(
                    f"schedule.{name} must start before the end, epoch {self.epochs}, found starts {starts}; {hint}"
                )
            ends = [
                (p.rate + p.slope * (end - p.start), end) for p, end in zip(pieces, [*starts[1:], self.epochs], strict=False)
            ]
            below = [f"{rate:g} at epoch {end:g}" for rate, end in ends if rate < -1e-9 * max(p.rate for p in pieces)]
            if below:
                raise ValueError(f"schedule.{name} must not fall below 0, found the rate {below[0]}")
        if self.pieces and not self.peak and all(piece.slope <= 0 for piece in self.pieces):
            raise ValueError("schedule.pieces must have a rate above 0: at 0 nothing is trained")
        return self

    @property
    def peak(self) -> float:
        """Highest learning rate of the backbone."""
        return max((piece.rate for piece in self.pieces), default=self.rate)

    def with_peak(self, peak: float) -> "Schedule":
        """Return the schedule scaled to another peak.

        Raises:
            AvtError: for a peak that is not above 0 and finite, or if all rates are 0.
        """
        if not isinstance(peak, int | float) or not 0 < peak < inf or self.peak <= 0:
            raise AvtError(
                f"A learning rate, --lr, must be above 0 and finite, found {peak!r}, of a schedule whose peak is {self.peak}."
            )
        by, update = peak / self.peak, dict[str, Any](rate=peak)
        for name in ("pieces", "log_var_pieces"):
            update[name] = tuple(Piece(start=p.start, rate=p.rate * by, slope=p.slope * by) for p in getattr(self, name))
        return self.model_copy(update=update)


TABLES: Final[dict[str, type[BaseModel]]] = dict(model=Model, augment=Augment, optimizer=Optimizer, schedule=Schedule)
"""The components that are no plugins, by kind."""
