"""What the objectives share that decode transformations from pairs of views."""

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from avtcli.contracts import Loss, Objective, Prediction, Role, Target
from avtcli.models.decoder import Decoder

Views = Annotated[int, Field(ge=1, le=64)]
"""Number of transformed views of each image."""


class PairObjective(Objective):
    """The mean loss of the pairs of the original with each transformed view, which share one decoder.

    Args:
        decoder: from the vectors of a pair to a prediction.
        pair_loss: from a prediction and its target to the loss of each pair, (B,), and its parts.
        views: number of transformed views.
        noise_scale: see `Objective`.
    """

    def __init__(
        self, decoder: Decoder, pair_loss: Callable[[Prediction, Target], Loss], *, views: int = 1, noise_scale: float = 0.0
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.pair_loss = pair_loss
        transformed: Role = "transformed"
        self.views = ("original", *[transformed] * views)
        self.noise_scale = noise_scale

    def predict(self, codes: tuple[Tensor, ...]) -> Prediction:
        """Predict the normalised target of the first transformed view, (B, dof)."""
        return self.decoder(codes[:2])  # type: ignore[no-any-return]

    def log_var_layer(self) -> nn.Module | None:
        """Return the decoder's log-variance layer."""
        return self.decoder.log_var_head

    def forward(self, codes: tuple[Tensor, ...], targets: tuple[Target, ...]) -> Loss:
        """Return the loss of each sample, (B,), and its parts, means over the transformed views."""
        original, *transformed = codes
        pairs = zip(transformed, targets, strict=True)
        losses = [self.pair_loss(self.predict((original, code)), target) for code, target in pairs]
        if len(losses) == 1:
            return losses[0]
        parts = {name: torch.stack([loss.parts[name] for loss in losses]).mean(0) for name in losses[0].parts}
        return Loss(torch.stack([loss.per_sample for loss in losses]).mean(0), parts)
