"""What a measuring command looks at: weights, from a run or of a backbone by name, and the images that they are measured on."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from avtcli import registry
from avtcli.config.components import Augment, Plugin
from avtcli.config.model_spec import ModelSpec
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.contracts import ImageData, Size, Split
from avtcli.data.datasets import build_data, image_size
from avtcli.data.images import Images
from avtcli.data.resident_images import EVAL_BATCH_SIZE, build_images
from avtcli.data.streaming import choose_workers
from avtcli.errors import AvtError
from avtcli.events import Notice, OnEvent
from avtcli.models.initial_weights import PRETRAINED, stored_backbone
from avtcli.models.model_building import build_encoder
from avtcli.models.weights import Weights, open_weights


@dataclass(frozen=True)
class PreparedImages:
    """A data set as a network is to see it.

    Attributes:
        dataset: its name and options.
        data: the images.
        augment: resizing and crop, and for heads that train on images drawn anew, padding and flip.
        size: (height, width) after them.
    """

    dataset: Plugin
    data: ImageData
    augment: Augment
    size: Size


@dataclass(frozen=True)
class EvaluationTarget:
    """Weights, and the images that they are measured on."""

    source: Weights
    prepared: PreparedImages


def load_target(
    run: Weights | str | Path | None,
    *,
    backbone: Plugin | None = None,
    dataset: Plugin | None = None,
    data_dir: str | None = None,
    augment: Augment | None = None,
    seed: int = 0,
    on_event: OnEvent,
) -> EvaluationTarget:
    """Open weights and the images to measure them on.

    Args:
        run: a run folder, a checkpoint or an exported file, opened or by name; none for the newest run.
        backbone: a network by name instead of a run, random or with its published weights.
        dataset: the images; left out, those of the run, or the embedded ones for a backbone.
        data_dir: where they lie; left out, where the run had them.
        augment: resizing and crop; left out, the run's.
        seed: of a random backbone's weights.
        on_event: told what was taken.

    Raises:
        AvtError: for a run and a backbone together, or what does not open or fit.
    """
    if backbone is None:
        source = run if isinstance(run, Weights) else open_weights(run, on_event=on_event)
        return EvaluationTarget(source, prepare_images(dataset, source=source, data_dir=data_dir, augment=augment))
    if run is not None:
        raise AvtError(f"Both a run, {run}, and --backbone {backbone.name} were given: give one of them.")
    fallback = dataset or Plugin(name=PretrainConfig.model_fields["dataset"].default.name)
    prepared = _open(fallback, data_dir, augment or Augment())
    return EvaluationTarget(_source_of_backbone(backbone, prepared, seed=seed, on_event=on_event), prepared)


def prepare_images(
    dataset: Plugin | None, *, source: Weights, data_dir: str | None = None, augment: Augment | None = None
) -> PreparedImages:
    """Open images that a source's network takes; see `load_target`.

    Raises:
        AvtError: if the source does not say which, or their channels differ.
    """
    config = source.config
    dataset = dataset or (config.dataset if config else None)
    if dataset is None:
        raise AvtError(f"{source.path} does not say what it was trained on: give --dataset.")
    if config is not None and dataset.name == config.dataset.name and not dataset.options:
        dataset = config.dataset  # with the options that the run had
    data_dir = data_dir or (config.data_dir if config else None)
    prepared = _open(dataset, data_dir, augment or (config.augment if config else Augment()))
    if prepared.data.channels != source.spec.channels:
        raise AvtError(
            f"The backbone of {source.path} takes images of {source.spec.channels} channel(s), those of '{dataset.name}' have "
            f"{prepared.data.channels}."
        )
    return prepared


def read_images(
    split: Split,
    indices: Tensor,
    prepared: PreparedImages,
    *,
    device: torch.device,
    workers: int | None,
    batch: int = EVAL_BATCH_SIZE,
) -> Images:
    """Make images of a data set ready to be read in batches.

    Args:
        split: one of the data set's.
        indices: which of its images, (n,) int64.
        prepared: the data set.
        device: where the batches go.
        workers: processes that read images which do not fit in memory, or none for auto.
        batch: the most images in a batch.
    """
    height, width = prepared.size
    chosen = choose_workers(workers, split, batch_bytes=batch * prepared.data.channels * height * width)
    return build_images(split, indices, device=device, shorter=prepared.augment.resize, workers=chosen)


def labelled_test(prepared: PreparedImages) -> Split:
    """The test split of a data set with labels.

    Raises:
        AvtError: if there is none.
    """
    name, data = prepared.dataset.name, prepared.data
    if data.test is None or not len(data.test):
        raise AvtError(f"The data set '{name}' has no test images to report on.")
    if data.train.labels is None or data.test.labels is None:
        raise AvtError(f"The data set '{name}' has no labels, and a probe learns from labels.")
    return data.test


def _open(dataset: Plugin, data_dir: str | None, augment: Augment) -> PreparedImages:
    data = build_data(dataset, data_dir)
    return PreparedImages(dataset, data, augment, image_size(data, augment))


def _source_of_backbone(backbone: Plugin, prepared: PreparedImages, *, seed: int, on_event: OnEvent) -> Weights:
    full = registry.full_name("backbone", backbone.name)
    if full != backbone.name:
        on_event(Notice(f"no plugin is called '{backbone.name}': taking {full}"))
    backbone = Plugin(name=full, **backbone.options)
    data = prepared.data
    spec = ModelSpec(backbone=backbone, channels=data.channels, size=prepared.size, mean=data.mean, std=data.std)
    tensors = build_encoder(spec, seed=seed).state_dict()
    stated = backbone.options.get(PRETRAINED)
    weights = "random" if stated is None else f"{PRETRAINED}={stated}"
    spec = spec.model_copy(update={"backbone": stored_backbone(backbone)})
    return Weights(Path(full), None, spec, tensors, {"weights": weights})
