"""`avt demo`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from avtcli.cli.console import reporting, say, say_json, say_next, say_table
from avtcli.cli.options import Json, option
from avtcli.errors import AvtError
from avtcli.events import Notice, OnEvent


def demo(
    out: Annotated[Path | None, option("Run folder. Default: runs/DATE-fashion-mini-nin-avt.", "DIR")] = None,
    as_json: Json = False,
) -> None:
    """End-to-end demo on bundled images: pretrain, probe, export, report.

    Takes minutes on a CPU and needs no network.

    Example: `avt demo --out runs/demo`
    """
    from avtcli.config.probe_config import ProbeConfig
    from avtcli.config.resolution import resolve
    from avtcli.exporting.export import export
    from avtcli.models.weights import open_weights
    from avtcli.probing.probe import probe
    from avtcli.training.pretrain import pretrain

    config = resolve({}, recipe="fashion-mini-demo")
    with reporting() as on_event:
        pretrained = pretrain(config, run=out, resume=False, on_event=on_event)
        weights = open_weights(pretrained.run)
        probed = probe(weights, ProbeConfig(layers=("conv2",), pool=("max",), epochs=50), out=None, on_event=on_event)
        exported = export(weights, out=None, layer=None, on_event=on_event)
        reported = _try_report(Path(pretrained.run), on_event)
    if as_json:
        say_json({"pretrain": asdict(pretrained), "probe": asdict(probed), "export": asdict(exported), "report": reported})
        return
    trained, random = probed.results[0], probed.baseline[0]
    say(f"Pretrained on 2 000 images of Fashion-MNIST without labels in {pretrained.seconds:.0f} s: {pretrained.run}")
    say(f"Mean corner error {pretrained.mace_px:.1f} px (guessing: {pretrained.constant_mace_px:.1f} px).", "")
    rows = [("pretrained", f"{trained.top1:.1f}"), ("random weights", f"{random.top1:.1f}")]
    best = int(random.top1 > trained.top1)
    say_table((f"linear probe at {trained.layer}, {trained.pool} pooling", "top-1 %"), rows, best=best)
    say("", f"Weights: {exported.file}. Load them with", *(f"  {line}" for line in exported.load_with.split("; ")))
    if reported is not None:
        say("", f"Report, to open in a browser: {reported['file']}")
    say("")
    cifar = ("avt", "pretrain", "--dataset", "cifar10", "--backbone", "nin", "--epochs", "1")
    say_next(cifar, ("avt", "probe", pretrained.run, "--layer", "all"), ("avt", "pretrain", "--help"))


def _try_report(run: Path, on_event: OnEvent) -> dict[str, Any] | None:
    """Write the report; a notice where that is not possible, since the demo is complete without it."""
    from avtcli.reporting.report import write_report

    try:
        return asdict(write_report([run], out=None, on_event=on_event))
    except AvtError as error:
        on_event(Notice(f"no report was written: {error}"))
        return None
