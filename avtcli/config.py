"""What a run is told: frozen models, every field documented. Published values stand in `recipes/`, never here."""

from typing import Annotated, Any, Literal

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
    """Whether half of the images are mirrored."""


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


class ModelSpec(Frozen):
    """What it takes to build a model again before its weights are loaded; stored with every checkpoint and export."""

    backbone: Plugin
    """The network."""
    channels: int = Field(gt=0)
    """Of the images."""
    size: tuple[int, int]
    """(height, width) of the images that it was trained on."""
    mean: tuple[float, ...]
    """Per channel, of images in [0, 1]."""
    std: tuple[float, ...]
    """Per channel."""
    noise_scale: float = 0.0
    """Of the encoder; 0 means no log-variance branch."""
    outputs: int = Field(default=0, ge=0)
    """How many numbers the decoder predicts; 0 means that there is no decoder."""
    has_log_var: bool = False
    """Whether the decoder predicts a log-variance."""
    log_var_scale: float = 1.0
    """Factor on the log-variance layer's output."""
    views: Literal["both", "moved"] = "both"
    """Whose codes the decoder sees: the pair's, or the moved image's alone."""
    layer: str | None = None
    """The tap that calling the encoder returns; none means the mean of the code."""


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
    compile: bool = False
    """Whether the training step is compiled."""
    save_every: float = Field(default=10.0, gt=0, le=10)
    """Minutes between checkpoints, at most."""
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

    @property
    def total_epochs(self) -> int:
        """The epochs to run."""
        return self.epochs or self.schedule.epochs


class ProbeConfig(Frozen):
    """Everything that a probe's numbers depend on beside the weights."""

    recipe: str | None = None
    """The recipe that the settings started from; none means our own protocol."""
    layers: tuple[str, ...] = ()
    """The taps to probe; none means the code, and `all` every tap."""
    head: Literal["linear", "mlp1", "mlp2", "mlp3", "conv", "nonlinear"] = "linear"
    """The classifier."""
    conv_first: tuple[str, ...] = ()
    """The layers whose nonlinear head begins with a convolution."""
    pool: Literal["max", "avg", "none"] | None = None
    """How maps are reduced; left out, max for the linear head, while the other heads read the map whole."""
    pool_size: int | None = Field(default=None, gt=0)
    """The side of a map after pooling, in cells, for every layer; smaller maps stay as they are."""
    pool_sizes: dict[str, int] = {}
    """The same by layer, where no one side is given; 4 for a layer without."""
    samples: int = Field(default=0, ge=0)
    """Samples of the code to average; 0 takes its mean. Layers after the code see one of them."""
    augmented: bool = False
    """Whether the training images are cropped and flipped anew each epoch; if not, features are read once, of their middle."""
    augment: Augment | None = None
    """Resizing, crop and flip of the images; none means as the run had them."""
    schedule: Schedule | None = None
    """The heads' rates; none means that a peak is chosen from `rates` on a held-out part and falls to 0 along a cosine."""
    optimizer: Optimizer = Optimizer(name="sgd", weight_decay=5e-4)
    """How the heads' weights move."""
    epochs: int | None = Field(default=None, gt=0)
    """Passes over the training images; none means the schedule's own length, or 100 where there is none."""
    batch_size: int = Field(default=128, ge=2)
    """Images a step."""
    rates: tuple[float, ...] = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
    """Learning rates to choose from on the held-out part, where there is no schedule."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """The share of the training images that decides what we choose."""
    limit_train: int | None = Field(default=None, ge=20)
    """Train on a draw of so many images; the same draw in every command and for every seed."""
    shots: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """Train on so many images of each class, one head a number; each seed draws its own, the fewer among the more."""
    seed: int = 0
    """Of the heads' weights, the order, crops and flips of the images, the noise of the samples and the random baseline."""
    seeds: int = Field(default=1, gt=0)
    """How many seeds to train the heads with, this one and those after it."""
    baseline: bool = True
    """Whether a randomly initialised backbone is probed beside."""
    dataset: Plugin | None = None
    """The labelled images; none means those of the run."""
    data_dir: str | None = None
    """Where the data lies; none means $AVT_DATA, else ./data."""
    workers: int | None = Field(default=None, ge=0)
    """Processes that read images which do not fit in memory; none means one less than the CPUs, at most 8."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the arithmetic happens."""

    @model_validator(mode="after")
    def _no_log_var_rates(self) -> "ProbeConfig":
        if self.schedule is not None and self.schedule.log_var_pieces:
            raise ValueError("schedule.log_var_pieces belongs to pretraining: a probe's heads have no log-variance layer")
        return self

    @property
    def total_epochs(self) -> int:
        """The epochs to run."""
        return self.epochs or (self.schedule.epochs if self.schedule else 100)

    @property
    def pooling(self) -> Literal["max", "avg", "none"]:
        """How maps are reduced, the default resolved."""
        return self.pool or ("max" if self.head == "linear" else "none")

    def side_of(self, layer: str) -> int:
        """The side of a layer's map after pooling, in cells."""
        return self.pool_size or self.pool_sizes.get(layer, 4)
