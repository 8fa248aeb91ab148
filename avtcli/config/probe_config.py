"""Settings of a probe: its protocol."""

from math import ceil
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from avtcli.config.components import Augment, Flag, Frozen, Optimizer, Plugin, Schedule, Workers
from avtcli.plugin_options import absolute_path

Pool = Literal["max", "avg", "none"]
HEAD_RATES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
FINETUNE_RATES = (0.1, 0.03, 0.01)
LR_SEARCH_STEPS = 200
"""Steps after which learning rates are compared, rounded up to epochs, at most the heads' own."""


class ProbeConfig(Frozen):
    """Everything that a probe's results depend on, apart from the weights."""

    recipe: str | None = None
    """Recipe that the settings started from. Default: our own protocol."""
    layers: Annotated[tuple[str, ...], Flag("Probe", name="layer", metavar="NAME[,NAME...]|all")] = ()
    """Layers to probe. Default: the code."""
    head: Annotated[Plugin, Flag("Probe", metavar="NAME")] = Plugin(name="linear")
    """Classifier on the features; its options are `-o head.KEY=VALUE`."""
    finetune: Annotated[bool, Flag("Probe")] = False
    """Train the backbone too, from its weights and with the head's learning rate, up to the layer."""
    supervised: Annotated[bool, Flag("Probe")] = False
    """Also probe a backbone trained with all labels from random weights."""
    pool: Annotated[tuple[Pool, ...], Flag("Probe", metavar="max|avg|none[,...]")] = ()
    """Spatial pooling of feature maps, one head each. Default: the head's own."""
    pool_size: Annotated[int | None, Flag("Probe", metavar="N")] = Field(default=None, gt=0)
    """Side of every map after pooling; smaller maps stay as they are. Default: the recipe's for the layer, else 4."""
    pool_sizes: dict[str, Annotated[int, Field(gt=0)]] = Field(default_factory=dict)
    """Side after pooling by layer; 4 for a layer without one."""
    samples: Annotated[int, Flag("Probe", metavar="N")] = Field(default=0, ge=0)
    """Samples of the code to average; 0 takes its mean. Layers after the code see one sample."""
    augmented: Annotated[bool | None, Flag("Probe", name="augment")] = None
    """Crop and flip the training images again in each epoch. Default: only with --finetune."""
    copies: Annotated[int, Flag("Probe", metavar="N")] = Field(default=0, ge=0)
    """Augmented copies of each image whose features are cached and used in turn; 0 forwards the images each epoch."""
    augment: Augment | None = None
    """Resizing, crop and flip of the images. Default: those of the run."""
    schedule: Schedule | None = None
    """Learning-rate schedule of the heads. Default: a cosine to 0 from a peak of `rates` chosen on held-out images."""
    optimizer: Optimizer = Optimizer(name="sgd", weight_decay=5e-4)
    """Optimiser of the heads."""
    epochs: Annotated[int | None, Flag("Optimisation", metavar="N")] = Field(default=None, gt=0)
    """Passes over the training images. Default: the schedule's own length, else 100, or 20 with --finetune."""
    batch_size: int = Field(default=128, ge=2)
    """Images per step."""
    rates: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Peak learning rates to choose from if there is no schedule. Default: `HEAD_RATES`, or `FINETUNE_RATES`."""
    limit_train: Annotated[int | None, Flag("Data", metavar="N")] = Field(default=None, ge=20)
    """Train on a random subset of N images, the same in every command and for every seed. Default: all."""
    shots: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Flag("Data", metavar="N[,N...]")] = ()
    """Train on N images per class, a head for each N; each seed samples its own, nested. Default: all images."""
    fraction: Annotated[float | None, Flag("Data", metavar="X")] = Field(default=None, gt=0, le=1)
    """Train on a fraction of each class, at least one image; each seed samples its own. Default: all."""
    seed: Annotated[int, Flag("Optimisation", metavar="N")] = 0
    """Seed of the heads' weights, order and augmentation of the images, samples of the code and random baseline."""
    seeds: Annotated[int, Flag("Optimisation", metavar="N")] = Field(default=1, gt=0)
    """Train the heads with N seeds, the given one and those that follow it."""
    baseline: Annotated[bool, Flag("Probe")] = True
    """Also probe a randomly initialised backbone, with BatchNorm statistics of 1000 training images unless fine-tuned."""
    calibrate_bn: Annotated[bool, Flag("Probe")] = False
    """Replace the network's BatchNorm statistics by those of 1000 training images, for weights that never saw the data."""
    backbone: Annotated[Plugin | None, Flag("Model", metavar="NAME[:VARIANT]")] = None
    """Backbone by name instead of a run: random, or published weights by `-o backbone.pretrained=true`. Default: none."""
    init_from: Annotated[str | None, Flag("Model", metavar="RUN|FILE")] = None
    """Weights that the backbone by name starts from: a run, a checkpoint or a file. Default: none."""
    dataset: Annotated[Plugin | None, Flag("Data", metavar="NAME[:PATH][,...]")] = None
    """Labelled images, of several data sets if given with commas. Default: those of the run."""
    data_dir: Annotated[str | None, Flag("Data", metavar="DIR")] = None
    """Folder of the data sets. Default: $AVT_DATA, else ./data."""
    workers: Annotated[Workers, Flag("Hardware", metavar="N|auto", auto=True)] = Field(default=None, ge=0)
    """Processes that decode images which do not fit in memory. Default: one fewer than the CPUs, at most 8."""
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Flag("Hardware")] = "auto"
    """Compute device; auto takes CUDA, then MPS, then the CPU."""

    @field_validator("head", "pool", mode="before")
    @classmethod
    def _by_name(cls, value: object, info: ValidationInfo) -> object:
        wrapped = {"name": value} if info.field_name == "head" else (value,)
        return wrapped if isinstance(value, str) else value

    @field_validator("data_dir", "init_from")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return None if value is None else str(absolute_path(value))

    @model_validator(mode="after")
    def _settings_agree(self) -> "ProbeConfig":
        if self.schedule is not None and self.schedule.log_var_pieces:
            raise ValueError("schedule.log_var_pieces belongs to pretraining: a probe's heads have no log-variance layer")
        if self.shots and self.fraction is not None:
            raise ValueError("shots and fraction both set the number of training images: give one of them")
        if self.finetune and self.supervised:
            raise ValueError("the baseline of finetune is already a supervised one: leave supervised out")
        if self.copies and (not self.augmented or self.finetune):
            raise ValueError("copies are of augmented images whose features are cached: give augmented, and no finetune")
        return self

    @property
    def total_epochs(self) -> int:
        """The epochs to run."""
        return self.epochs or (self.schedule.epochs if self.schedule else 20 if self.finetune else 100)

    @property
    def augments(self) -> bool:
        """Whether training images are cropped and flipped in each epoch, the default resolved."""
        return self.finetune if self.augmented is None else self.augmented

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """The rates to choose from, the default resolved."""
        return self.rates or (FINETUNE_RATES if self.finetune else HEAD_RATES)

    @property
    def searches_lr(self) -> bool:
        """Whether trained heads choose their learning rate on held-out images."""
        return self.schedule is None and len(self.learning_rates) > 1

    def for_lr_search(self, images: int) -> "ProbeConfig":
        """How heads on frozen features are trained to compare rates: for `LR_SEARCH_STEPS`, along a complete cosine."""
        enough = ceil(LR_SEARCH_STEPS / ceil(images / self.batch_size))
        return self.model_copy(update={"epochs": min(self.total_epochs, enough)})

    def to_finetune(self) -> "ProbeConfig":
        """How the supervised backbone is trained: with a linear head, at the rates and epochs of fine-tuning."""
        own = {"finetune": True, "supervised": False, "copies": 0, "schedule": None, "augmented": None}
        return self.model_copy(update={**own, "head": Plugin(name="linear")})

    def side_of(self, layer: str) -> int:
        """The side of a layer's map after pooling, in cells."""
        return self.pool_size or self.pool_sizes.get(layer, 4)
