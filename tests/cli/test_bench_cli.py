"""`avt bench`: its JSON, its table, and what it refuses."""

from collections.abc import Callable
from typing import Any

import pytest


def test_the_json_has_the_environment_and_the_comparisons(avt: Callable[..., Any]) -> None:
    found = avt("bench --only homographies,warp-224 --rounds 2 --json").json

    assert {"commit", "environment", "cpu", "cpus", "rounds", "measurements"} <= set(found)
    assert found["environment"]["versions"].keys() >= {"avtcli", "torch"}
    assert [m["name"] for m in found["measurements"]] == ["homographies", "warp-224"]
    assert all(m["ratio_low"] <= m["ratio"] <= m["ratio_high"] for m in found["measurements"])


def test_the_table_has_both_rates_and_the_ratio_with_its_range(avt: Callable[..., Any]) -> None:
    result = avt("bench --only homographies --rounds 2 --device cpu")

    header = next(line for line in result.stdout.splitlines() if "baseline" in line and "ratio" in line)
    assert header.split() == ["avt", "baseline", "ratio", "lowest", "highest"]
    assert "homographies: sample and solve 500000 homographies for 224 px; baseline: a loop over 1000" in result.stdout


def test_the_step_takes_a_backbone_a_size_and_a_batch_size(avt: Callable[..., Any]) -> None:
    result = avt("bench --only step --backbone timm:resnet10t --size 40 --batch-size 4 --rounds 1 --device cpu --json")
    [found] = result.json["measurements"]

    assert "timm:resnet10t, 1x40x40, batch 4" in found["what"]
    work = {"gflop_per_pair", "gflops", "matmul_share", "memory_share", "first_step_seconds", "loss_difference"}
    assert set(found["figures"]) == work | {"precision", "channels_last", "compile", "capture"}


def test_the_backbone_takes_options(avt: Callable[..., Any]) -> None:
    line = "bench --only step --backbone timm:vit_tiny_patch16_224 -o backbone.args.patch_size=16 -o backbone.args.depth=1"
    result = avt(f"{line} --batch-size 2 --rounds 1 --device cpu")

    assert "batch 2, args={'patch_size': 16, 'depth': 1}; baseline: " in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--only homographies --device cpu --precision fp16", "fp16 training needs a GPU"),
        ("--only step -o objective.noise_scale=1", "-o takes no kind 'objective' here. Kinds: backbone."),
        ("--only step -o backbone.width=-1", "width"),
        ("--only homographie", "Did you mean 'homographies'"),
    ],
)
def test_what_cannot_be_timed_is_refused(avt: Callable[..., Any], options: str, message: str) -> None:
    result = avt(f"bench {options}")

    assert result.code == 2
    assert message in result.stderr
