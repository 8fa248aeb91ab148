"""RotNet: classify which of the family's classes was applied.

Gidaris, Singh and Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations", ICLR 2018 (arXiv
1803.07728), equations 2 and 3.
"""

from torch import Tensor
from torch.nn import functional

from avtcli.contracts import Loss, Objective, Prediction, Target, TransformFamily
from avtcli.errors import AvtError
from avtcli.models.decoder import Decoder


class RotNet(Objective):
    """-log softmax(mean)[class]: no noise in the code, no variance in the decoder."""

    prediction = "classes"

    def __init__(self, vector_dim: int, classes: int, *, pair: bool) -> None:
        super().__init__()
        self.views = ("original", "transformed") if pair else ("transformed",)
        self.decoder = Decoder(len(self.views) * vector_dim, classes)

    def predict(self, codes: tuple[Tensor, ...]) -> Prediction:
        """Predict the logits of the classes, (B, classes)."""
        return self.decoder(codes)  # type: ignore[no-any-return]

    def forward(self, codes: tuple[Tensor, ...], targets: tuple[Target, ...]) -> Loss:
        """Return the cross-entropy of each sample in nats, (B,), and its accuracy."""
        logits = self.predict(codes).mean
        classes = targets[0].family.classes(targets[0].parameters)
        right = (logits.argmax(1) == classes).to(logits.dtype)
        return Loss(functional.cross_entropy(logits, classes, reduction="none"), {"accuracy": right})


def rotnet(*, vector_dim: int, family: TransformFamily, pair: bool = False) -> Objective:
    """Cross-entropy over the family's classes, from the code of the transformed image alone.

    Where RotNet puts all four turns of an image into one batch, one turn is drawn for each image and epoch.

    Args:
        vector_dim: given by the backbone.
        family: given by the transformations; one with classes.
        pair: whether the decoder sees the original image's code too, which makes the task easier.
    """
    if family.n_classes is None:
        found = f"this one has none, its target is {', '.join(family.names)}"
        raise AvtError(f"The objective 'rotnet' needs a family with classes; {found}. Choose --transform rotation.")
    return RotNet(vector_dim, family.n_classes, pair=pair)
