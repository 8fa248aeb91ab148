import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _cache_folder() -> None:
    Path(os.environ["XDG_CACHE_HOME"]).mkdir()  # where it is missing, PyTorch warns that it cannot keep its kernels
