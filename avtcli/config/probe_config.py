"""Settings of a probe: its protocol."""

from math import ceil
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from avtcli.config.components import Augment, Flag, Frozen, Optimizer, Plugin, Schedule

Pool = Literal["max", "avg", "none"]


CLOSED_FORM_HEADS = ("knn", "ridge")
"""The heads of a probe that are computed rather than trained step by step."""


NEIGHBOURS = (5, 10, 20, 50, 100)


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
    head: Annotated[Literal["linear", "mlp1", "mlp2", "mlp3", "conv", "nonlinear", "knn", "ridge"], Flag("Probe")] = "linear"
    """Classifier on the features."""
    finetune: Annotated[bool, Flag("Probe")] = False
    """Train the backbone too, from its weights and with the head's learning rate, up to the layer."""
    supervised: Annotated[bool, Flag("Probe")] = False
    """Also probe a backbone trained with all labels from random weights."""
    conv_first: tuple[str, ...] = ()
    """Layers whose nonlinear head starts with a convolution."""
    pool: Annotated[tuple[Pool, ...], Flag("Probe", metavar="max|avg|none[,...]")] = ()
    """Spatial pooling of feature maps, one head each. Default: max for linear, knn and ridge, none for other heads."""
    pool_size: Annotated[int | None, Flag("Probe", metavar="N")] = Field(default=None, gt=0)
    """Side of every map after pooling; smaller maps stay as they are. Default: the recipe's for the layer, else 4."""
    pool_sizes: dict[str, int] = Field(default_factory=dict)
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
    k: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Flag("Probe", metavar="N[,N...]")] = ()
    """Neighbours of knn; of several numbers the best on held-out images is chosen. Default: 5, 10, 20, 50, 100."""
    temperature: Annotated[float, Flag("Probe", metavar="X")] = Field(default=0.07, ge=0)
    """Temperature of knn: a neighbour's vote is exp(cosine / temperature); 0 gives each neighbour one vote."""
    penalties: tuple[Annotated[float, Field(gt=0)], ...] = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
    """Penalties of ridge on the squared weights, per image, to choose from."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """Fraction of the training images that is held out for choices."""
    limit_train: Annotated[int | None, Flag("Data", metavar="N")] = Field(default=None, ge=20)
    """Train on a random subset of N images, the same in every command and for every seed."""
    shots: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Flag("Data", metavar="N[,N...]")] = ()
    """Train on N images per class, one head for each N; each seed samples its own, the smaller sets within the larger."""
    fraction: Annotated[float | None, Flag("Data", metavar="X")] = Field(default=None, gt=0, le=1)
    """Train on a fraction of each class, at least one image; each seed samples its own."""
    seed: Annotated[int, Flag("Optimisation", metavar="N")] = 0
    """Seed of the heads' weights, order and augmentation of the images, samples of the code and random baseline."""
    seeds: Annotated[int, Flag("Optimisation", metavar="N")] = Field(default=1, gt=0)
    """Train the heads with N seeds, the given one and those that follow it."""
    baseline: Annotated[bool, Flag("Probe")] = True
    """Also probe a randomly initialised backbone."""
    backbone: Annotated[Plugin | None, Flag("Model", metavar="NAME[:VARIANT]")] = None
    """Backbone by name instead of a run: random weights, or published ones with `-o backbone.pretrained=true`."""
    dataset: Annotated[Plugin | None, Flag("Data", metavar="NAME[:PATH][,...]")] = None
    """Labelled images, of several data sets if given with commas. Default: those of the run."""
    data_dir: Annotated[str | None, Flag("Data", metavar="DIR")] = None
    """Folder of the data sets. Default: $AVT_DATA, else ./data."""
    workers: Annotated[int | None, Flag("Hardware", metavar="N|auto", auto=True)] = Field(default=None, ge=0)
    """Processes that decode images which do not fit in memory. Default: one fewer than the CPUs, at most 8."""
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Flag("Hardware")] = "auto"
    """Compute device; auto takes CUDA, then MPS, then the CPU."""

    @field_validator("pool", mode="before")
    @classmethod
    def _pool_by_name(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _settings_agree(self) -> "ProbeConfig":
        if self.schedule is not None and self.schedule.log_var_pieces:
            raise ValueError("schedule.log_var_pieces belongs to pretraining: a probe's heads have no log-variance layer")
        if self.shots and self.fraction is not None:
            raise ValueError("shots and fraction both say how many images to train on: give one of them")
        if self.head in CLOSED_FORM_HEADS and (self.augmented or self.finetune):
            raise ValueError(f"{self.head} reads features once: it takes no augmented images and trains no backbone")
        if self.head in CLOSED_FORM_HEADS and not self.supervised and (self.epochs or self.rates):
            raise ValueError(f"{self.head} is not trained in steps: leave out the epochs and the rate")
        for name, head in (("k", "knn"), ("temperature", "knn"), ("penalties", "ridge")):
            if self.head != head and name in self.model_fields_set:
                raise ValueError(f"{name} is of the head {head}, this one is {self.head}")
        if self.finetune and self.supervised:
            raise ValueError("the baseline of finetune is a supervised one already: leave supervised out")
        if self.copies and (not self.augmented or self.finetune):
            raise ValueError("copies are of augmented images whose features are kept: give augmented, and no finetune")
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
    def poolings(self) -> tuple[Pool, ...]:
        """How maps are reduced, the default resolved."""
        return self.pool or (("max",) if self.head in ("linear", *CLOSED_FORM_HEADS) else ("none",))

    @property
    def neighbours(self) -> tuple[int, ...]:
        """The numbers of neighbours to choose from, the default resolved."""
        return self.k or NEIGHBOURS

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """The rates to choose from, the default resolved."""
        return self.rates or (FINETUNE_RATES if self.finetune else HEAD_RATES)

    @property
    def searches_lr(self) -> bool:
        """Whether heads that are trained have a rate to choose, on held-out images."""
        return self.schedule is None and len(self.learning_rates) > 1

    def for_lr_search(self, images: int) -> "ProbeConfig":
        """How heads on frozen features are trained to choose a rate: for `LR_SEARCH_STEPS`, along a whole cosine.

        They judge as well as all the epochs, where most of a probe's time would go. On 1 000 to 30 000 images (linear, the mean
        over eight features of a NIN) heads ended 0.0 to 0.8 points below what the rates that are best on test reach; where all
        the epochs had chosen, on 1 000 to 10 000, 0.0 to 1.1. With mlp2, on 2 000 and 5 000, it was 0.2 to 0.4. Of fewer images
        there are few epochs to spare, and the few that are held out choose by chance.
        """
        enough = ceil(LR_SEARCH_STEPS / ceil(images / self.batch_size))
        return self.model_copy(update={"epochs": min(self.total_epochs, enough)})

    def to_finetune(self) -> "ProbeConfig":
        """How the supervised backbone is trained: with a linear head, by the rates and epochs of fine-tuning."""
        own = {"finetune": True, "supervised": False, "copies": 0, "schedule": None, "head": "linear", "augmented": None}
        return self.model_copy(update=own)

    def side_of(self, layer: str) -> int:
        """The side of a layer's map after pooling, in cells."""
        return self.pool_size or self.pool_sizes.get(layer, 4)
