"""Randomness as a function of its key."""

import subprocess
import sys

import torch

from avtcli.seeding import keyed_generator, seed_of, subset


def test_a_seed_is_the_same_in_every_process_and_differs_by_key() -> None:
    code = "from avtcli.seeding import seed_of; print(seed_of(7, 3, 'order'))"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "5"}
    )

    assert int(printed.stdout) == seed_of(7, 3, "order")
    assert len({seed_of(7, 3, "order"), seed_of(7, 4, "order"), seed_of(8, 3, "order"), seed_of(7, 3, "noise")}) == 4


def test_a_keyed_generator_leaves_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    draw = torch.rand(3, generator=keyed_generator(1, "x"))

    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(draw, torch.rand(3, generator=keyed_generator(1, "x")))


def test_a_subset_is_sorted_without_repeats_and_whole_where_nothing_is_asked() -> None:
    drawn = subset(100, 30, "limit")

    assert len(set(drawn.tolist())) == 30
    assert drawn.tolist() == sorted(drawn.tolist())
    assert torch.equal(subset(100, None, "limit"), torch.arange(100))
    assert torch.equal(subset(100, 100, "limit"), torch.arange(100))
