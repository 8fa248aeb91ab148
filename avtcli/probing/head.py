"""The contract of a probe's head, trained step by step or fitted in closed form, and what each reports."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from avtcli.config.probe_config import Pool, ProbeConfig
from avtcli.errors import AvtError
from avtcli.metrics.accuracy import topk_percent


@dataclass(frozen=True)
class HeadFigures:
    """Accuracy of one head, in percent.

    Attributes:
        top1: on the test split.
        top5: on the test split.
        val_top1: on held-out training images, of the head that was fitted to choose; none where nothing was chosen.
        chosen: the chosen values, by name.
        top1_best_test_epoch: the best epoch on test; none without a schedule, where test is evaluated once.
    """

    top1: float
    top5: float
    val_top1: float | None
    chosen: dict[str, float]
    top1_best_test_epoch: float | None = None


@dataclass(frozen=True)
class HeadData:
    """What a closed-form head is fitted on: one feature of all images, flattened, perhaps memory-mapped.

    Attributes:
        train: features of the training images, (n, d).
        train_labels: (n,) int64.
        test: features of the test images, (m, d).
        test_labels: (m,) int64.
        rows: training images to use, (n',) int64.
        fit_rows: those of `rows` to fit on when a value is to be chosen.
        held_out: the others, to choose on; may be empty.
        classes: the number of classes.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    rows: Tensor
    fit_rows: Tensor
    held_out: Tensor
    classes: int

    def score(self, logits: Tensor) -> tuple[float, float]:
        """Top-1 and top-5 in percent of logits (m, classes) on test."""
        labels = self.test_labels.to(logits.device)
        return topk_percent(logits, labels, 1), topk_percent(logits, labels, min(5, logits.shape[1]))


@dataclass(frozen=True)
class Head(ABC):
    """A classifier on features.

    Attributes:
        description: of the architecture or the method, for the protocol.
        pool: how maps are pooled by default.
    """

    description: str
    pool: Pool

    @abstractmethod
    def check(self, config: ProbeConfig) -> None:
        """Refuse settings that do not apply to the head.

        Raises:
            AvtError: with what to leave out.
        """


@dataclass(frozen=True)
class TrainedHead(Head):
    """A head that is trained by gradient descent.

    Attributes:
        build: makes a module with fresh weights, from the global generator, for a layer's name, the shape of its feature,
            (C,) or (C, H, W), and the number of classes. Raises AvtError for a shape that it does not take.
    """

    build: Callable[[str, Sequence[int], int], nn.Module]

    def check(self, config: ProbeConfig) -> None:
        """Accept all settings."""


@dataclass(frozen=True)
class ClosedFormHead(Head):
    """A head that is computed from cached features.

    Attributes:
        fit: chooses among `candidates` on held-out images, fits on all rows and measures on test.
        candidates: the values to choose from, by name.
    """

    fit: Callable[[HeadData], HeadFigures]
    candidates: Mapping[str, tuple[float, ...]]

    def check(self, config: ProbeConfig) -> None:
        """Refuse augmented images, fine-tuning, and epochs or a rate where no supervised backbone is trained."""
        name = config.head.name
        if config.augmented or config.finetune:
            raise AvtError(f"The head '{name}' reads features once: it takes no augmented images and trains no backbone.")
        if not config.supervised and (config.epochs or config.rates):
            raise AvtError(f"The head '{name}' is not trained in steps: leave out the epochs and the rate.")
