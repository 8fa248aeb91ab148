"""Everything a pretraining run is made of, built and checked before anything is written."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torch.distributed import ProcessGroup

from avtcli import registry
from avtcli.config.components import plugin_fields
from avtcli.config.model_spec import ModelSpec
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.config.run_length import RunLength, within_budget
from avtcli.config.value_text import flat_settings
from avtcli.contracts import ImageData, Size, TransformFamily
from avtcli.data.bad_images import BadImages, most_bad
from avtcli.data.datasets import build_data, check_data, describe_data, image_size, with_sizes
from avtcli.data.epoch_table import batch_count, check_shares
from avtcli.data.held_out import HELD_OUT_COUNT, Partition, contains, limited, partition
from avtcli.data.images import Images
from avtcli.data.resident_images import EVAL_BATCH_SIZE, build_images, still_bad
from avtcli.data.training_loader import TrainingLoader, ViewSpec
from avtcli.events import Notice, OnEvent
from avtcli.geometry.family_building import build_family
from avtcli.models.initial_weights import build_initial, stored_backbone
from avtcli.models.layers import synchronise_batch_norms
from avtcli.models.siamese import SiameseModel
from avtcli.plugin_options import plain, sum_parts
from avtcli.runtime.devices import build_accelerator, choose_device, choose_precision, describe_device
from avtcli.runtime.environment import describe_environment
from avtcli.runtime.execution import resolve_execution, to_channels_last
from avtcli.runtime.processes import build_cpu_group, check_agreement, failing_together
from avtcli.runtime.reader_workers import choose_workers, prefetched_bytes, require_workers
from avtcli.storage.banks import load_bank, sample_bank
from avtcli.storage.checkpoints import list_checkpoints
from avtcli.storage.run_data import read_bad_images
from avtcli.storage.run_folders import read_env


@dataclass(frozen=True)
class TrainingSetup:
    """Everything a run is made of."""

    config: PretrainConfig  # resolved
    accelerator: Accelerator
    group: ProcessGroup | None  # in which several processes exchange wishes and results
    data: ImageData
    family: TransformFamily
    size: Size  # (height, width) of network input
    spec: ModelSpec
    net: SiameseModel
    parts: Partition
    indices: Tensor  # of the images that it trains on, (n,) int64, in the training split
    monitored: Tensor  # and of those that it is evaluated on
    steps_per_epoch: int
    workers: int  # processes that read training images
    eval_workers: int  # and those that read images for evaluation meanwhile
    bad_images: BadImages  # that cannot be used
    continues: bool  # from a checkpoint, which weights and optimiser come from
    environment: dict[str, Any]  # what the numbers may depend on besides the settings

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the run."""
        return self.length.steps

    @property
    def length(self) -> RunLength:
        """Epochs and steps of the run."""
        return RunLength.of(self.config, len(self.indices), self.steps_per_epoch, monitored=len(self.monitored))

    @property
    def evaluated_on(self) -> str:
        """State the images that the run is evaluated on: held-out ones, or training images where it trains on some of them."""
        kind = "training" if contains(self.indices, self.monitored).any() else "held-out"
        return f"{int(self.bad_images.usable(self.monitored).sum())} {kind} images"

    def open_images(self) -> Images:
        """Open the images to train on, resized."""
        return self._open(self.indices, self.workers)

    def open_for_evaluation(self, indices: Tensor) -> Images:
        """Open images of the training split, resized, by indices (n,) int64."""
        return self._open(indices, self.eval_workers)

    def _open(self, indices: Tensor, workers: int) -> Images:
        split, shorter, device = self.data.train, self.config.augment.resize, self.accelerator.device
        return build_images(split, indices, device=device, shorter=shorter, workers=workers, bad=self.bad_images)

    def build_loader(self, images: Images) -> TrainingLoader:
        """Build the source of this process's batches."""
        config, accelerator, net = self.config, self.accelerator, self.net
        return TrainingLoader(
            images,
            ViewSpec(net.objective.views, self.family, config.augment, self.size, net.standardise, config.seed),
            batch_size=config.batch_size,
            device=accelerator.device,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            capture=bool(config.capture),
        )


def build_training_setup(
    config: PretrainConfig, *, run: Path | None = None, resume: bool = False, on_event: OnEvent
) -> TrainingSetup:
    """Build all that a run needs; nothing is written.

    For a resumed run, with its folder, the images are those that it listed, without the ones that it could not use. Where it
    has a checkpoint, its weights come from that later, so that none are needed here.

    Raises:
        AvtError: for the first thing that is not right in any process, or settings or images that differ among them.
    """
    device = choose_device(config.device)
    config = config.model_copy(update={"precision": choose_precision(config.precision, device)})
    accelerator = build_accelerator(device, config.precision, on_event=on_event)
    group = build_cpu_group(accelerator)
    with failing_together(group):
        setup = _build(config, accelerator, group, run=run if resume else None, on_event=on_event)
    settings = setup.config.model_dump(mode="json", exclude={"data_dir"})  # machines may have the same images elsewhere
    images = {"fingerprint of the images": setup.data.fingerprint, "number of images": len(setup.indices)}
    check_agreement(group, {**flat_settings(settings), **images, "--out": run, "--resume": setup.continues})
    return setup


def _build(
    config: PretrainConfig, accelerator: Accelerator, group: ProcessGroup | None, *, run: Path | None, on_event: OnEvent
) -> TrainingSetup:
    device = accelerator.device.type
    config, data = _open_data(config, run, on_event=on_event)
    parts = partition(data)
    indices, monitored = limited(parts.train, config.limit_train), parts.to_monitor(HELD_OUT_COUNT)
    processes = accelerator.num_processes
    check_shares(len(indices), config.batch_size, world=processes)
    steps_per_epoch = batch_count(len(indices), config.batch_size, world=processes)
    config = within_budget(config, len(indices), on_event=on_event)
    planned = RunLength.of(config, len(indices), steps_per_epoch, monitored=len(monitored)).steps
    config = resolve_execution(config, device, processes=processes, steps=planned, on_event=on_event)
    size = image_size(data, config.augment)
    family, spec = build_transform(config, size), _specify(config, data, size)
    continues = run is not None and bool(list_checkpoints(run / "checkpoints"))
    net = build_initial(config, spec, family=family, resume=continues, on_event=on_event).to(accelerator.device)
    net.checkpoint_activations = config.checkpoint_activations
    if config.channels_last:
        to_channels_last(net)
    if config.sync_bn and processes > 1:
        synchronise_batch_norms(net.encoder)
    used = [(kind, part) for kind in plugin_fields(PretrainConfig) for part in sum_parts(kind, getattr(config, kind).name)]
    used += [("tracker", spec) for spec in config.trackers]
    read = len(indices) + int((~contains(indices, monitored)).sum())
    plugins = [(kind, registry.split_name(spec)[0]) for kind, spec in used]
    environment = describe_environment(
        device=describe_device(accelerator), processes=processes, plugins=plugins, data_fingerprint=data.fingerprint
    )
    return TrainingSetup(
        config,
        accelerator,
        group,
        data,
        family,
        size,
        spec.model_copy(update={"noise_scale": net.encoder.noise_scale}),
        net,
        parts,
        indices,
        monitored,
        steps_per_epoch,
        *_choose_workers(config, data, size, processes),
        _bad_images(config, data, size, used=read, run=run, on_event=on_event),
        continues,
        environment,
    )


def _specify(config: PretrainConfig, data: ImageData, size: Size) -> ModelSpec:
    return ModelSpec(
        backbone=stored_backbone(config.backbone),
        channels=data.channels,
        size=size,
        mean=data.mean,
        std=data.std,
        objective=config.objective,
        transform=config.transform,
        bn_statistics=config.model.bn_statistics,
    )


def _open_data(config: PretrainConfig, run: Path | None, *, on_event: OnEvent) -> tuple[PretrainConfig, ImageData]:
    """Open the images to pretrain on, and complete the settings with what is chosen from them, and say it."""
    data = build_data(config.dataset, config.data_dir, on_event=on_event)
    if run is not None:
        fingerprint = read_env(run).get("data_fingerprint")
        advice = "Restore them, or point --dataset or --data-dir to where they are; `--init-from RUN` begins a new run."
        data = check_data(data, run=run, fingerprint=fingerprint, advice=advice)
    for note in describe_data(data):
        on_event(Notice(note))
    if data.unlabelled is not None:
        data = replace(data, train=data.unlabelled, unlabelled=None)
    augment = with_sizes(data, config.augment, natural=registry.input_size(config.backbone.name))
    if augment != config.augment:
        sides = f"resized to {augment.resize} px, cropped to {augment.crop} px"
        on_event(Notice(f"sizes: {sides}, for {config.backbone.name} (`-o augment.resize=N -o augment.crop=N` sets others)"))
    dataset = config.dataset.model_copy(update=plain(data.chosen))
    return config.model_copy(update={"dataset": dataset, "augment": augment}), data


def _choose_workers(config: PretrainConfig, data: ImageData, size: Size, processes: int) -> tuple[int, int]:
    """The readers of training batches, which must have room, and those of evaluation batches, which take what is left."""
    image_bytes = data.channels * size[0] * size[1]
    batch_bytes = (config.batch_size // processes + 2) * image_bytes  # of one process; a rest may join the last batch
    workers = require_workers(config.workers, data.train, batch_bytes=batch_bytes)
    reserved = prefetched_bytes(workers, batch_bytes=batch_bytes)
    eval_bytes = EVAL_BATCH_SIZE * image_bytes
    return workers, choose_workers(config.workers, data.train, batch_bytes=eval_bytes, reserved=reserved)


def _bad_images(
    config: PretrainConfig, data: ImageData, size: Size, *, used: int, run: Path | None, on_event: OnEvent
) -> BadImages:
    """The images that the run, which reads `used` ones, cannot use; those of a resumed run are known.

    If more are known than may be, they are tried again: the disk was away, or they were repaired.
    """
    fraction, split, shorter = config.max_bad_fraction, data.train, config.augment.resize
    found = [] if run is None else [bad for bad in read_bad_images(run) if bad.split == "train"]
    known = still_bad(split, found, size, shorter=shorter) if len(found) > most_bad(used, fraction) else found
    if repaired := {bad.name for bad in found} - {bad.name for bad in known}:
        on_event(Notice(f"{len(repaired)} images that could not be used before can be used now"))
    skip, own = config.on_bad_image == "skip", config.dataset.name
    bad = BadImages(split, "train", used=used, max_fraction=fraction, skip=skip, known=known, dataset=own)
    bad.repaired = frozenset(repaired)
    return bad


def build_transform(config: PretrainConfig, size: Size) -> TransformFamily:
    """Build the family that the run samples from: the plugin's, a bank's rows, or those of a bank made here.

    Raises:
        AvtError: for a bank of another family or size.
    """
    plugin = config.transform
    if config.homographies is not None:
        return load_bank(Path(config.homographies), plugin=plugin, size=size)
    if config.bank_count is not None:
        return sample_bank(plugin, size=size, count=config.bank_count, seed=config.seed).family(plugin)
    return build_family(plugin.name, plugin.options)
