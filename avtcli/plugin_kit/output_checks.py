"""Conformance checks of exporters and trackers."""

import tempfile
from collections.abc import Callable
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
from avtcli.plugin_kit.checking import Trial, expect
from avtcli.seeding import keyed_generator


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
    model = ModelSpec(backbone=backbone, channels=3, size=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3, noise_scale=0.1)
    about = {"version": "0", "model": model.model_dump(mode="json", exclude_none=True), "step": 0, "config": None}
    subject = ExporterSubject(spec, registry.build("exporter", spec, {}), build_encoder(model).eval(), about)
    return EXPORTER_CHECKS, subject


def its_suffix_is_an_ending_or_empty(subject: ExporterSubject) -> str:
    suffix = subject.exporter.suffix
    expect(Path(f"encoder{suffix}").suffix == suffix, f"suffix is {suffix!r}, expected one ending such as '.bin', or ''")
    return suffix or "a folder"


def what_it_refuses_is_refused_with_another_format(subject: ExporterSubject) -> str:
    others = [name for name in registry.names("exporter") if name != subject.spec]
    refused = []
    for layer in subject.encoder.layers:
        try:
            subject.exporter.check(subject.encoder, layer)
        except AvtError as error:
            expect(any(name in str(error) for name in others), f"refusing {layer} names none of {', '.join(others)}: {error}")
            refused.append(layer)
    return f"refuses {', '.join(refused)}" if refused else "takes every layer"


def a_fresh_process_loads_the_same_features(subject: ExporterSubject) -> str:
    """Both by `load` and by the lines of `load_with`."""
    exporter, encoder = subject.exporter, subject.encoder
    try:
        exporter.check(encoder, encoder.output)
    except AvtError:
        return "refuses the default backbone"
    x = torch.randn(2, 3, 32, 32, generator=keyed_generator("conformance images"))
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        path, before = Path(folder) / f"encoder{exporter.suffix}", encoder(x)
        exporter.write(encoder, path, subject.about)
        expect(path.exists(), f"write made no {path.name}")
        expect(torch.equal(encoder(x), before), "write changed the encoder")
        for what, lines in (("load", loading_lines(subject.spec, path)), ("load_with", exporter.load_with(path))):
            difference = compare_loaded(encoder, x, path, lines)
            expect(
                difference <= TOLERANCE, f"the features by {what} differ by {difference:.2g}, expected at most {TOLERANCE:g}"
            )
    return f"differ by {difference:.1g}"


EXPORTER_CHECKS: Final = (
    its_suffix_is_an_ending_or_empty,
    what_it_refuses_is_refused_with_another_format,
    a_fresh_process_loads_the_same_features,
)


def tracker_trial(spec: str) -> Trial:
    """Build a tracker for its checks; the subject builds it again for each run."""
    registry.build("tracker", spec, {})
    return TRACKER_CHECKS, lambda: registry.build("tracker", spec, {})


def a_run_is_tracked_and_continued_from_files_in_trackers(make: Callable[[], Tracker]) -> str:
    """The second start is at an earlier step than the last one logged, as after an interruption."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        (run / "trackers").mkdir()
        for first in (0, 1):
            tracker = make()
            tracker.start(run, PretrainConfig().model_dump(mode="json", exclude_none=True), first)
            tracker.log(first + 1, {"loss": 0.5})
            tracker.log(first + 2, {"loss": 0.25, "lr": 1e-3})
            tracker.log(first + 2, {"mace_px": 12.5})
            tracker.finish()
        others = [path.name for path in run.iterdir() if path.name != "trackers"]
        expect(not others, f"it wrote {', '.join(others)} into the run folder, expected files in its folder trackers only")
        return f"{len(list((run / 'trackers').rglob('*')))} files"


TRACKER_CHECKS: Final = (a_run_is_tracked_and_continued_from_files_in_trackers,)
