"""Weights to probe."""

from dataclasses import replace
from pathlib import Path

import pytest

from avtcli.models.weights import Weights, open_weights, restore_encoder


@pytest.fixture(scope="module")
def source(tiny_run: Path) -> Weights:
    """The tiny run as if it were a file: probes leave nothing behind."""
    return replace(open_weights(tiny_run), run=None, tensors=restore_encoder(open_weights(tiny_run)).state_dict())
