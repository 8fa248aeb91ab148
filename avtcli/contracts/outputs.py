"""The contracts of what leaves a run: exported encoders and figures for a tracker."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avtcli.models.encoder import Encoder


class Exporter(ABC):
    """A format of exported encoders."""

    suffix: str
    """The ending of its files, with the dot; an empty string for a format that is a folder."""
    library: str = "avtcli"
    """The library that loads the file, by the name that the Hugging Face hub has for it."""
    tolerance: float = 1e-5
    """Largest difference of features that were loaded back, from arithmetic in another order, as a share of the largest one."""

    def default_layer(self, encoder: "Encoder") -> str:
        """Return the layer that the loaded module returns where the user names none: the encoder's own, by default."""
        return encoder.output

    def check(self, encoder: "Encoder", layer: str) -> None:  # noqa: B027
        """Check that the format can hold an encoder whose output is `layer`; every encoder passes by default.

        Raises:
            AvtError: if it cannot; the message names a format that can.
        """

    @abstractmethod
    def write(self, encoder: "Encoder", path: Path, about: Mapping[str, Any]) -> None:
        """Write an encoder.

        Args:
            encoder: in eval mode, on the CPU; `encoder.output` is the layer that the loaded module returns.
            path: the file or folder to make; it does not exist.
            about: plain JSON: version, model (everything needed to build the encoder), step and config (may be none).
        """

    @abstractmethod
    def load_with(self, path: Path) -> tuple[str, ...]:
        """Return the lines of Python, without compound statements, that load the file as `encoder`.

        `encoder` is called with normalised images, (B, C, H, W) in float32, for any B, and returns the features of the layer: a
        tensor or a NumPy array, whose sides of 1 may be left out.
        """

    def load_code_with(self, path: Path, encoder: "Encoder") -> tuple[str, ...]:
        """Return the lines, as of `load_with`, that read the map of the code where `encoder.output` is another layer.

        None by default, for a format that cannot. The model card has them where they give the encoder's code.
        """
        return ()


class Tracker(ABC):
    """A log of a run's figures outside of avt. Its methods are called in the main process only."""

    @abstractmethod
    def start(self, run_dir: Path, config: Mapping[str, Any], step: int) -> None:
        """Begin a run, or continue one.

        Args:
            run_dir: the run folder. What the tracker needs to continue lies in its folder `trackers`.
            config: the run's settings by dotted name, as `backbone.width`: texts, numbers, booleans, or lists of them.
            step: steps done; values logged for later steps, by a run that was interrupted, come again.
        """

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record values by name after `step` steps; steps do not decrease, and one step may come several times."""

    @abstractmethod
    def finish(self) -> None:
        """End the run: everything logged is safe when this returns."""
