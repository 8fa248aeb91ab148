"""Settings of a probe: its protocol."""

from math import ceil
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from avtcli.config.components import Augment, Frozen, Optimizer, Plugin, Schedule

Pool = Literal["max", "avg", "none"]
Count = Annotated[int, Field(gt=0)]
HEAD_RATES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
FINETUNE_RATES = (0.1, 0.03, 0.01)
LR_SEARCH_STEPS = 200
"""Steps after which learning rates are compared, rounded up to epochs, and at most the epochs of the probe."""


class ProbeConfig(Frozen):
    """Everything besides the weights that the figures of a probe depend on."""

    recipe: str | None = None
    """The recipe that the settings started from; none means the default protocol."""
    layers: tuple[str, ...] = ()
    """The taps to probe; none means the code, and `all` every tap."""
    head: Plugin = Plugin(name="linear")
    """The classifier and its options."""
    finetune: bool = False
    """Whether the backbone is trained together with the head, up to the layer and at the head's learning rate."""
    supervised: bool = False
    """Whether to also probe a backbone that was trained with all labels from random weights."""
    pool: tuple[Pool, ...] = ()
    """How maps are pooled, one head for each; none given means the head's default."""
    pool_size: Count | None = None
    """The side of a map after pooling, in cells, for every layer; smaller maps are not pooled."""
    pool_sizes: dict[str, int] = Field(default_factory=dict)
    """The same by layer, where `pool_size` is not given; 4 for a layer that is not listed."""
    samples: int = Field(default=0, ge=0)
    """Samples of the code to average; 0 takes its mean. Layers after the code see the first sample."""
    augmented: bool | None = None
    """Whether training images are cropped and flipped at random each epoch; none means only for fine-tuning."""
    copies: int = Field(default=0, ge=0)
    """With augmented images: cache the features of N augmented copies and cycle through them; 0 forwards them each epoch."""
    augment: Augment | None = None
    """Resizing, crop and flip of the images; none means those of the run."""
    schedule: Schedule | None = None
    """The learning rates; none means a cosine to 0 from a peak that is chosen from `rates` on held-out images."""
    optimizer: Optimizer = Optimizer(name="sgd", weight_decay=5e-4)
    """The optimiser of the heads."""
    epochs: Count | None = None
    """Passes over the training images; none means those of the schedule, else 100, or 20 for fine-tuning."""
    batch_size: int = Field(default=128, ge=2)
    """Images a step."""
    rates: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Peak learning rates to choose from where there is no schedule; none means `HEAD_RATES`, or `FINETUNE_RATES`."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """The share of the training images that every choice is made on."""
    limit_train: int | None = Field(default=None, ge=20)
    """Train on a random subset of N images, the same in every command and for every seed."""
    shots: tuple[Count, ...] = ()
    """Train on N images of each class, one head for each N; each seed has its own images, smaller sets within larger ones."""
    fraction: float | None = Field(default=None, gt=0, le=1)
    """Train on this share of each class, one image at least; each seed has its own images."""
    seed: int = 0
    """Seed of head weights, image order, crops and flips, code samples and the random baseline."""
    seeds: Count = 1
    """Number of seeds to train the heads with, from `seed` on."""
    baseline: bool = True
    """Whether to also probe a randomly initialised backbone."""
    backbone: Plugin | None = None
    """A network by name, to probe instead of a run."""
    dataset: Plugin | None = None
    """The labelled images, or the names of several separated by commas; none means those of the run."""
    data_dir: str | None = None
    """Folder of the data; none means $AVT_DATA, else ./data."""
    workers: int | None = Field(default=None, ge=0)
    """Processes that read images which do not fit in memory; none means one less than the CPUs, at most 8."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Compute device."""

    @field_validator("head", "pool", mode="before")
    @classmethod
    def _by_name(cls, value: object, info: ValidationInfo) -> object:
        wrapped = {"name": value} if info.field_name == "head" else (value,)
        return wrapped if isinstance(value, str) else value

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
        """Whether training images are augmented, the default resolved."""
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
