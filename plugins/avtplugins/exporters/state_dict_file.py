"""One file of torch.save: the network's state dict in its own names."""

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from avtcli.contracts import Exporter
from avtcli.errors import AvtError
from avtcli.models.encoder import Encoder
from avtcli.models.weights import restore_bare


class StateDictFile(Exporter):
    """The state dict of `encoder.backbone_model`, as its library saves it, for `load_state_dict`; no log-variance branch.

    What avt needs to build the network is an attribute of the state dict, which `load_state_dict` does not look at.
    """

    suffix = ".pt"

    def check(self, encoder: Encoder, layer: str) -> None:
        """Refuse the log-variance, which is no part of the network."""
        if layer not in encoder.backbone.taps:
            raise AvtError(
                f"The format 'torch' has no log-variance branch, found the layer {layer}. Take --format safetensors."
            )

    def write(self, encoder: Encoder, path: Path, about: Mapping[str, Any]) -> None:
        """Write the state dict."""
        tensors = OrderedDict((name, tensor.clone()) for name, tensor in encoder.backbone_model.state_dict().items())
        tensors.avt = json.dumps(about, sort_keys=True)  # type: ignore[attr-defined]
        torch.save(tensors, path)

    def load_with(self, path: Path) -> tuple[str, ...]:
        """Return the lines that load the encoder; its `backbone_model` is the network itself."""
        return (
            "import torch",
            "from avtplugins.exporters.state_dict_file import load_encoder",
            f"weights = torch.load({str(path)!r}, weights_only=True)",
            "encoder = load_encoder(weights)",
        )


def load_encoder(weights: Mapping[str, Any]) -> Encoder:
    """Build the encoder of a state dict that this format wrote, in eval mode, on the CPU."""
    return restore_bare(dict(weights), json.loads(weights.avt), path=Path("the state dict"))  # type: ignore[attr-defined]


def state_dict_file() -> Exporter:
    """One file of torch.save: the state dict of the network, in its own names."""
    return StateDictFile()
