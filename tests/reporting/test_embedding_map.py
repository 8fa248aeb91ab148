"""The map of the codes where there is nothing to map."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from avtcli.errors import AvtError
from avtcli.reporting.sections.embedding_map import embedding_map


def run_with(codes: Tensor) -> Any:
    images = SimpleNamespace(what="3 images", codes=codes, labels=None, classes=[])
    return SimpleNamespace(name="a", summary=SimpleNamespace(run=Path("a")), images=images)


@pytest.mark.parametrize(
    "codes",
    [
        torch.full((100, 4), 0.3),
        torch.full((100, 4), 0.3) + 3e-8 * (torch.arange(100)[:, None] % 2),  # rounding
        torch.zeros(100, 4),
        torch.full((100, 4), torch.nan),
        torch.ones(1, 4),
    ],
)
def test_codes_that_are_all_alike_have_no_map(codes: Tensor) -> None:
    with pytest.raises(AvtError, match="all alike"):
        embedding_map([run_with(codes)])


def test_small_codes_that_differ_have_a_map() -> None:
    codes = 1e-8 * torch.randn(20, 4, generator=torch.Generator().manual_seed(0))

    assert len(embedding_map([run_with(codes)]).blocks) == 1
