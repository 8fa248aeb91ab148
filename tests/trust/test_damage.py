"""Damage to a checkpoint: always detected, never counted, and the one before it is taken."""

import random
import shutil
from pathlib import Path

import pytest
import torch

from avtcli.events import Event, Notice
from avtcli.storage.checkpoints import load_newest, save_checkpoint
from tests.trust.harness import damage_of, forms, steps_of, tally

FILES = ("model.safetensors", "state.safetensors", "state.json", "manifest.json")


def write(root: Path, step: int) -> Path:
    generator = torch.Generator().manual_seed(step)
    model = {f"layer{i}.weight": torch.randn(40, 30, generator=generator) for i in range(4)}
    state = {f"{i}.momentum": torch.randn(40, 30, generator=generator) for i in range(4)}
    return save_checkpoint(root, step, model=model, state=state, about={"config": {}, "model": {}, "environment": {}})


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def cut(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])


def zero(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    start = draw.randrange(len(content))
    page = content[start : start + 4096]
    content[start : start + 4096] = bytes(len(page)) if any(page) else b"x" * len(page)
    path.write_bytes(content)


def lengthen(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randint(1, 100)))


def swap(path: Path, draw: random.Random) -> None:
    other = path.with_name(draw.choice([name for name in FILES if name != path.name]))
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def exchange(path: Path, draw: random.Random) -> None:
    """Put the file of the checkpoint before in its place."""
    shutil.copy(path.parent.parent / "step-0000000001" / path.name, path)


def delete(path: Path, draw: random.Random) -> None:
    path.unlink()


@pytest.mark.parametrize(("part", "parts", "trials"), forms("damaged checkpoints"))
def test_a_damaged_checkpoint_is_never_counted(tmp_path: Path, part: int, parts: int, trials: int) -> None:
    whole = tmp_path / "whole"
    write(whole, 1), write(whole, 2)
    with tally("damaged checkpoints") as counted:
        for seed in range(1000 * part, 1000 * part + trials):
            draw, run, events, wrong = random.Random(seed), tmp_path / str(seed), list[Event](), list[str]()
            root = run / "checkpoints"
            shutil.copytree(whole, root)
            damage = draw.choice([flip, cut, zero, lengthen, swap, exchange, delete])
            file = draw.choice(FILES)
            damage(root / "step-0000000002" / file, draw)
            loaded = load_newest(root, repair=True, on_event=events.append)
            if loaded.about["step"] != 1:
                wrong.append(f"took step {loaded.about['step']}")
            if not any(isinstance(e, Notice) and "step-0000000002.damaged" in e.text for e in events):
                wrong.append("said nothing")
            write(root, 2)
            if any(damage_of(folder) for folder in steps_of(run).values()) or sorted(steps_of(run)) != [1, 2]:
                wrong.append("two complete ones do not stand after the next save")
            counted.add(f"seed {seed}: {damage.__name__} {file}", wrong)
            shutil.rmtree(run)
