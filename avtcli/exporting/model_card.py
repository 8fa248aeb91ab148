"""Model cards: what an exported encoder is, how it was trained and measured, and how it is loaded, in the hub's format."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from avtcli.config.components import Augment
from avtcli.contracts import Exporter
from avtcli.errors import AvtError
from avtcli.input_files import TEXT_BYTES, parse_json_object, read_bytes
from avtcli.models.weights import Weights
from avtcli.registry import split_name

CARD: Final = "README.md"
"""The name that the hub gives a model card."""
MEASURES: Final = ("loss", "mace_px", "mse_normalised", "r2", "nll", "accuracy")
"""Figures of result.json and evaluate.json that the card repeats."""


def model_card(
    source: Weights,
    exporter: Exporter,
    *,
    output: str,
    lines: Sequence[str],
    code: str | None = None,
    code_lines: Sequence[str] = (),
) -> bytes:
    """Write a model card in Markdown, with the YAML header of the Hugging Face hub; the license is left to the user.

    Args:
        source: the weights; the files of their run give the figures, those alone that were measured at the same step.
        exporter: the format.
        output: layer and shape of what the loaded encoder returns.
        lines: the Python that loads the file.
        code: the layer that is the code, where the output is another.
        code_lines: the Python that reads the code's map, where the file has it.
    """
    from avtcli import __version__

    spec, config, backbone = source.spec, source.config, source.spec.backbone.name
    facts = {"backbone": backbone}
    if config is not None:
        dataset, path = split_name(config.dataset.name)
        facts |= {
            "data set": f"{dataset}, {config.limit_train} images" if config.limit_train else dataset,
            "objective": config.objective.name,
            "transformation": config.transform.name,
            "recipe": Path(config.recipe).name,  # a path is the author's own
            "epochs": f"{config.total_epochs}",
            "batch size": f"{config.batch_size}",
            "seed": f"{config.seed}",
        }
    facts |= {"step": _reached(source)} if source.step is not None else {}
    header: dict[str, Any] = {
        "library_name": exporter.library,
        "pipeline_tag": "image-feature-extraction",
        "tags": sorted({"self-supervised-learning", "avt", *([] if config is None else [config.objective.name])}),
    }
    if config is not None and path is None:  # a folder of images is no data set of the hub
        header["datasets"] = [dataset]
    yaml = [f"{key}: {json.dumps(value)}" for key, value in header.items()]  # JSON is YAML
    title = f"{backbone} encoder" if config is None else f"{backbone}, pretrained on {dataset} without labels"
    normalise = f"{_values(spec.mean)} and standard deviation {_values(spec.std)}"
    high, wide = spec.size
    text = [
        *("---", *yaml, "# license: the license of the weights, such as mit", "---", ""),
        *(f"# {_escape(title)}", "", f"Made with avtcli {__version__}.", ""),
        *(*_table(["setting", "value"], facts.items()), ""),
        *("## Load", "", "```python", *lines, "```", ""),
        *([] if config is None else _preprocessing(config.augment)),
        f"Input: images, (B, {spec.channels}, {high}, {wide}) in float32, scaled to [0, 1] and normalised by channel with mean",
        f"{normalise}.",
        *("", f"Output: the features of {_escape(output)}.", ""),
        *([] if code is None else [f"The code, on which the network was trained, is another layer: {_escape(code)}.", ""]),
        *(["Its map:", "", "```python", *code_lines, "```", ""] if code_lines else []),
        *_figures(source),
    ]
    return "\n".join(text).rstrip("\n").encode() + b"\n"


def _preprocessing(augment: Augment) -> list[str]:
    """How images are brought to the size of the input; nothing where they have it."""
    steps = [f"shorter side resized to {augment.resize} px"] if augment.resize else []
    steps += [f"centre crop {augment.crop} px"] if augment.crop else []
    return [f"Preprocessing: {', '.join(steps)}.", ""] if steps else []


def _reached(source: Weights) -> str:
    """The step of the weights, with that at which their epochs end where it is a later one."""
    an_epoch, config = source.about.get("steps_per_epoch"), source.config
    planned = config.total_epochs * an_epoch if config is not None and isinstance(an_epoch, int) else None
    return f"{source.step}" if planned in (None, source.step) else f"stopped at step {source.step} of {planned}"


def _figures(source: Weights) -> Iterator[str]:
    """The figures of a run that were measured at the step of the weights."""
    if source.run is None:
        return
    result, evaluated = (_read(source.run / name) for name in ("result.json", "evaluate.json"))
    kept = [
        (name, f"{found[name]:.4g}", where)
        for found, key, where in ((result, "steps", "training"), (evaluated, "step", "evaluation"))
        for name in MEASURES
        if found.get(key) == source.step and isinstance(found.get(name), int | float)
    ]
    if kept:
        yield from ("## Pretraining", "", *_table(["figure", "value", "of"], kept), "")
    probes = [_read(path) for path in sorted((source.run / "probes").glob("*.json"))]
    rows = [row for probe in probes if probe.get("step") == source.step for row in _accuracies(probe)]
    if rows:
        columns = ["data set", "layer", "pooling", "head", "training images", "seed", "top-1 %", "top-1 %, random weights"]
        yield from ("## Probes on frozen features", "", *_table(columns, rows), "")


def _accuracies(probe: Mapping[str, Any]) -> Iterator[list[str]]:
    """A row for each head of a probe, with that on random weights."""
    keys = ("dataset", "layer", "pool", "head", "train_images", "seed")

    def found(part: str) -> dict[tuple[str, ...], str]:
        return {tuple(str(result[key]) for key in keys): f"{result['top1']:.2f}" for result in probe.get(part, ())}

    with contextlib.suppress(KeyError, TypeError, ValueError):  # the file of another version, or edited by hand
        baseline = found("baseline")
        for (dataset, *others), top1 in found("results").items():
            yield [split_name(dataset)[0], *others, top1, baseline.get((dataset, *others), "")]


def _read(path: Path) -> dict[str, Any]:
    """A result file of a run; empty if it is missing or damaged."""
    try:
        return parse_json_object(read_bytes(path, limit=TEXT_BYTES), path)
    except AvtError:
        return {}


def _table(columns: Sequence[str], rows: Any) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(_escape(cell) for cell in line) + " |" for line in lines]


def _values(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _escape(text: str) -> str:
    """A text on one line that does not end a table's cell."""
    return " ".join(text.split()).replace("|", "\\|")
