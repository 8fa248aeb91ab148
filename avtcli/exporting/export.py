"""Export of an encoder: written, loaded back in a fresh process, compared, and only then published."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from avtcli import registry
from avtcli.contracts import Exporter
from avtcli.errors import AvtError, RunFailedError
from avtcli.events import OnEvent, Progress, Saved
from avtcli.models.encoder import Encoder
from avtcli.models.weights import Weights, restore_encoder
from avtcli.storage.files import new_path

TOLERANCE = 1e-5

_RUN_ENCODER = """
import sys, torch
from safetensors.torch import load_file, save_file
with torch.no_grad():
    y = encoder(load_file(sys.argv[1])["x"])
save_file({"y": y.contiguous()}, sys.argv[2])
"""


@dataclass(frozen=True)
class ExportResult:
    """Result of `avt export`.

    `step` is that of the weights; `load_with` is the Python that loads the file, its lines joined by semicolons.
    """

    file: str
    format: str
    step: int | None
    max_abs_diff: float
    load_with: str


def export(
    source: Weights, *, file_format: str = "safetensors", out: Path | None, layer: str | None, on_event: OnEvent
) -> ExportResult:
    """Write the encoder in the format of an exporter plugin.

    Args:
        source: the weights.
        file_format: the exporter.
        out: the file or folder; left out, `encoder` with the format's ending in the run folder.
        layer: the layer that the loaded encoder returns; left out, the mean of the code.
        on_event: receives progress and `Saved`.

    Raises:
        AvtError: if format or layer do not exist, `out` has another ending than the format, the format cannot hold the encoder,
            or another file exists.
        RunFailedError: if what was written does not load, or gives other features; it is deleted then.
    """
    from avtcli import __version__

    exporter: Exporter = registry.build("exporter", file_format, {})
    if out is None and source.run is None:
        raise AvtError(f"{source.path} is an exported file already: give --out.")
    suffix, out = exporter.suffix, out or Path(source.run or "") / f"encoder{exporter.suffix}"
    if out.suffix != suffix:
        made = f"a file that ends in {suffix}" if suffix else "a folder without an ending"
        raise AvtError(f"The format '{file_format}' writes {made}, found --out {out}. Give --out {out.with_suffix(suffix)}.")
    encoder = restore_encoder(source)
    if layer is not None:
        encoder.check_layers([layer])
        encoder.output = layer
    exporter.check(encoder, encoder.output)
    own = {"objective": None, "transform": None, "bn_statistics": "shared"}  # an encoder alone sees images as they are
    spec = source.spec.model_copy(update={"layer": layer or source.spec.layer, **own})
    about = {
        "version": __version__,
        "model": spec.model_dump(mode="json", exclude_none=True),
        "step": source.step,
        "config": source.about.get("config"),
    }
    x = torch.randn(4, spec.channels, *spec.size, generator=torch.Generator().manual_seed(0))
    with new_path(out) as written:
        exporter.write(encoder, written, about)
        on_event(Progress("loading back", 0, 1, "files"))
        difference = compare_loaded(encoder, x, written, loading_lines(file_format, written))
        on_event(Progress("loading back", 1, 1, "files"))
        if not difference <= TOLERANCE:
            raise RunFailedError(f"The features of {out}, loaded back, differ by {difference:.1g}: it was deleted.")
    on_event(Saved(out))
    return ExportResult(str(out), file_format, source.step, difference, "; ".join(exporter.load_with(out)))


def loading_lines(file_format: str, path: Path) -> tuple[str, ...]:
    """Return the lines of Python that load a file as `encoder` through its exporter."""
    build = f"registry.build('exporter', {file_format!r}, {{}})"
    return "from pathlib import Path", "from avtcli import registry", f"encoder = {build}.load(Path({str(path)!r}))"


def compare_loaded(encoder: Encoder, x: torch.Tensor, path: Path, lines: Sequence[str]) -> float:
    """Return the largest difference between an encoder's features of x, (B, C, H, W), and those of its file in a new process.

    Raises:
        RunFailedError: if the lines of Python do not load it there as `encoder`.
    """
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "x.safetensors", Path(folder) / "y.safetensors"
        save_file({"x": x}, inputs)
        command = [sys.executable, "-c", "\n".join(lines) + _RUN_ENCODER, str(inputs), str(outputs)]
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        ended = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
        if ended.returncode != 0:
            raise RunFailedError(f"{path} was written and does not load back: {ended.stderr.strip().splitlines()[-1:]}.")
        return float((load_file(outputs)["y"] - encoder(x)).abs().max())
