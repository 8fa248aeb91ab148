"""The check that features are finite, before anything is measured on them."""

from collections.abc import Mapping

from torch import Tensor

from avtcli.errors import RunFailedError


class NotFiniteError(RunFailedError):
    """Features that are infinite or NaN."""


class FiniteCheck:
    """Counts the images whose features are infinite or NaN, batch by batch, without waiting for the device."""

    def __init__(self) -> None:
        self._images, self._broken = 0, dict[str, Tensor]()

    def count(self, features: Mapping[str, Tensor]) -> None:
        """Count a batch: features of the same images by the layer's name, (B, ...) each."""
        for name, x in features.items():
            broken = x.flatten(1).isfinite().logical_not().any(1).sum()
            self._broken[name] = self._broken[name] + broken if name in self._broken else broken
        self._images += len(next(iter(features.values())))

    def finish(self) -> None:
        """Wait for the device.

        Raises:
            NotFiniteError: naming the first layer with features that are not finite.
        """
        for name, broken in self._broken.items():
            if int(broken):
                raise NotFiniteError(
                    f"The features of layer '{name}' are infinite or NaN for {int(broken)} of {self._images} images: the "
                    "training diverged. Take an earlier checkpoint."
                )
