"""Pretrain a vision backbone without labels by autoencoding variational transformations (AVT, ICCV 2019)."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avtcli.models.encoder import Encoder
    from avtcli.models.siamese import SiameseModel

__all__ = ["load_encoder", "load_model"]
__version__ = "0.1.0"


def load_model(run: str | Path) -> "SiameseModel":
    """Load encoder and decoder of a run folder or checkpoint, in eval mode, on the CPU.

    Args:
        run: a run folder (its newest valid checkpoint is taken) or one checkpoint folder.

    Returns:
        A model whose `model(x, y)` gives the mean and the log-variance of the normalised transformation, (B, dof) each,
        x being the original and y the transformed image, both normalised by `model.normalise`.

    Raises:
        AvtError: if nothing valid is there, or a plugin that the run needs is missing.
    """
    from avtcli.models.weights import load_model as load

    return load(run)


def load_encoder(run: str | Path) -> "Encoder":
    """Load the encoder of a run folder, a checkpoint or an exported safetensors file, in eval mode, on the CPU.

    Returns:
        An encoder whose `encoder(x)` gives the mean of the code, (B, C, H, W), of normalised images x.

    Raises:
        AvtError: if nothing valid is there, or a plugin that the run needs is missing.
    """
    from avtcli.models.weights import load_encoder as load

    return load(run)
