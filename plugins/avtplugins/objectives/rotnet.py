"""RotNet: which of the family's classes was applied.

Gidaris, Singh and Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations", ICLR 2018 (arXiv
1803.07728), equations 2 and 3.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional

from avtcli.contracts import Loss, Objective, Target, TransformFamily
from avtcli.errors import AvtError


@dataclass(frozen=True, kw_only=True)
class RotNet(Objective):
    """-log softmax(mean)[class]: no noise in the code, no variance in the decoder."""

    views: Literal["both", "transformed"]
    predicts_classes: bool = True

    def outputs(self, family: TransformFamily) -> int:
        """One output a class.

        Raises:
            AvtError: if the family has no classes.
        """
        if family.n_classes is None:
            raise AvtError(
                "The objective 'rotnet' needs a family with classes; this one has none, its target is "
                f"{', '.join(family.names)}. Choose --transform rotation."
            )
        return family.n_classes

    def loss(self, mean: Tensor, log_var: Tensor | None, target: Target) -> Loss:
        """The cross-entropy of each sample in nats, (B,), and the share of right guesses."""
        classes = target.family.classes(target.parameters)
        right = (mean.argmax(1) == classes).to(mean.dtype)
        return Loss(functional.cross_entropy(mean, classes, reduction="none"), {"accuracy": right})


def rotnet(*, pair: bool = False) -> Objective:
    """Cross-entropy over the family's classes, from the code of the transformed image alone.

    Where RotNet puts all four turns of an image into one batch, one turn is drawn for each image and epoch.

    Args:
        pair: whether the decoder sees the original image's code too, which makes the task easier.
    """
    return RotNet(views="both" if pair else "transformed")
