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
from avtcli.config.value_text import flat_settings
from avtcli.contracts import Exporter, Tracker
from avtcli.errors import AvtError
from avtcli.exporting.export import compare_loaded
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


def its_suffix_is_an_ending_or_empty(subject: ExporterSubject) -> str:
    """As of `Path.suffix`; empty for a folder."""
    suffix = subject.exporter.suffix
    expect(Path(f"encoder{suffix}").suffix == suffix, f"suffix is {suffix!r}, expected one ending such as '.bin', or ''")
    return suffix or "a folder"


def an_encoder_that_it_refuses_is_refused_with_another_format(subject: ExporterSubject) -> str:
    """The AvtError of `check` names an exporter that can."""
    others = [name for name in registry.names("exporter") if name != subject.spec]
    layers = (*subject.encoder.layers, subject.encoder.log_var_name)
    refused = {layer: why for layer in layers if (why := _refusal(subject, layer))}
    for layer, why in refused.items():
        expect(any(name in why for name in others), f"refusing {layer} names none of {', '.join(others)}: {why}")
    return f"refuses {', '.join(refused)}" if refused else "takes every layer"


def a_fresh_process_loads_the_same_features(subject: ExporterSubject) -> str:
    """Within its tolerance, by the lines of `load_with`, for another batch size; writing does not change the encoder."""
    exporter, encoder = subject.exporter, subject.encoder
    if _refusal(subject, encoder.output):
        return "refuses the default backbone"
    x = torch.randn(2, 3, *SIZE, generator=keyed_generator("conformance images"))
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        path, before = Path(folder) / f"encoder{exporter.suffix}", encoder(x)
        exporter.write(encoder, path, subject.about)
        expect(path.exists(), f"write made no {path.name}")
        expect(torch.equal(encoder(x), before), "write changed the encoder")
        difference, largest = compare_loaded(encoder, x, path, exporter.load_with(path))
        most = exporter.tolerance * largest
        expect(difference <= most, f"the features by load_with differ by {difference:.2g}, expected at most {most:.2g}")
    return f"differ by {difference:.1g}"


def tracker_trial(spec: str) -> Trial:
    """Build a tracker, and return how to build it for each run."""
    registry.build("tracker", spec, {})
    return TRACKER_CHECKS, lambda: registry.build("tracker", spec, {})


def a_run_is_tracked_and_continued_by_files_in_trackers(make: TrackerFactory) -> str:
    """The second start is at an earlier step than the last one logged, as after an interruption."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        (run / "trackers").mkdir()
        for first in (0, 1):
            tracker = make()
            tracker.start(run, flat_settings(PretrainConfig().model_dump(mode="json", exclude_none=True)), first)
            tracker.log(first + 1, {"loss": 0.5})
            tracker.log(first + 2, {"loss": 0.25, "lr": 1e-3})
            tracker.log(first + 2, {"mace_px": 12.5})
            tracker.finish()
        others = [path.name for path in run.iterdir() if path.name != "trackers"]
        expect(not others, f"it wrote {', '.join(others)} into the run folder, expected files in its folder trackers only")
        return f"{len(list((run / 'trackers').rglob('*')))} files"


EXPORTER_CHECKS: Final = checks_of(ExporterSubject, globals())
TRACKER_CHECKS: Final = checks_of(TrackerFactory, globals())
