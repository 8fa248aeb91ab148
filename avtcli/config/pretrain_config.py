"""Settings of a pretraining run."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from avtcli.config.components import Augment, Frozen, Optimizer, Plugin, Schedule


class PretrainConfig(Frozen):
    """Everything that a pretraining run depends on."""

    recipe: str = "default"
    """The recipe that the settings started from."""
    seed: int = 0
    """Every random draw is a function of it and of what the draw belongs to."""
    epochs: int | None = Field(default=None, gt=0)
    """Passes over the images; none means the schedule's own length."""
    max_steps: int | None = Field(default=None, gt=0)
    """Stop after so many steps; the schedule is left alone."""
    batch_size: int = Field(default=128, ge=2)
    """Images a step, over all processes."""
    limit_train: int | None = Field(default=None, ge=2)
    """Train on a draw of so many images; the same draw in every command and for every seed."""
    data_dir: str | None = None
    """Where the data lies; none means $AVT_DATA, else ./data."""
    workers: int | None = Field(default=None, ge=0)
    """Processes that read images which do not fit in memory; none means one less than the CPUs, at most 8."""
    init_from: str | None = None
    """Weights to begin with: a run, a checkpoint or a safetensors file; what matches by name and shape is taken."""
    homographies: str | None = None
    """A bank of transformations to draw from, made by `avt gen-homographies`."""
    bank_count: int | None = Field(default=None, gt=0)
    """Make a bank of so many at the start and draw from it, where none is given."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the arithmetic happens; auto takes CUDA, then MPS, then the CPU."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on a CUDA device that has it, else fp32."""
    compile: bool | None = None
    """Whether the training step is compiled; none means as measured for the class of device and the steps to run."""
    channels_last: bool | None = None
    """Whether maps lie channels last in memory; none means as measured for the class of device."""
    save_every: float = Field(default=10.0, gt=0, le=10)
    """Minutes between checkpoints, at most."""
    eval_every: int = Field(default=10, ge=0)
    """Epochs between evaluations on a few fixed images; one comes after the first step, one after the last epoch. 0: none."""
    stop_on_collapse: bool = False
    """Whether a run stops when an evaluation shows that it has collapsed."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers that receive the metrics; see `avt plugins list`."""
    dataset: Plugin = Plugin(name="fashion-mini")
    """The images."""
    backbone: Plugin = Plugin(name="nin")
    """The network."""
    transform: Plugin = Plugin(name="projective")
    """The family of transformations."""
    objective: Plugin = Plugin(name="avt")
    """What is minimised."""
    augment: Augment = Augment()
    """What happens to an image first."""
    optimizer: Optimizer = Optimizer()
    """How the weights move."""
    schedule: Schedule = Schedule()
    """How fast they move."""

    @field_validator("stop_on_collapse")
    @classmethod
    def _evaluated(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("eval_every") == 0:
            raise ValueError("a collapse shows in evaluations alone: give eval_every a number of epochs above 0")
        return value

    @property
    def total_epochs(self) -> int:
        """The epochs to run."""
        return self.epochs or self.schedule.epochs
