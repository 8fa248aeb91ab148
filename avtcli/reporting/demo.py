"""The whole way on the embedded images."""

from dataclasses import dataclass
from pathlib import Path

from avtcli.config.probe_config import ProbeConfig
from avtcli.config.resolution import resolve
from avtcli.events import OnEvent
from avtcli.exporting.export import ExportResult, export
from avtcli.models.weights import open_weights
from avtcli.probing.probe import ProbeResult, probe
from avtcli.storage.run_folders import default_folder
from avtcli.training.pretrain import PretrainResult, pretrain

RECIPE = "fashion-mini-demo"


@dataclass(frozen=True)
class DemoResult:
    """What `avt demo` reports: its three parts."""

    pretrain: PretrainResult
    probe: ProbeResult
    export: ExportResult


def demo(out: Path | None, *, on_event: OnEvent) -> DemoResult:
    """Pretrain, probe against random, and export.

    Raises:
        AvtError: if the folder exists.
    """
    config = resolve({}, recipe=RECIPE)
    run = out or default_folder(config.dataset.name, config.backbone.name, config.objective.name)
    pretrained = pretrain(config, run=run, resume=False, on_event=on_event)
    source = open_weights(run)
    probed = probe(source, ProbeConfig(layers=("conv2",), pool=("max",), epochs=50), out=None, on_event=on_event)
    return DemoResult(pretrained, probed, export(source, out=None, layer=None, on_event=on_event))
