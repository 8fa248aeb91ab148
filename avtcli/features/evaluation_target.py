"""Evaluation targets: weights, from a run or of a backbone by name, and the images to evaluate them on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from avtcli import registry
from avtcli.config.components import Augment, Plugin
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.config.resolution import resolve_plugin
from avtcli.contracts import ImageData, Size, Split
from avtcli.data.bad_images import BadImages
from avtcli.data.datasets import build_data, check_data, describe_data, image_size, with_sizes
from avtcli.data.images import Images
from avtcli.data.resident_images import EVAL_BATCH_SIZE, build_images, find_bad_images
from avtcli.errors import AvtError, BadImageError
from avtcli.events import Notice, OnEvent, ignore
from avtcli.models.initial_weights import build_weights
from avtcli.models.weights import Weights, open_weights
from avtcli.runtime.devices import Context
from avtcli.runtime.launcher import read_launch
from avtcli.runtime.processes import check_agreement, failing_together, map_shared
from avtcli.runtime.reader_workers import choose_workers

T = TypeVar("T")


@dataclass(frozen=True)
class PreparedImages:
    """A data set with its preprocessing; `size` is (height, width) after resizing and crop, `max_bad` the share left out."""

    dataset: Plugin
    data: ImageData
    augment: Augment
    size: Size
    max_bad: float = PretrainConfig.model_fields["max_bad_fraction"].default


@dataclass(frozen=True)
class EvaluationTarget:
    """Weights and the images to evaluate them on."""

    source: Weights
    prepared: PreparedImages


@dataclass(frozen=True)
class ImagePart:
    """Images of one split that a measurement reads: the split's name, and indices into it, (n,) int64."""

    name: str
    split: Split
    indices: Tensor
    prepared: PreparedImages


def measure_usable(parts: Sequence[ImagePart], measure: Callable[[Sequence[ImagePart]], T], *, context: Context) -> T:
    """Measure on images, and if one of them cannot be used again without all of these, which a notice reports.

    Raises:
        AvtError: naming them, if more than `max_bad` of a part, and more than one, cannot be used.
    """
    try:
        return measure(parts)
    except BadImageError:
        context.on_event(Notice("an image cannot be used: all are read once, to begin again without those that cannot"))
    return measure([_leave_out_bad(part, context) for part in parts])


def _leave_out_bad(part: ImagePart, context: Context) -> ImagePart:
    if part.split.images is not None:
        return part
    prepared, workers = part.prepared, _workers(part.split, part.prepared, context, EVAL_BATCH_SIZE)

    def find(rows: Tensor) -> dict[int, str]:
        return find_bad_images(part.split, rows, prepared.size, shorter=prepared.augment.resize, workers=workers)

    bad = BadImages(part.split, part.name, used=len(part.indices), max_fraction=prepared.max_bad)
    shares = map_shared(context.group, find, part.indices.tensor_split(read_launch().world))
    bad.add({index: reason for found in shares for index, reason in found.items()})
    if bad.reasons:
        context.on_event(Notice(bad.left_out()))
    return replace(part, indices=part.indices[bad.usable(part.indices)])


def open_target(
    arguments: Mapping[str, Any], components: Mapping[str, Any], *, on_event: OnEvent
) -> tuple[EvaluationTarget, Context]:
    """Open weights and images as a command's arguments say, by name, with its components; see `load_target`."""
    context = Context.build(
        device=arguments["device"], workers=arguments["workers"], seed=arguments.get("seed", 0), on_event=on_event
    )
    with failing_together(context.group):
        places = {name: arguments[name] for name in ("init_from", "data_dir")}
        target = load_target(arguments["run"], **places, context=context, **components)
    asked = {name: value for name, value in arguments.items() if name not in ("run", *places)}
    check_agreement(context.group, {**asked, **identify(target.source, [target.prepared])})
    return target, context


def identify(source: Weights, prepared: Sequence[PreparedImages]) -> dict[str, object]:
    """State the weights, and the images by their fingerprints, for `check_agreement`."""
    return {"RUN": str(source), "fingerprint of the images": [part.data.fingerprint for part in prepared]}


def load_target(
    run: Weights | str | Path | None,
    *,
    backbone: Plugin | None = None,
    init_from: str | Path | None = None,
    dataset: Plugin | None = None,
    data_dir: str | None = None,
    augment: Augment | None = None,
    context: Context,
) -> EvaluationTarget:
    """Open weights and images.

    Args:
        run: a run folder, a checkpoint or an exported file, opened or by path; none means the newest run.
        backbone: a network by name instead of a run; its random weights follow from the context's seed.
        init_from: weights that the backbone starts from, see `load_matching`.
        dataset: the images; default: the run's, or the bundled ones for a backbone.
        data_dir: their folder; default: the run's.
        augment: resizing and crop; default: the run's.
        context: seed, and receiver of notices.

    Raises:
        AvtError: for both a run and a backbone, weights without one, or what cannot be opened or does not fit.
    """
    if backbone is None and init_from is not None:
        raise AvtError(f"--init-from {init_from} gives weights to a network that --backbone NAME names: give that too.")
    if backbone is None:
        source = run if isinstance(run, Weights) else open_weights(run, on_event=context.on_event)
        prepared = prepare_images(dataset, source=source, data_dir=data_dir, augment=augment, on_event=context.on_event)
        return EvaluationTarget(source, prepared)
    if run is not None:
        raise AvtError(f"Both a run, {run}, and --backbone {backbone.name} were given: give one of them.")
    dataset = resolve_plugin("dataset", dataset or Plugin(name=PretrainConfig.model_fields["dataset"].default.name))
    data = _open(dataset, data_dir, on_event=context.on_event)
    augment = with_sizes(data, augment or Augment(), natural=registry.input_size(backbone.name), measured=True)
    prepared = PreparedImages(dataset, data, augment, image_size(data, augment))
    source = build_weights(backbone, init_from, data=data, size=prepared.size, seed=context.seed, on_event=context.on_event)
    return EvaluationTarget(source, prepared)


def prepare_images(
    dataset: Plugin | None,
    *,
    source: Weights,
    data_dir: str | None = None,
    augment: Augment | None = None,
    on_event: OnEvent = ignore,
) -> PreparedImages:
    """Open images for a network, by default in the size that it was trained on; see `load_target`."""
    config, given, spec = source.config, dataset, source.spec
    if source.run is None and given is None and config is not None and _reads_files(config.dataset.name):
        raise AvtError(f"{source.path} was trained on '{config.dataset.name}'; a file does not choose images: give --dataset.")
    dataset = dataset or (config.dataset if config else None)
    if dataset is None:
        raise AvtError(f"{source.path} does not state its training data: give --dataset.")
    options, dataset = dataset.options, resolve_plugin("dataset", dataset)
    if config is not None and dataset.name == config.dataset.name and not options:
        dataset = config.dataset  # with the run's options
    measured = {"channels": spec.channels, "mean": list(spec.mean), "std": list(spec.std)}
    taken = {key: value for key, value in measured.items() if key not in options}
    if dataset.options.get("channels") == "auto":  # chosen from the images, where the network does not choose
        dataset, kind = dataset.model_copy(update=taken), "grey" if spec.channels == 1 else "RGB"
        on_event(Notice(f"images are read in {kind}, as {source.path} was trained"))
    data_dir = data_dir or (config.data_dir if config and source.run is not None else None)
    data = _open(dataset, data_dir, on_event=on_event)
    if given is None and source.run is not None:
        stored, advice = source.about.get("environment", {}).get("data_fingerprint"), "Give --dataset to use other images."
        data = check_data(data, run=source.run, fingerprint=stored, advice=advice)
    if data.channels != spec.channels:
        raise AvtError(
            f"The backbone of {source.path} takes images of {spec.channels} channel(s), those of '{dataset.name}' have "
            f"{data.channels}."
        )
    augment = augment or _sizes_of(source, data, config.augment if config else Augment(), on_event=on_event)
    augment = with_sizes(data, augment, natural=registry.InputSize(min(spec.size)), measured=True)
    prepared = PreparedImages(dataset, data, augment, image_size(data, augment))
    return prepared if config is None or given is not None else replace(prepared, max_bad=config.max_bad_fraction)


def _sizes_of(source: Weights, data: ImageData, augment: Augment, *, on_event: OnEvent) -> Augment:
    """Return the run's augmentation, or resizing and crop to its size where it had none and these images have others."""
    height, width = source.spec.size
    if augment.crop is not None or augment.resize is not None or data.size == (height, width) or height != width:
        return augment
    on_event(Notice(f"images are resized and cropped to {width} px, the size that {source.path} was trained on"))
    return augment.model_copy(update={"resize": width, "crop": width})


def _reads_files(dataset: str) -> bool:
    """Whether a data set has a place, given or downloaded to, and does not come with its plugin."""
    return registry.split_name(dataset)[1] is not None or registry.takes("dataset", dataset, "data_dir")


def read_images(
    split: Split, indices: Tensor, prepared: PreparedImages, *, context: Context, batch: int = EVAL_BATCH_SIZE
) -> Images:
    """Prepare images of a split, by indices (n,) int64, for reading on the context's device in batches of at most `batch`."""
    workers = _workers(split, prepared, context, batch)
    return build_images(split, indices, device=context.device, shorter=prepared.augment.resize, workers=workers)


def _workers(split: Split, prepared: PreparedImages, context: Context, batch: int) -> int:
    height, width = prepared.size
    return choose_workers(context.workers, split, batch_bytes=batch * prepared.data.channels * height * width)


def check_labels(prepared: PreparedImages) -> None:
    """Refuse a data set without labels."""
    data = prepared.data
    if data.train.labels is None or (data.test is not None and data.test.labels is None):
        raise AvtError(
            f"'{prepared.dataset.name}' has no labels, which a probe needs: class folders, as DIR/CLASS or DIR/train/CLASS and "
            "DIR/test/CLASS, or a column `label` of a list."
        )


def _open(dataset: Plugin, data_dir: str | None, *, on_event: OnEvent) -> ImageData:
    data = build_data(dataset, data_dir, on_event=on_event)
    for note in describe_data(data):
        on_event(Notice(note))
    return data
