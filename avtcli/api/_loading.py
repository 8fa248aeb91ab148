"""`avtcli.load_encoder` and `avtcli.load_model`."""

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from avtcli.api._calling import check_texts, run_of
from avtcli.errors import AvtError, one_line

if TYPE_CHECKING:
    import torch
    from torch import nn

    from avtcli.models.encoder import Encoder
    from avtcli.models.siamese import SiameseModel

Net = TypeVar("Net", bound="nn.Module")


def load_encoder(run: str | Path = "last", *, layer: str | None = None, device: "str | torch.device" = "cpu") -> "Encoder":
    """Load an encoder in eval mode.

    `encoder(encoder.normalise(images))` gives the mean of the code, (B, C, H, W), of images (B, C, H, W) that are uint8 or
    floats in [0, 1]. `encoder.features(x, layers)` gives those of several layers, by name, and `encoder.backbone_model` is the
    bare network.

    Args:
        run: a run folder, whose newest valid checkpoint is taken, a checkpoint, or an exported safetensors file; "last" is the
            newest run under ./runs.
        layer: one of `encoder.layers`, which calling the encoder then returns; by default the code, or the exported layer.
        device: as torch names it, or "auto": CUDA, then MPS, then the CPU.

    Raises:
        AvtError: if nothing valid is there, a plugin that the run needs is missing, or layer or device do not exist.
    """
    from avtcli.models.weights import open_weights, restore_encoder

    check_texts(layer=layer)
    encoder = restore_encoder(open_weights(run_of(run)))
    if layer is not None:
        encoder.check_layers([layer])
        encoder.output = layer
    return _placed(encoder, device)


def load_model(run: str | Path = "last", *, device: "str | torch.device" = "cpu") -> "SiameseModel":
    """Load encoder and decoder of a run in eval mode.

    `model(model.normalise(x), model.normalise(y))` gives the mean and the log-variance of the normalised transformation,
    (B, dof) each, from original images x to transformed images y, (B, C, H, W), uint8 or floats in [0, 1]. The encoder alone
    is `model.encoder`.

    Args:
        run: a run folder, whose newest valid checkpoint is taken, or a checkpoint; "last" is the newest run under ./runs.
        device: as torch names it, or "auto": CUDA, then MPS, then the CPU.

    Raises:
        AvtError: if nothing valid is there, a plugin that the run needs is missing, or the device does not exist.
    """
    from avtcli.models.weights import open_weights, restore_model

    return _placed(restore_model(open_weights(run_of(run))), device)


def _placed(net: Net, device: "str | torch.device") -> Net:
    from avtcli.runtime.devices import choose_device

    name = choose_device("auto") if str(device) == "auto" else device
    try:
        return net.to(name)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:  # what torch raises for a device that it lacks
        raise AvtError(f"The device {str(device)!r} cannot be used here ({one_line(error)}).") from error
