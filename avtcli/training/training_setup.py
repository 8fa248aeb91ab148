"""Everything a pretraining run is made of, built and checked before anything is written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from avtcli import registry
from avtcli.config.components import plugin_fields
from avtcli.config.model_spec import ModelSpec
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.contracts import ImageData, Size, TransformFamily
from avtcli.data.datasets import build_data, image_size, limited
from avtcli.data.epoch_table import batch_bounds
from avtcli.data.images import Images
from avtcli.data.resident_images import EVAL_BATCH_SIZE, build_images
from avtcli.data.streaming import choose_workers
from avtcli.data.training_loader import TrainingLoader, ViewSpec
from avtcli.errors import AvtError
from avtcli.events import OnEvent, Started
from avtcli.geometry.family_building import build_family, plugin_names
from avtcli.models.initial_weights import build_initial, stored_backbone
from avtcli.models.siamese import SiameseModel
from avtcli.runtime.devices import build_accelerator, choose_device, choose_precision, describe_device
from avtcli.runtime.environment import describe_environment
from avtcli.runtime.execution import resolve_execution, to_channels_last
from avtcli.storage.banks import load_bank, sample_bank


@dataclass(frozen=True)
class TrainingSetup:
    """Everything a run is made of."""

    config: PretrainConfig  # resolved
    accelerator: Accelerator
    data: ImageData
    family: TransformFamily
    size: Size  # (height, width) of network input
    spec: ModelSpec
    net: SiameseModel
    indices: Tensor  # of the training images, (n,) int64
    steps_per_epoch: int
    workers: int  # processes that read images
    environment: dict[str, Any]  # what the numbers may depend on besides the settings

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the run."""
        all_epochs = self.steps_per_epoch * self.config.total_epochs
        return min(all_epochs, self.config.max_steps or all_epochs)

    def open_images(self) -> Images:
        """Open the training images, resized."""
        shorter, device = self.config.augment.resize, self.accelerator.device
        return build_images(self.data.train, self.indices, device=device, shorter=shorter, workers=self.workers)

    def build_loader(self, images: Images) -> TrainingLoader:
        """Build the source of this process's batches."""
        config, rank, world = self.config, self.accelerator.process_index, self.accelerator.num_processes
        spec = ViewSpec(self.net.objective.views, self.family, config.augment, self.size, config.seed)
        return TrainingLoader(images, spec, self.net.normalise, batch_size=config.batch_size, rank=rank, world=world)


def build_training_setup(config: PretrainConfig, *, resume: bool = False, on_event: OnEvent) -> TrainingSetup:
    """Build all that a run needs, and report what it resolved to; nothing is written.

    A resumed run takes its weights from a checkpoint later, so that none are needed here.

    Raises:
        AvtError: for the first thing that is not right.
    """
    device = choose_device(config.device)
    config = config.model_copy(update={"precision": choose_precision(config.precision, device)})
    accelerator = build_accelerator(device, config.precision, on_event=on_event)
    data = build_data(config.dataset, config.data_dir)
    indices = limited(data.train, config.limit_train)
    processes, least = accelerator.num_processes, min(config.batch_size, len(indices))
    if processes > 1 and least < 2 * processes:
        raise AvtError(
            f"{processes} processes need batches of {2 * processes} images or more, two each; this run has {least}. Give fewer "
            "--processes, a larger --batch-size or more images."
        )
    steps_per_epoch = len(batch_bounds(len(indices), config.batch_size, world=processes))
    config = resolve_execution(config, device)
    size = image_size(data, config.augment)
    family = build_transform(config, size)
    spec = ModelSpec(
        backbone=stored_backbone(config.backbone),
        channels=data.channels,
        size=size,
        mean=data.mean,
        std=data.std,
        objective=config.objective,
        transform=config.transform,
    )
    net = build_initial(config, spec, family=family, resume=resume, on_event=on_event).to(accelerator.device)
    if config.channels_last:
        to_channels_last(net)
    plugins = [(kind, name) for kind in plugin_fields(PretrainConfig) for name in plugin_names(getattr(config, kind).name)]
    plugins += [("tracker", registry.split_name(spec)[0]) for spec in config.trackers]
    environment = describe_environment(
        device=describe_device(accelerator), processes=processes, plugins=plugins, data_fingerprint=data.fingerprint
    )
    largest_batch = max(config.batch_size // processes + 1, EVAL_BATCH_SIZE)  # of one process, in training or evaluation
    batch_bytes = largest_batch * data.channels * size[0] * size[1]
    workers = choose_workers(config.workers, data.train, batch_bytes=batch_bytes)
    spec = spec.model_copy(update={"noise_scale": net.encoder.noise_scale})
    setup = TrainingSetup(config, accelerator, data, family, size, spec, net, indices, steps_per_epoch, workers, environment)
    on_event(Started(_facts(setup)))
    return setup


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


def _facts(setup: TrainingSetup) -> tuple[tuple[str, str], ...]:
    config, parameters = setup.config, sum(p.numel() for p in setup.net.parameters())
    channels, (height, width) = setup.data.channels, setup.size
    execution = {"channels last": config.channels_last, "compiled": config.compile, "fused optimiser": config.optimizer.fused}
    chosen = [name for name, is_chosen in execution.items() if is_chosen]
    return (
        ("recipe", config.recipe),
        ("data", f"{config.dataset.name}: {len(setup.indices)} images, {channels}x{height}x{width}"),
        ("backbone", f"{config.backbone.name}, {parameters:,} parameters with the objective's heads"),
        ("task", f"{config.objective.name} on {config.transform.name}"),
        ("device", ", ".join([setup.environment["device"], config.precision, *chosen])),
        ("batch", f"{config.batch_size} over {setup.accelerator.num_processes} process(es)"),
        ("steps", f"{setup.total_steps} ({setup.steps_per_epoch} an epoch, {config.total_epochs} epochs)"),
        *([("readers", f"{setup.workers} processes")] if setup.data.train.images is None else []),
        ("seed", str(config.seed)),
    )
