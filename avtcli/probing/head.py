"""The contract of a probe's head, trained step by step or fitted in closed form, and what each reports."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from avtcli.config.probe_config import Pool, ProbeConfig
from avtcli.errors import AvtError
from avtcli.features.cache_storage import memory_bytes
from avtcli.metrics.accuracy import topk_percent


@dataclass(frozen=True)
class HeadFigures:
    """Accuracy of one head on the test images, in percent.

    `val_top1` is that on held-out training images, of the head that was fitted to choose; none where nothing was `chosen`.
    `top1_best_test_epoch` is the best epoch on test; none without a schedule, where test is evaluated once.
    """

    top1: float
    top5: float
    val_top1: float | None
    chosen: dict[str, float]
    top1_best_test_epoch: float | None = None


@dataclass(frozen=True)
class HeadData:
    """What a closed-form head is fitted on: one feature of all images, flattened, (n, d), perhaps memory-mapped.

    `rows` are the training images to use, (n',) int64. Where a value is to be chosen, `fit_rows` are those of them to fit on,
    and `held_out` the others, to choose on; these may be empty. Labels are (n,) int64.
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

    def require_memory(self, needed: int, method: str) -> None:
        """Refuse a method that needs more bytes than half of the memory."""
        if needed > memory_bytes() / 2:
            size = f"{len(self.rows)} images of {self.train.shape[1]} features and {self.classes} classes"
            raise AvtError(
                f"{method} on {size} would take {needed / 1e9:.0f} GB of the {memory_bytes() / 1e9:.0f} GB of memory. Give a "
                "smaller --pool-size, --limit-train or --head linear."
            )


@dataclass(frozen=True)
class TrainedHead:
    """A head that is trained by gradient descent.

    `build` makes a module with fresh weights, from the global generator, for a layer's name, the shape of its feature, (C,) or
    (C, H, W), and the number of classes. It raises AvtError for a shape that it does not take.
    """

    description: str
    pool: Pool
    build: Callable[[str, Sequence[int], int], nn.Module]


@dataclass(frozen=True)
class ClosedFormHead:
    """A head that is computed from cached features.

    `fit` chooses among candidates on held-out images, fits on all rows and measures on test. `candidates` gives their values by
    name, for numbers of training images: those to fit on while choosing, and all.
    """

    description: str
    pool: Pool
    fit: Callable[[HeadData], HeadFigures]
    candidates: Callable[[int, int], Mapping[str, Sequence[float]]]


Head = TrainedHead | ClosedFormHead
"""A classifier on features, its description for the protocol, and how maps are pooled by default."""


def check_head(head: Head, config: ProbeConfig) -> None:
    """Refuse settings that do not apply to a closed-form head."""
    name, closed = config.head.name, isinstance(head, ClosedFormHead)
    if closed and (config.augmented or config.finetune):
        raise AvtError(f"The head '{name}' reads features once: it takes no augmented images and trains no backbone.")
    if closed and not config.supervised and (config.epochs or config.rates):
        raise AvtError(f"The head '{name}' is not trained in steps: leave out the epochs and the rate.")
