"""`avt bench`: its table and its JSON."""

from collections.abc import Callable
from typing import Any

import pytest

from avtcli.bench import suite as bench
from avtcli.bench.timing import Scale


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ON_CPU", Scale(homographies=2_000, plain_homographies=20, small=8))


def test_the_json_states_the_machine_and_each_ratio(avt: Callable[..., Any]) -> None:
    found = avt("bench --only homographies,warp-32 --rounds 2 --json").json

    assert {"commit", "environment", "cpu", "cpus", "rounds", "measurements"} <= set(found)
    assert found["environment"]["versions"].keys() >= {"avtcli", "torch"}
    assert [m["name"] for m in found["measurements"]] == ["homographies", "warp-32"]
    assert all(m["ratio_low"] <= m["ratio"] <= m["ratio_high"] for m in found["measurements"])


def test_the_table_gives_both_rates_and_the_range_of_their_ratio(avt: Callable[..., Any]) -> None:
    result = avt("bench --only homographies --rounds 2 --device cpu")

    header = next(line for line in result.stdout.splitlines() if "baseline" in line)
    assert header.split() == ["avt", "baseline", "ratio", "lowest", "highest"]
    assert "homographies: draw and solve 2000 for 224 px, against a loop over 20" in result.stdout


def test_a_precision_that_the_device_lacks_is_refused(avt: Callable[..., Any]) -> None:
    result = avt("bench --only homographies --device cpu --precision fp16")

    assert result.code == 2
    assert "fp16 training needs a GPU" in result.stderr


def test_an_unknown_benchmark_is_refused_with_the_nearest(avt: Callable[..., Any]) -> None:
    result = avt("bench --only homographie")

    assert result.code == 2
    assert "'homographie'" in result.stderr
    assert "Did you mean 'homographies'" in result.stderr
