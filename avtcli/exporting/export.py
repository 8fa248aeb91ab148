"""Taking the weights away: written, loaded back in a fresh process, compared, and only then called done."""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save, save_file

from avtcli.errors import AvtError, RunFailedError
from avtcli.events import OnEvent, Progress, Saved
from avtcli.models.weights import Weights, restore_encoder
from avtcli.storage.files import disk_errors_explained, refuse_existing, to_metadata, write_synced

TOLERANCE = 1e-5

_LOAD_BACK = """
import sys
from safetensors.torch import load_file, save_file
file, inputs, outputs = sys.argv[1:]
x = load_file(inputs)["x"]
import torch
with torch.no_grad():
    {load_with}
    y = encoder(x)
save_file({{"y": y.contiguous()}}, outputs)
"""


@dataclass(frozen=True)
class ExportResult:
    """What `avt export` reports."""

    file: str
    format: str
    max_abs_diff: float
    load_with: str


def export(source: Weights, *, out: Path | None, layer: str | None, on_event: OnEvent) -> ExportResult:
    """Write the encoder as one safetensors file that says how to build it.

    Args:
        source: the weights.
        out: the file; left out, encoder.safetensors in the run folder.
        layer: the tap that calling the loaded encoder returns; left out, the mean of the code.
        on_event: told what happens.

    Raises:
        AvtError: if the layer does not exist, or another file is in the way.
        RunFailedError: if the file, loaded back, gives other features.
    """
    from avtcli import __version__

    if out is None and source.run is None:
        raise AvtError(f"{source.path} is an exported file already: say with --out where the new one goes.")
    out = out or Path(str(source.run)) / "encoder.safetensors"
    spec = source.spec.model_copy(update={"layer": layer or source.spec.layer, "outputs": 0, "has_log_var": False})
    encoder = restore_encoder(source)
    if layer is not None:
        encoder.check_layers([layer])
        encoder.output = layer
    about = {
        "version": __version__,
        "model": spec.model_dump(mode="json", exclude_none=True),
        "step": source.about.get("step"),
        "config": source.about.get("config"),
    }
    blob = save({name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}, metadata=to_metadata(about))
    if not (out.is_file() and out.read_bytes() == blob):  # the same weights again are welcome, other ones are not
        refuse_existing(out)
        with disk_errors_explained(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            write_synced(out, blob)
    load_with = f"from avtcli import load_encoder; encoder = load_encoder({str(out)!r})"
    on_event(Progress("loading back", 0, 1, "files"))
    difference = _compare(encoder, out, spec.channels, spec.size)
    on_event(Progress("loading back", 1, 1, "files"))
    if not difference <= TOLERANCE:
        raise RunFailedError(f"{out} was loaded back and its features differ by {difference:.1g}: do not use it.")
    on_event(Saved(out))
    return ExportResult(str(out), "safetensors", difference, load_with)


def _compare(encoder: torch.nn.Module, out: Path, channels: int, size: tuple[int, int]) -> float:
    """The largest difference between our encoder and the file, loaded by a fresh process."""
    x = torch.randn(4, channels, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = encoder(x)
    script = _LOAD_BACK.format(load_with="from avtcli import load_encoder; encoder = load_encoder(file)")
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "x.safetensors", Path(folder) / "y.safetensors"
        save_file({"x": x}, inputs)
        command = [sys.executable, "-c", script, str(out.resolve()), str(inputs), str(outputs)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            raise RunFailedError(f"{out} was written and does not load back: {ended.stderr.strip().splitlines()[-1:]}.")
        return float((load_file(outputs)["y"] - ours).abs().max())
