"""Everything a pretraining run is made of, built and checked before anything is written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from avtcli import registry
from avtcli.config.components import Plugin
from avtcli.config.model_spec import ModelSpec
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.contracts import ImageData, Objective, Size, TransformFamily
from avtcli.data.datasets import build_data, image_size, limited
from avtcli.data.epoch_table import batch_bounds
from avtcli.data.resident_images import EVAL_BATCH_SIZE
from avtcli.data.streaming import choose_workers
from avtcli.events import Notice, OnEvent, Started
from avtcli.geometry.family_building import build_family, plugin_names
from avtcli.models.initial_weights import build_initial, stored_backbone
from avtcli.models.siamese import AVTModel
from avtcli.runtime.devices import build_accelerator, choose_device, choose_precision, device_in_words
from avtcli.runtime.environment import describe_environment
from avtcli.runtime.execution import resolve_execution, to_channels_last
from avtcli.storage.banks import load_bank, sample_bank


@dataclass(frozen=True)
class TrainingSetup:
    """Everything a run is made of, built and checked before the first step."""

    config: PretrainConfig
    accelerator: Accelerator
    data: ImageData
    family: TransformFamily
    objective: Objective
    size: Size
    spec: ModelSpec
    net: AVTModel
    indices: Tensor
    bounds: list[tuple[int, int]]
    workers: int
    environment: dict[str, Any]

    @property
    def total_steps(self) -> int:
        """The steps to run."""
        return planned_steps(self.config, len(self.bounds))


def planned_steps(config: PretrainConfig, steps_per_epoch: int) -> int:
    """The steps that the settings ask for."""
    whole = steps_per_epoch * config.total_epochs
    return min(whole, config.max_steps or whole)


def build_training_setup(config: PretrainConfig, *, resume: bool = False, on_event: OnEvent) -> TrainingSetup:
    """Build all that a run needs; nothing is written.

    Args:
        config: the settings.
        resume: whether the weights will come from a checkpoint, so that none are needed to begin with.
        on_event: told what the run resolved to.

    Raises:
        AvtError: for the first thing that is not right.
    """
    config = _with_full_name(config, on_event=on_event)
    device = choose_device(config.device)
    config = config.model_copy(update={"precision": choose_precision(config.precision, device)})
    accelerator = build_accelerator(device, config.precision)
    data = build_data(config.dataset, config.data_dir)
    indices = limited(data.train, config.limit_train)
    bounds = batch_bounds(len(indices), config.batch_size)
    config = resolve_execution(config, device, steps=planned_steps(config, len(bounds)))
    size = image_size(data, config.augment)
    family = build_transform(config, size)
    objective: Objective = registry.build("objective", config.objective.name, config.objective.options)
    spec = ModelSpec(
        backbone=stored_backbone(config.backbone),
        channels=data.channels,
        size=size,
        mean=data.mean,
        std=data.std,
        noise_scale=objective.noise_scale,
        outputs=objective.outputs(family),
        has_log_var=objective.has_log_var,
        log_var_scale=objective.log_var_scale,
        views=objective.views,
    )
    net = build_initial(config, spec, resume=resume, on_event=on_event).to(accelerator.device)
    if config.channels_last:
        to_channels_last(net)
    plugins = [(kind, name) for kind in registry.KINDS for name in plugin_names(getattr(config, kind).name)]
    setup = TrainingSetup(
        config=config,
        accelerator=accelerator,
        data=data,
        family=family,
        objective=objective,
        size=size,
        spec=spec,
        net=net,
        indices=indices,
        bounds=bounds,
        workers=choose_workers(
            config.workers, data.train, batch_bytes=_batch_bytes(config, data, size, accelerator.num_processes)
        ),
        environment=describe_environment(
            device=device_in_words(accelerator),
            processes=accelerator.num_processes,
            plugins=plugins,
            data_fingerprint=data.fingerprint,
        ),
    )
    on_event(Started(_facts(setup)))
    return setup


def _with_full_name(config: PretrainConfig, *, on_event: OnEvent) -> PretrainConfig:
    """Name the plugin where the backbone's name is one of its variants alone, and say so."""
    given, full = config.backbone.name, registry.full_name("backbone", config.backbone.name)
    if full == given:
        return config
    on_event(Notice(f"no plugin is called '{given}': taking {full}"))
    return config.model_copy(update={"backbone": Plugin(name=full, **config.backbone.options)})


def build_transform(config: PretrainConfig, size: Size) -> TransformFamily:
    """The family that the run draws from: the plugin's own distribution, a bank's rows, or those of a bank made here.

    Raises:
        AvtError: for a bank of another family or size.
    """
    plugin = config.transform
    if config.homographies is not None:
        return load_bank(Path(config.homographies), plugin=plugin, size=size)
    if config.bank_count is not None:
        return sample_bank(plugin, size=size, count=config.bank_count, seed=config.seed).family(plugin)
    return build_family(plugin.name, plugin.options)


def _batch_bytes(config: PretrainConfig, data: ImageData, size: Size, processes: int) -> int:
    """Of one process's largest batch in uint8: of training, where a single image may join the last one, or held out."""
    return max(config.batch_size // processes + 1, EVAL_BATCH_SIZE) * data.channels * size[0] * size[1]


def _describe_execution(config: PretrainConfig) -> list[str]:
    ways = {"channels last": config.channels_last, "compiled": config.compile, "fused optimiser": config.optimizer.fused}
    return [name for name, chosen in ways.items() if chosen]


def _facts(setup: TrainingSetup) -> tuple[tuple[str, str], ...]:
    config, parameters = setup.config, sum(p.numel() for p in setup.net.parameters())
    channels, (height, width) = setup.data.channels, setup.size
    return (
        ("recipe", config.recipe),
        ("data", f"{config.dataset.name}: {len(setup.indices)} images, {channels}x{height}x{width}"),
        ("backbone", f"{config.backbone.name}, {parameters:,} parameters with the decoder"),
        ("task", f"{config.objective.name} on {config.transform.name}"),
        ("device", ", ".join([setup.environment["device"], config.precision, *_describe_execution(config)])),
        ("batch", f"{config.batch_size} over {setup.accelerator.num_processes} process(es)"),
        ("steps", f"{setup.total_steps} ({len(setup.bounds)} an epoch, {config.total_epochs} epochs)"),
        *([("readers", f"{setup.workers} processes")] if setup.data.train.images is None else []),
        ("seed", str(config.seed)),
    )
