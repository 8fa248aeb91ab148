"""The Siamese model: one encoder for all views, and the objective with its heads."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avtcli.contracts import Loss, Objective, Target
from avtcli.errors import AvtError
from avtcli.models.encoder import Encoder


class SiameseModel(nn.Module):
    """An encoder that is called once for each view, and an objective that was built for its vectors.

    Each view is normalised by its own batch statistics, and the running averages move once for each view, as published.
    Concatenating the views into one batch is not the same. Under autocast the encoder alone computes in reduced precision.
    """

    def __init__(self, encoder: Encoder, objective: Objective) -> None:
        super().__init__()
        self.encoder = encoder
        self.objective = objective

    def normalise(self, images: Tensor) -> Tensor:
        """Turn images, float in [0, 1] or uint8, (B, C, H, W), into network input."""
        return self.encoder.normalise(images)

    def encode(self, views: Sequence[Tensor], noise: Sequence[Tensor | None] | None = None) -> tuple[Tensor, ...]:
        """Encode views, normalised images (B, C, H, W) each, into their vectors, (B, vector_dim), in their order.

        `noise` is eps of each view's code; where left out it is drawn in training mode, and none in eval mode.
        """
        return tuple(self.encoder.encode(*pair)[0] for pair in zip(views, noise or [None] * len(views), strict=True))

    def loss(self, codes: Sequence[Tensor], targets: Sequence[Target]) -> Loss:
        """Compute the objective on vectors, in the precision of the weights."""
        with torch.autocast(codes[0].device.type, enabled=False):
            loss: Loss = self.objective(self._in_precision(codes), tuple(targets))
        return loss

    def forward(self, x: Tensor, y: Tensor, noise: Sequence[Tensor | None] | None = None) -> tuple[Tensor, Tensor | None]:
        """Predict the transformation between two images.

        Args:
            x: original images, normalised, (B, C, H, W).
            y: transformed images, likewise.
            noise: as for `encode`.

        Returns:
            The mean of the normalised target (or logits of classes), (B, outputs), and the log-variance that the likelihood
            uses, likewise, or none.

        Raises:
            AvtError: if the objective has no decoder.
        """
        if self.objective.prediction is None:
            raise AvtError(f"The objective {type(self.objective).__name__} has no decoder: it predicts no transformation.")
        codes = self.encode([x if role == "original" else y for role in self.objective.views], noise)
        with torch.autocast(codes[0].device.type, enabled=False):
            prediction = self.objective.predict(self._in_precision(codes))
        return prediction.mean, prediction.log_var

    def _in_precision(self, codes: Sequence[Tensor]) -> tuple[Tensor, ...]:
        dtype = next(self.parameters()).dtype
        return tuple(code.to(dtype) for code in codes)
