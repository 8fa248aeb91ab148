"""One safetensors file with the encoder's weights, and in its header everything needed to build it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avtcli.contracts import Exporter
from avtcli.models.encoder import Encoder
from avtcli.models.weights import save_encoder


class SafetensorsFile(Exporter):
    """The format that all commands of avt read as RUN; it holds every encoder."""

    suffix = ".safetensors"

    def write(self, encoder: Encoder, path: Path, about: Mapping[str, Any]) -> None:
        """Write weights and header; equal weights and headers give equal bytes."""
        save_encoder(encoder, path, about)

    def load_with(self, path: Path) -> tuple[str, ...]:
        """Return the lines that load the encoder."""
        return ("from avtcli import load_encoder", f"encoder = load_encoder({str(path)!r})")


def safetensors() -> Exporter:
    """One safetensors file, which avt loads with `load_encoder` and takes as RUN in every command."""
    return SafetensorsFile()
