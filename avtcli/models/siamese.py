"""The Siamese model: one encoder for all views, and the objective with its heads."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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
        self.checkpoint_activations = False
        """Whether to compute the encoder again in the backward pass, view by view, instead of keeping its activations."""

    def normalise(self, images: Tensor) -> Tensor:
        """Turn images, float in [0, 1] or uint8, (B, C, H, W), into network input."""
        return self.encoder.normalise(images)

    def encode(self, views: Sequence[Tensor], noise: Sequence[Tensor | None] | None = None) -> tuple[Tensor, ...]:
        """Encode views, normalised images (B, C, H, W) each, into their vectors, (B, vector_dim), in their order.

        `noise` is eps of each view's code; where left out it is drawn in training mode, and none in eval mode.
        """
        encode = self._encode_again if self.checkpoint_activations and torch.is_grad_enabled() else self._encode_view
        return tuple(encode(*pair) for pair in zip(views, noise or [None] * len(views), strict=True))

    def _encode_view(self, view: Tensor, noise: Tensor | None) -> Tensor:
        return self.encoder.encode(view, noise)[0]

    def _encode_again(self, view: Tensor, noise: Tensor | None) -> Tensor:
        contexts = (nullcontext(), _statistics_kept(self.encoder))
        vector: Tensor = checkpoint(self._encode_view, view, noise, use_reentrant=False, context_fn=lambda: contexts)
        return vector

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


@contextmanager
def _statistics_kept(net: nn.Module) -> Iterator[None]:
    """Within, batches do not move running statistics: a second pass over a batch must not count twice."""
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count
