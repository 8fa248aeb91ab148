"""Conformance checks of exporters and trackers."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from avtcli import registry
from avtcli.config.model_spec import ModelSpec
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.contracts import Exporter, Tracker
from avtcli.errors import AvtError
from avtcli.exporting.export import TOLERANCE, compare_loaded, loading_lines
from avtcli.models.encoder import Encoder
from avtcli.models.model_building import build_encoder
from avtcli.plugin_kit.checking import Trial, checks_of, expect
from avtcli.seeding import keyed_generator

SIZE: Final = (32, 32)

TrackerFactory = Callable[[], Tracker]
"""Builds the tracker under test, again for each run."""


@dataclass(frozen=True)
class ExporterSubject:
    """An exporter under test, with its name and an encoder of the default backbone to write."""

    spec: str
    exporter: Exporter
    encoder: Encoder
    about: dict[str, Any]


def exporter_trial(spec: str) -> Trial:
    """Build an exporter for its checks."""
    backbone = PretrainConfig.model_fields["backbone"].default
    model = ModelSpec(backbone=backbone, channels=3, size=SIZE, mean=(0.5,) * 3, std=(0.25,) * 3, noise_scale=0.1)
    about = {"version": "0", "model": model.model_dump(mode="json", exclude_none=True), "step": 0, "config": None}
    encoder = build_encoder(model).eval()
    return EXPORTER_CHECKS, ExporterSubject(spec, registry.build("exporter", spec, {}), encoder, about)


def _refusal(subject: ExporterSubject, layer: str) -> str:
    """Why the exporter refuses an encoder whose output is a layer, or an empty string."""
    try:
        subject.exporter.check(subject.encoder, layer)
    except AvtError as error:
        return str(error)
    return ""


@contextmanager
def _written(subject: ExporterSubject) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"encoder{subject.exporter.suffix}"
        subject.exporter.write(subject.encoder, path, subject.about)
        expect(path.exists(), f"write made no {path.name}")
        yield path


def _difference(subject: ExporterSubject, lines: Callable[[Path], tuple[str, ...]]) -> str:
    if _refusal(subject, subject.encoder.output):
        return "refuses the default backbone"
    x = torch.randn(2, 3, *SIZE, generator=keyed_generator("conformance images"))
    with _written(subject) as path:
        difference = compare_loaded(subject.encoder, x, path, lines(path))
    expect(difference <= TOLERANCE, f"the loaded features differ by {difference:.2g}, expected at most {TOLERANCE:g}")
    return f"differ by {difference:.1g}"


def its_suffix_is_an_ending_or_empty(subject: ExporterSubject) -> str:
    """As of `Path.suffix`; empty for a folder."""
    suffix = subject.exporter.suffix
    expect(Path(f"encoder{suffix}").suffix == suffix, f"suffix is {suffix!r}, expected one ending such as '.bin', or ''")
    return suffix or "a folder"


def an_encoder_that_it_refuses_is_refused_with_another_format(subject: ExporterSubject) -> str:
    """The AvtError of `check` names an exporter that can."""
    others = [name for name in registry.names("exporter") if name != subject.spec]
    refused = {layer: why for layer in subject.encoder.layers if (why := _refusal(subject, layer))}
    for layer, why in refused.items():
        expect(any(name in why for name in others), f"refusing {layer} names none of {', '.join(others)}: {why}")
    return f"refuses {', '.join(refused)}" if refused else "takes every layer"


def a_fresh_process_loads_the_same_features(subject: ExporterSubject) -> str:
    """`load` gives a module with the encoder's output, within TOLERANCE."""
    return _difference(subject, lambda path: loading_lines(subject.spec, path))


def its_lines_of_python_load_the_same_features(subject: ExporterSubject) -> str:
    """Run by themselves, the lines of `load_with` define `encoder`."""
    return _difference(subject, subject.exporter.load_with)


def writing_leaves_the_encoder_unchanged(subject: ExporterSubject) -> None:
    """Its weights and its mode."""
    if _refusal(subject, subject.encoder.output):
        return
    before = {name: tensor.clone() for name, tensor in subject.encoder.state_dict().items()}
    with _written(subject):
        after = subject.encoder.state_dict()
    same = list(before) == list(after) and all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    expect(same, "write changed the weights of the encoder")
    expect(not subject.encoder.training, "write left the encoder in training mode")


def tracker_trial(spec: str) -> Trial:
    """Build a tracker, and return how to build it for each run."""
    registry.build("tracker", spec, {})
    return TRACKER_CHECKS, lambda: registry.build("tracker", spec, {})


@contextmanager
def _tracked(make: TrackerFactory, *first_steps: int) -> Iterator[Path]:
    """A run folder that a tracker has logged into from each first step."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "trackers").mkdir()
        for first in first_steps:
            tracker = make()
            tracker.start(Path(folder), PretrainConfig().model_dump(mode="json", exclude_none=True), first)
            tracker.log(first + 1, {"loss": 0.5})
            tracker.log(first + 2, {"loss": 0.25, "lr": 1e-3})
            tracker.log(first + 2, {"mace_px": 12.5})
            tracker.finish()
        yield Path(folder)


def a_run_is_tracked_and_continued(make: TrackerFactory) -> None:
    """A second tracker takes a run folder over after an interruption, from an earlier step than the last one logged."""
    with _tracked(make, 0, 1):
        pass


def its_files_lie_in_the_trackers_folder(make: TrackerFactory) -> str:
    """Other files in the run folder belong to the run."""
    with _tracked(make, 0) as run:
        others = [path.name for path in run.iterdir() if path.name != "trackers"]
        kept = len(list((run / "trackers").rglob("*")))
    expect(not others, f"it wrote {', '.join(others)} into the run folder, expected files in its folder trackers only")
    return f"{kept} files"


EXPORTER_CHECKS: Final = checks_of(ExporterSubject, globals())
TRACKER_CHECKS: Final = checks_of(TrackerFactory, globals())
