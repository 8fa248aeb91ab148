"""Settings of a pretraining run."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from avtcli.config.components import Augment, Flag, Frozen, Model, Optimizer, Plugin, Schedule, Workers
from avtcli.plugin_options import absolute_path


class PretrainConfig(Frozen):
    """Everything that a pretraining run depends on."""

    recipe: str = "default"
    """Recipe that the settings started from."""
    seed: Annotated[int, Flag("Optimisation", metavar="N")] = 0
    """Seed of every random draw."""
    epochs: Annotated[int | None, Flag("Optimisation", metavar="N", on_resume=True)] = Field(default=None, gt=0)
    """Passes over the images; the schedule is stretched or shrunk. Default: the schedule's own length."""
    max_steps: Annotated[int | None, Flag("Optimisation", metavar="N", on_resume=True)] = Field(default=None, gt=0)
    """Stop after N steps; the schedule stays as it is. Default: all."""
    max_pairs: int | None = Field(default=None, gt=0)
    """Budget where `epochs` is not given: the schedule's epochs, or fewer that have at most N pairs, at least one."""
    batch_size: Annotated[int, Flag("Optimisation", metavar="N")] = Field(default=64, ge=2)
    """Images per step, over all processes."""
    limit_train: Annotated[int | None, Flag("Data", metavar="N")] = Field(default=None, ge=2)
    """Train on a random subset of N images, the same in every command and for every seed. Default: all."""
    data_dir: Annotated[str | None, Flag("Data", metavar="DIR", on_resume=True)] = None
    """Folder of the data sets. Default: $AVT_DATA, else ./data."""
    on_bad_image: Annotated[Literal["skip", "raise"], Flag("Data", on_resume=True)] = "skip"
    """Replace images that cannot be read, do not decode or are smaller than the crop by others, or stop at the first."""
    max_bad_fraction: Annotated[float, Flag("Data", metavar="X", on_resume=True)] = Field(default=0.01, ge=0, le=1)
    """Stop when more than this fraction of the images is skipped; one image may be, unless it is 0."""
    workers: Annotated[Workers, Flag("Hardware", metavar="N|auto", auto=True, on_resume=True)] = Field(default=None, ge=0)
    """Processes that decode images which do not fit in memory. Default: one fewer than the CPUs, at most 8."""
    init_from: Annotated[str | None, Flag("Model", metavar="RUN|FILE")] = None
    """Initial weights: a run, a checkpoint, a safetensors or torch.save file; matched by name and shape. Default: none."""
    homographies: Annotated[str | None, Flag("Data", metavar="FILE")] = None
    """Sample transformations from this bank; see `avt gen-homographies`. Default: fresh draws."""
    bank_count: int | None = Field(default=None, ge=2, le=5_000_000)
    """Size of a bank that is sampled at the start and drawn from, where no file is given."""
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Flag("Hardware", on_resume=True)] = "auto"
    """Compute device; auto takes CUDA, then MPS, then the CPU."""
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], Flag("Hardware", on_resume=True)] = "auto"
    """Numeric precision; auto takes bf16 on a CUDA device that supports it, else fp32."""
    compile: Annotated[bool | None, Flag("Hardware", on_resume=True)] = None
    """Compile the network. Default: on a CUDA GPU for runs so long that they pay for it, of 10 000 steps or more."""
    capture: Annotated[bool | None, Flag("Hardware", on_resume=True)] = None
    """Take each step of a full batch as one CUDA graph. Default: wherever it is possible."""
    sync_bn: Annotated[bool, Flag("Hardware")] = False
    """Normalise by the statistics of the whole batch, over all processes, instead of each process's own images."""
    channels_last: bool | None = None
    """Store feature maps channels last in memory. Default: chosen by device class."""
    checkpoint_activations: bool = False
    """Keep the activations of one view at a time: about half of the memory for a third more computation, for large inputs."""
    save_every: Annotated[float, Flag("Output", metavar="MINUTES", on_resume=True)] = Field(default=10.0, gt=0, le=10)
    """Minutes between checkpoints, at most 10."""
    eval_every: Annotated[int, Flag("Output", metavar="EPOCHS", on_resume=True)] = Field(default=10, ge=0)
    """Epochs between evaluations on fixed images; the first step and the last epoch have one too. 0 for none."""
    stop_on_collapse: Annotated[bool, Flag("Output", on_resume=True)] = False
    """Stop, with the state saved, when an evaluation detects a collapse."""
    trackers: Annotated[tuple[str, ...], Flag("Output", name="tracker", metavar="NAME", repeat=True, on_resume=True)] = ()
    """Experiment trackers that receive the metrics; see `avt plugins list`. Default: none."""
    dataset: Annotated[Plugin, Flag("Data", metavar="NAME[:PATH]", on_resume=True)] = Plugin(name="fashion-mini")
    """Training images; see `avt plugins list`."""
    model: Model = Model()
    """How the encoder is used on the views."""
    backbone: Annotated[Plugin, Flag("Model", metavar="NAME[:VARIANT]")] = Plugin(name="nin")
    """Network to pretrain."""
    transform: Annotated[Plugin, Flag("Model", metavar="NAME[+NAME...]")] = Plugin(name="projective")
    """Family of transformations."""
    objective: Annotated[Plugin, Flag("Model", metavar="NAME[+NAME...]")] = Plugin(name="avt")
    """Pretraining objective."""
    augment: Augment = Augment()
    """Augmentation before the transformation; both views share it."""
    optimizer: Optimizer = Optimizer()
    """Optimiser."""
    schedule: Schedule = Schedule()
    """Learning-rate schedule."""

    @field_validator("data_dir", "init_from", "homographies")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return None if value is None else str(absolute_path(value))

    @field_validator("stop_on_collapse")
    @classmethod
    def _evaluated(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("eval_every") == 0:
            raise ValueError("only an evaluation detects a collapse: set eval_every above 0")
        return value

    @property
    def total_epochs(self) -> int:
        """Number of epochs to run."""
        return self.epochs or self.schedule.epochs
