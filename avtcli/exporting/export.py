"""Export of an encoder: written, loaded back in a fresh process, compared, and only then published."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from avtcli import registry
from avtcli.contracts import Exporter
from avtcli.errors import AvtError, RunFailedError
from avtcli.events import Notice, OnEvent, Progress, Saved
from avtcli.exporting.model_card import CARD, model_card
from avtcli.models.encoder import Encoder
from avtcli.models.weights import Weights, restore_encoder
from avtcli.storage.files import new_path, refuse_unwritable, write_file

_RUN_ENCODER = """
import sys, torch
from safetensors.torch import load_file, save_file
with torch.no_grad():
    y = encoder(load_file(sys.argv[1])["x"])
save_file({"y": torch.as_tensor(y).contiguous()}, sys.argv[2])
"""


@dataclass(frozen=True)
class ExportResult:
    """Result of `avt export`.

    `step` is that of the weights; `load_with` is the Python that loads the file, its lines joined by semicolons; `card` the
    path of the model card, none if none was written.
    """

    file: str
    format: str
    step: int | None
    max_abs_diff: float
    load_with: str
    card: str | None


def export(
    source: Weights, *, file_format: str = "safetensors", out: Path | None, layer: str | None, on_event: OnEvent
) -> ExportResult:
    """Write the encoder in the format of an exporter plugin, and a model card.

    Args:
        source: the weights.
        file_format: the exporter.
        out: the file or folder; left out, `encoder` with the format's ending in the run folder.
        layer: the layer that the loaded encoder returns; left out, the mean of the code, or what the format returns.
        on_event: receives progress, `Saved`, and a notice where no card was written.

    Raises:
        AvtError: if format or layer do not exist, `out` has another ending than the format, the format cannot hold the encoder,
            or another file exists.
        RunFailedError: if what was written does not load, or gives other features; it is deleted then.
    """
    exporter: Exporter = registry.build("exporter", file_format, {})
    out = _output_path(source, exporter, file_format, out)
    refuse_unwritable(out)
    encoder = restore_encoder(source)
    if layer is not None:
        encoder.check_layers([layer])
    encoder.output = layer or exporter.default_layer(encoder)
    exporter.check(encoder, encoder.output)
    about = _describe(source, layer)
    x = torch.randn(4, source.spec.channels, *source.spec.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        side = "x".join(map(str, encoder(x).shape[1:]))
    bare, output, code = Path(out.name), encoder.output, encoder.backbone.code_tap  # the card goes where the file goes
    with new_path(out) as written:
        exporter.write(encoder, written, about)
        on_event(Progress("loading back", 0, 1, "files"))
        difference, largest = compare_loaded(encoder, x, written, exporter.load_with(written))
        on_event(Progress("loading back", 1, 1, "files"))
        if not difference <= exporter.tolerance * largest:
            raise RunFailedError(f"The features of {out}, loaded back, differ by {difference:.1g}: it was deleted.")
        card = model_card(
            source,
            exporter,
            output=f"{output} ({side})",
            lines=exporter.load_with(bare),
            code=code if code != output else None,
            code_lines=exporter.load_code_with(bare, encoder) if _gives_code(exporter, encoder, x, written) else (),
        )
        if written.is_dir():
            (written / CARD).write_bytes(card)
    on_event(Saved(out))
    card_path = out / CARD if out.is_dir() else _write_card(out, card, on_event=on_event)
    lines, path = exporter.load_with(out), None if card_path is None else str(card_path)
    return ExportResult(str(out), file_format, source.step, difference, "; ".join(lines), path)


def _gives_code(exporter: Exporter, encoder: Encoder, x: torch.Tensor, path: Path) -> bool:
    """Whether what was written gives the code too, where its output is another layer."""
    output, code = encoder.output, encoder.backbone.code_tap
    lines = () if output == code else exporter.load_code_with(path, encoder)
    if not lines:
        return False
    encoder.output = code
    try:
        difference, largest = compare_loaded(encoder, x, path, lines)
        return difference <= exporter.tolerance * largest
    except RunFailedError:
        return False
    finally:
        encoder.output = output


def _output_path(source: Weights, exporter: Exporter, file_format: str, out: Path | None) -> Path:
    """The file or folder to write; an `AvtError` if its ending is another one than the format's."""
    if out is None and source.run is None:
        raise AvtError(f"{source.path} is an exported file already: give --out.")
    suffix, out = exporter.suffix, out or Path(source.run or "") / f"encoder{exporter.suffix}"
    if out.suffix != suffix:
        made = f"a file that ends in {suffix}" if suffix else "a folder without an ending"
        raise AvtError(f"The format '{file_format}' writes {made}, found --out {out}. Give --out {out.with_suffix(suffix)}.")
    return out


def _describe(source: Weights, layer: str | None) -> dict[str, Any]:
    """What is stored with the weights, see `Exporter.write`."""
    from avtcli import __version__

    own = {"objective": None, "transform": None, "bn_statistics": "shared"}  # an encoder alone sees images as they are
    spec = source.spec.model_copy(update={"layer": layer or source.spec.layer, **own})
    return {
        "version": __version__,
        "model": spec.model_dump(mode="json", exclude_none=True),
        "step": source.step,
        "config": source.about.get("config"),
    }


def _write_card(out: Path, card: bytes, *, on_event: OnEvent) -> Path | None:
    """Write the card of a single file into its folder; nothing is overwritten.

    It is README.md, which the hub shows for the folder; where another README.md is there already, such as that of an earlier
    export, it is called after its file, as in `encoder.onnx.README.md`.
    """
    for path in (out.with_name(CARD), out.with_name(f"{out.name}.{CARD}")):
        if not os.path.lexists(path) or (path.is_file() and path.read_bytes() == card):
            write_file(path, card)
            return path
    on_event(Notice(f"no model card was written: {out.with_name(CARD)} and {path} exist already"))
    return None


def compare_loaded(encoder: Encoder, x: torch.Tensor, path: Path, lines: Sequence[str]) -> tuple[float, float]:
    """Compare an encoder's features of x, (B, C, H, W), with those of its file in a new process.

    Returns:
        The largest absolute difference, and the largest absolute feature.

    Raises:
        RunFailedError: if the lines of Python do not load it there as `encoder`, or its features have another shape.
    """
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "x.safetensors", Path(folder) / "y.safetensors"
        save_file({"x": x}, inputs)
        command = [sys.executable, "-c", "\n".join(lines) + _RUN_ENCODER, str(inputs), str(outputs)]
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        ended = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
        if ended.returncode != 0:
            raise RunFailedError(f"{path} was written and does not load back: {ended.stderr.strip().splitlines()[-1:]}.")
        found, expected = load_file(outputs)["y"], encoder(x)
        if found.squeeze().shape != expected.squeeze().shape:
            shapes = f"{tuple(found.shape)}, expected {tuple(expected.shape)}"
            raise RunFailedError(f"{path} was written and does not load back: its features are {shapes}.")
        return float((found.flatten() - expected.flatten()).abs().max()), float(expected.abs().max())
