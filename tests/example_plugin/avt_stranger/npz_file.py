"""Encoders as NumPy archives."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from avtcli.config.model_spec import ModelSpec
from avtcli.contracts import Exporter
from avtcli.errors import AvtError
from avtcli.models.encoder import Encoder
from avtcli.models.model_building import build_encoder

CONTRACT_VERSION = 1


class NpzFile(Exporter):
    """One array per tensor, and the specification of the encoder as JSON text; only the mean of the code."""

    suffix = ".npz"

    def check(self, encoder: Encoder, layer: str) -> None:
        """Refuse other layers than the code."""
        if layer != encoder.backbone.code_tap:
            raise AvtError(f"The format 'stranger-npz' holds the code alone, found {layer}. Take --format safetensors.")

    def write(self, encoder: Encoder, path: Path, about: Mapping[str, Any]) -> None:
        """Write arrays and specification."""
        arrays = {name: tensor.numpy() for name, tensor in encoder.state_dict().items()}
        np.savez(path, **arrays, about=np.array(json.dumps(about)))

    def load(self, path: Path) -> nn.Module:
        """Build the encoder and load its weights."""
        with np.load(path, allow_pickle=False) as content:
            encoder = build_encoder(ModelSpec.model_validate(json.loads(content["about"].item())["model"]))
            names = [name for name in content.files if name != "about"]
            encoder.load_state_dict({name: torch.from_numpy(content[name]) for name in names})
        return encoder.eval()

    def load_with(self, path: Path) -> tuple[str, ...]:
        """Return the lines that load the encoder."""
        load = f"encoder = stranger_npz().load(Path({str(path)!r}))"
        return "from pathlib import Path", "from avt_stranger.npz_file import stranger_npz", load


def stranger_npz() -> Exporter:
    """A NumPy archive of the encoder that returns the mean of the code."""
    return NpzFile()
