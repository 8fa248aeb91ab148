"""Conformance checks of exporters and trackers: each mutant fails the check that it should."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from avtcli.contracts import Tracker
from avtcli.errors import AvtError
from avtcli.plugin_kit import output_checks as output
from avtcli.plugin_kit.checking import run_check
from avtplugins.exporters.safetensors_file import SafetensorsFile


def mutant(**methods: Any) -> output.ExporterSubject:
    """The safetensors exporter with other methods or attributes."""
    _, subject = output.exporter_trial("safetensors")
    exporter = type("Mutant", (SafetensorsFile,), methods)()
    return output.ExporterSubject("safetensors", exporter, subject.encoder, subject.about)


def refuse(message: str) -> Callable[..., None]:
    def check(self: Any, encoder: Any, layer: str) -> None:
        raise AvtError(message)

    return check


def doubled(self: Any, encoder: Any, path: Path, about: Any) -> None:
    with torch.no_grad():
        next(encoder.parameters()).mul_(2)
    SafetensorsFile.write(self, encoder, path, about)


@pytest.mark.parametrize(
    ("methods", "check", "problem"),
    [
        ({"suffix": "bin"}, output.its_suffix_is_an_ending_or_empty, "suffix is 'bin', expected one ending"),
        (
            {"check": refuse("never")},
            output.an_encoder_that_it_refuses_is_refused_with_another_format,
            "names none of",
        ),
        ({"write": lambda *args: None}, output.a_fresh_process_loads_the_same_features, "write made no encoder.safetensors"),
        (
            {"load_with": lambda self, path: ("encoder = lambda x: x.new_zeros(2, 192, 8, 8)",)},
            output.a_fresh_process_loads_the_same_features,
            "the features by load_with differ by",
        ),
        ({"write": doubled}, output.a_fresh_process_loads_the_same_features, "write changed the encoder"),
    ],
)
def test_an_exporter_that_fails_a_requirement_is_caught(methods, check, problem: str) -> None:
    assert problem in run_check(check, mutant(**methods)).problem


class Misplaced(Tracker):
    """Writes outside of its folder."""

    def start(self, run_dir: Path, config: Any, step: int) -> None:
        (run_dir / "mine.csv").touch()

    def log(self, step: int, values: Any) -> None: ...

    def finish(self) -> None: ...


def test_a_tracker_that_fails_a_requirement_is_caught() -> None:
    check = output.a_run_is_tracked_and_continued_by_files_in_trackers

    assert "it wrote mine.csv into the run folder" in run_check(check, Misplaced).problem
