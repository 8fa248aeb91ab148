"""What the trust tests share: a process that forks runs, and the run that nothing disturbed."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.trust.harness import SETTINGS, STEPS, Zygote, contents, finished, steps_of, weights_of


@dataclass(frozen=True)
class Reference:
    """A run that nothing disturbed: its folder, the hashes of its last weights and state, and its seconds from the start."""

    run: Path
    weights: tuple[str, str]
    seconds: float


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    started = Zygote(tmp_path_factory.mktemp("zygote"))
    yield started
    started.close()


@pytest.fixture(scope="session")
def reference(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    run, began = tmp_path_factory.mktemp("reference") / "run", time.monotonic()
    ended = zygote.run("pretrain", *SETTINGS, "--out", str(run))
    seconds = time.monotonic() - began

    assert ended.problems(0) == []
    assert finished(run, weights_of(run)) == []
    assert set(steps_of(run)) == {STEPS - 1, STEPS}, "it must save after each step"
    last = [contents(steps_of(run)[step])["model.safetensors"] for step in (STEPS - 1, STEPS)]
    assert last[0] != last[1], "equal weights after two steps would prove nothing"
    return Reference(run, weights_of(run), seconds)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 44 images that readers decode, of which two are held out."""
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(44):
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number:02d}.png")
    return folder
