"""Settings of a probe: its protocol."""

from math import ceil
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from avtcli.config.components import Augment, Frozen, Optimizer, Plugin, Schedule

Pool = Literal["max", "avg", "none"]


CLOSED_FORM_HEADS = ("knn", "ridge")
"""The heads of a probe that are computed rather than trained step by step."""


NEIGHBOURS = (5, 10, 20, 50, 100)


HEAD_RATES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


FINETUNE_RATES = (0.1, 0.03, 0.01)


LR_SEARCH_STEPS = 200
"""Rates are compared after so many steps, rounded up to epochs, but where the heads' own are fewer."""


class ProbeConfig(Frozen):
    """Everything that a probe's numbers depend on beside the weights."""

    recipe: str | None = None
    """The recipe that the settings started from; none means our own protocol."""
    layers: tuple[str, ...] = ()
    """The taps to probe; none means the code, and `all` every tap."""
    head: Literal["linear", "mlp1", "mlp2", "mlp3", "conv", "nonlinear", "knn", "ridge"] = "linear"
    """The classifier."""
    finetune: bool = False
    """Whether the backbone is trained too, from its weights and with the head's rate, up to the layer."""
    supervised: bool = False
    """Whether a backbone that was trained with all the labels from random weights is probed beside."""
    conv_first: tuple[str, ...] = ()
    """The layers whose nonlinear head begins with a convolution."""
    pool: tuple[Pool, ...] = ()
    """How maps are reduced, one head a way; left out, max for linear, knn and ridge; the other heads read maps whole."""
    pool_size: int | None = Field(default=None, gt=0)
    """The side of a map after pooling, in cells, for every layer; smaller maps stay as they are."""
    pool_sizes: dict[str, int] = Field(default_factory=dict)
    """The same by layer, where no one side is given; 4 for a layer without."""
    samples: int = Field(default=0, ge=0)
    """Samples of the code to average; 0 takes its mean. Layers after the code see one of them."""
    augmented: bool | None = None
    """Whether training images are cropped and flipped anew; if not, their middle is read. None: to fine-tune alone."""
    copies: int = Field(default=0, ge=0)
    """With augmented images: keep the features of so many draws of each and take them in turn; 0 forwards them each epoch."""
    augment: Augment | None = None
    """Resizing, crop and flip of the images; none means as the run had them."""
    schedule: Schedule | None = None
    """The heads' rates; none means that a peak is chosen from `rates` on a held-out part and falls to 0 along a cosine."""
    optimizer: Optimizer = Optimizer(name="sgd", weight_decay=5e-4)
    """How the heads' weights move."""
    epochs: int | None = Field(default=None, gt=0)
    """Passes over the training images; none means the schedule's own length, where there is none 100, or 20 to fine-tune."""
    batch_size: int = Field(default=128, ge=2)
    """Images a step."""
    rates: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Peaks of the learning rate to choose from where there is no schedule; none means `HEAD_RATES`, or `FINETUNE_RATES`."""
    k: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """Of knn: numbers of neighbours to choose from; none means `NEIGHBOURS`."""
    temperature: float = Field(default=0.07, ge=0)
    """Of knn: a neighbour's vote is exp(cosine / temperature); 0 gives each of them one vote."""
    penalties: tuple[Annotated[float, Field(gt=0)], ...] = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
    """Of ridge: penalties on the squared weights, for each image, to choose from."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """The share of the training images that decides what we choose."""
    limit_train: int | None = Field(default=None, ge=20)
    """Train on a draw of so many images; the same draw in every command and for every seed."""
    shots: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """Train on so many images of each class, one head a number; each seed draws its own, the fewer among the more."""
    fraction: float | None = Field(default=None, gt=0, le=1)
    """Train on such a share of each class, one image at least; each seed draws its own."""
    seed: int = 0
    """Of the heads' weights, the order, crops and flips of the images, the noise of the samples and the random baseline."""
    seeds: int = Field(default=1, gt=0)
    """How many seeds to train the heads with, this one and those after it."""
    baseline: bool = True
    """Whether a randomly initialised backbone is probed beside."""
    backbone: Plugin | None = None
    """A network by name, to probe instead of a run."""
    dataset: Plugin | None = None
    """The labelled images, or the names of several with commas between them; none means those of the run."""
    data_dir: str | None = None
    """Where the data lies; none means $AVT_DATA, else ./data."""
    workers: int | None = Field(default=None, ge=0)
    """Processes that read images which do not fit in memory; none means one less than the CPUs, at most 8."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the arithmetic happens."""

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
        """Whether training images are cropped and flipped anew, the default resolved."""
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
