"""The Siamese model: one encoder for all views, and the objective with its heads."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from avtcli.contracts import Loss, Objective, Role, Target
from avtcli.errors import AvtError
from avtcli.models.encoder import Encoder

STATISTICS: Final = ("running_mean", "running_var", "num_batches_tracked")
"""Names of BatchNorm's buffers."""


class TransformedStatistics(nn.Module):
    """The running statistics of an encoder's BatchNorm layers for transformed images; the layers' own are those of originals.

    Transformed images show fill and resampled pixels: averages over both kinds fit neither. The buffers are called
    `LAYER/NAME`, with slashes in the layer's name, and keep their addresses.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self._layers: list[tuple[nn.Module, dict[str, str]]] = []
        for layer, norm in batch_norms(encoder):
            names = {name: f"{layer.replace('.', '/')}/{name}" for name in STATISTICS}
            self._layers.append((norm, names))
            for name, own in names.items():
                self.register_buffer(own, norm.get_buffer(name).clone())

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within, the encoder reads and moves these statistics."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for norm, names in self._layers:
            for name, own in names.items():
                self._buffers[own], norm._buffers[name] = norm._buffers[name], self._buffers[own]


def batch_norms(net: nn.Module) -> Iterator[tuple[str, nn.modules.batchnorm._BatchNorm]]:
    """The BatchNorm layers of a network that keep running statistics, by name."""
    for name, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            yield name, module


class SiameseModel(nn.Module):
    """An encoder that is called once for each view, and an objective that was built for its vectors.

    Each view is normalised by its own batch statistics. The running averages are of originals and transformed images apart, or,
    as published, shared: they move once for each view. Concatenating the views into one batch is not the same. Under autocast
    the encoder alone computes in reduced precision.

    Args:
        encoder: of every view.
        objective: on the encoder's vectors.
        per_view: whether transformed images have running statistics apart; without originals there is one set.
    """

    def __init__(self, encoder: Encoder, objective: Objective, *, per_view: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.objective = objective
        apart = per_view and set(objective.views) == {"original", "transformed"}
        self.transformed = TransformedStatistics(encoder) if apart else None
        self.checkpoint_activations = False
        """Whether to compute the encoder again in the backward pass, view by view, instead of keeping its activations."""

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise images, float in [0, 1] or uint8, (B, C, H, W), by channel; see `Encoder.normalise`."""
        return self.encoder.normalise(images)

    def standardise(self, images: Tensor) -> Tensor:
        """Normalise without checks; see `Encoder.standardise`."""
        return self.encoder.standardise(images)

    def encode(
        self, views: Sequence[Tensor], noise: Sequence[Tensor | None] | None = None, roles: Sequence[Role] | None = None
    ) -> tuple[Tensor, ...]:
        """Encode views, normalised images (B, C, H, W) each, into their vectors, (B, vector_dim).

        `noise` is eps of each view's code; where left out it is drawn in training mode, and none in eval mode. The roles of the
        views are by default those of the objective's views.
        """
        encode = self._encode_again if self.checkpoint_activations and torch.is_grad_enabled() else self._encode_view
        vectors = []
        for role, view, eps in zip(roles or self.objective.views, views, noise or [None] * len(views), strict=True):
            with self.transformed.used() if self.transformed is not None and role == "transformed" else nullcontext():
                vectors.append(encode(view, eps))
        return tuple(vectors)

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
            noise: eps of the code of x and of y, in the order in which the objective's views name them; see `encode`.

        Returns:
            The mean of the normalised target (or logits of classes), (B, outputs), and the log-variance that the likelihood
            uses, likewise, or none.

        Raises:
            AvtError: if the objective has no decoder, or for images that the encoder refuses; see `Encoder.check_values`.
        """
        for images in (x, y):
            self.encoder.check_values(images)
        if self.objective.prediction is None:
            raise AvtError(f"The objective {type(self.objective).__name__} has no decoder: it predicts no transformation.")
        roles = list(dict.fromkeys(self.objective.views))  # every transformed view is y: it is encoded once
        codes = self.encode([x if role == "original" else y for role in roles], noise, roles)
        with torch.autocast(x.device.type, enabled=False):
            of_role = dict(zip(roles, self._in_precision(codes), strict=True))
            prediction = self.objective.predict(tuple(of_role[role] for role in self.objective.views))
        return prediction.mean, prediction.log_var

    def _in_precision(self, codes: Sequence[Tensor]) -> tuple[Tensor, ...]:
        dtype = next(self.parameters()).dtype
        return tuple(code.to(dtype) for code in codes)


@contextmanager
def _statistics_kept(net: nn.Module) -> Iterator[None]:
    """Within, batches do not move running statistics: a second pass over a batch must not count twice."""
    before = [(norm, norm.momentum, norm.num_batches_tracked) for _, norm in batch_norms(net)]
    for norm, *_ in before:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count
