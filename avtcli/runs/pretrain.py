"""Pretraining: THE loop, top to bottom."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from avtcli import registry
from avtcli.config import ModelSpec, PretrainConfig, to_toml
from avtcli.contracts import ImageData, Objective, Size, Target, TransformFamily
from avtcli.core.augment import to_float
from avtcli.core.keyed import keyed_generator, seed_of
from avtcli.core.metrics import corner_error
from avtcli.core.model import AVTModel
from avtcli.core.schedule import cosine_rate, piecewise_rate
from avtcli.errors import AvtError, InterruptedRunError, RunFailedError
from avtcli.runs.checkpoint import clear_leftovers, load_newest, save_checkpoint
from avtcli.runs.devices import Stop, build_accelerator, choose_device, choose_precision, device_in_words, stop_signals
from avtcli.runs.events import Notice, OnEvent, Progress, Saved, Started
from avtcli.runs.files import refuse_existing, replace_file, to_json
from avtcli.runs.homographies import draw_bank, load_bank
from avtcli.runs.loaders import (
    EpochTable,
    batch_bounds,
    build_data,
    build_images,
    draw_epoch,
    image_size,
    limited,
    plain_batches,
    training_batches,
)
from avtcli.runs.loading import build_model, load_weights
from avtcli.runs.rundir import MetricsLog, create_run, describe_environment, environment_changes, lock_run, read_env
from avtcli.runs.streaming import choose_workers

LOG_EVERY = 20  # steps between readings of the losses from the device
MACE_COUNT = 1000  # held-out images for the corner error
MACE_BATCH = 250


@dataclass(frozen=True)
class PretrainResult:
    """What `avt pretrain` reports."""

    run: str
    steps: int
    epochs: float
    seconds: float
    loss: float | None
    mace_px: float | None
    recipe: str


@dataclass(frozen=True)
class Job:
    """Everything a run is made of, built and checked before the first step."""

    config: PretrainConfig
    accelerator: Accelerator
    data: ImageData
    family: TransformFamily
    objective: Objective
    size: Size
    spec: ModelSpec
    net: AVTModel
    numbers: Tensor
    bounds: list[tuple[int, int]]
    workers: int
    environment: dict[str, Any]

    @property
    def total_steps(self) -> int:
        """The steps to run."""
        whole = len(self.bounds) * self.config.total_epochs
        return min(whole, self.config.max_steps or whole)


def prepare(config: PretrainConfig, *, on_event: OnEvent) -> Job:
    """Build all that a run needs; nothing is written.

    Raises:
        AvtError: for the first thing that is not right.
    """
    device = choose_device(config.device)
    accelerator = build_accelerator(device, choose_precision(config.precision, device))
    data = build_data(config.dataset, config.data_dir)
    size = image_size(data, config.augment)
    family = build_family(config, size)
    objective: Objective = registry.build("objective", config.objective.name, config.objective.options)
    spec = ModelSpec(
        backbone=config.backbone,
        channels=data.channels,
        size=size,
        mean=data.mean,
        std=data.std,
        noise_scale=objective.noise_scale,
        outputs=objective.outputs(family),
        has_log_var=objective.has_log_var,
        log_var_scale=objective.log_var_scale,
    )
    net = build_model(spec, seed=config.seed).to(accelerator.device)
    numbers = limited(data.train, config.limit_train)
    plugins = [(kind, getattr(config, kind).name) for kind in registry.KINDS]
    job = Job(
        config=config,
        accelerator=accelerator,
        data=data,
        family=family,
        objective=objective,
        size=size,
        spec=spec,
        net=net,
        numbers=numbers,
        bounds=batch_bounds(len(numbers), config.batch_size),
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
    on_event(Started(_facts(job)))
    return job


def build_family(config: PretrainConfig, size: Size) -> TransformFamily:
    """The family that the run draws from: the plugin's own law, a bank's rows, or those of a bank made here.

    Raises:
        AvtError: for a bank of another family or size.
    """
    plugin = config.transform
    if config.homographies is not None:
        return load_bank(Path(config.homographies), plugin=plugin, size=size)
    if config.bank_count is not None:
        return draw_bank(plugin, size=size, count=config.bank_count, seed=config.seed).family(plugin)
    family: TransformFamily = registry.build("transform", plugin.name, plugin.options)
    return family


def _batch_bytes(config: PretrainConfig, data: ImageData, size: Size, processes: int) -> int:
    """Of one process's largest batch in uint8: of training, where a single image may join the last one, or held out."""
    return max(config.batch_size // processes + 1, MACE_BATCH) * data.channels * size[0] * size[1]


def _facts(job: Job) -> tuple[tuple[str, str], ...]:
    config, parameters = job.config, sum(p.numel() for p in job.net.parameters())
    channels, (height, width) = job.data.channels, job.size
    return (
        ("recipe", config.recipe),
        ("data", f"{config.dataset.name}: {len(job.numbers)} images, {channels}x{height}x{width}"),
        ("backbone", f"{config.backbone.name}, {parameters / 1e6:.2f} M parameters with the decoder"),
        ("task", f"{config.objective.name} on {config.transform.name}"),
        ("device", f"{job.environment['device']}, {job.accelerator.mixed_precision.replace('no', 'fp32')}"),
        ("batch", f"{config.batch_size} over {job.accelerator.num_processes} process(es)"),
        ("steps", f"{job.total_steps} ({len(job.bounds)} an epoch, {config.total_epochs} epochs)"),
        *([("readers", f"{job.workers} processes")] if job.data.train.images is None else []),
        ("seed", str(config.seed)),
    )


def pretrain(config: PretrainConfig, *, run: Path, resume: bool, on_event: OnEvent) -> PretrainResult:
    """Pretrain into a run folder.

    Args:
        config: the settings; for a resumed run its own.
        run: the folder, new, or for a resumed run the one to go on in.
        resume: whether to go on from the newest checkpoint.
        on_event: told what happens, in the main process only.

    Raises:
        AvtError: before anything is written, if something is not right.
        RunFailedError: if the loss is not finite, or the disk fails; the last checkpoint stands.
        InterruptedRunError: after a signal, with the state saved.
    """
    if not resume:
        refuse_existing(run)
    with stop_signals() as stop:
        job = prepare(config, on_event=on_event)
        with _run_folder(job, run, resume=resume):
            return _train(job, run, resume=resume, stop=stop, on_event=on_event)


@contextmanager
def _run_folder(job: Job, run: Path, *, resume: bool) -> Iterator[None]:
    """Make the folder, or take up the one that is there, and hold its lock; the main process alone."""
    if not job.accelerator.is_main_process:
        job.accelerator.wait_for_everyone()
        yield
        return
    if not resume:
        create_run(run, to_toml(job.config), job.environment)
    lock = lock_run(run)
    try:
        clear_leftovers(run / "checkpoints")
        job.accelerator.wait_for_everyone()
        yield
    finally:
        lock.release()


def _train(job: Job, run: Path, *, resume: bool, stop: Stop, on_event: OnEvent) -> PretrainResult:
    config, accelerator, net = job.config, job.accelerator, job.net
    main, rank, world = accelerator.is_main_process, accelerator.process_index, accelerator.num_processes
    device = accelerator.device
    metrics, began = MetricsLog(run / "metrics.jsonl"), time.monotonic()

    # weights, optimiser, and the step to begin at
    optimizer = _build_optimizer(job)
    start, seconds_before = _restore(job, run, optimizer, metrics, on_event=on_event) if resume else (0, 0.0)
    model = accelerator.prepare(net)
    if accelerator.scaler is not None:
        optimizer = accelerator.prepare(optimizer)
    step_model = torch.compile(model, dynamic=False) if config.compile else model
    model.train()

    # images, and the shape of the noise
    images = build_images(job.data.train, job.numbers, device=device, shorter=config.augment.resize, workers=job.workers)
    code_shape = net.encoder.code_shape(job.spec.channels, job.size) if job.spec.noise_scale else None

    def save(step: int) -> None:
        accelerator.wait_for_everyone()
        if main:
            seconds = seconds_before + time.monotonic() - began
            on_event(Saved(_save(job, run, step, optimizer, seconds=seconds)))
        accelerator.wait_for_everyone()

    pending: list[tuple[dict[str, Any], Tensor]] = []
    part_names: list[str] = []

    def flush() -> None:
        """Read the losses of the last steps from the device, all at once, and write them down."""
        if not pending:
            return
        values = accelerator.reduce(torch.stack([row for _, row in pending]), "sum").tolist()
        lines = [{**about, **dict(zip(part_names, row, strict=True))} for (about, _), row in zip(pending, values, strict=True)]
        pending.clear()
        bad = next((line for line in lines if line["loss"] - line["loss"] != 0), None)
        if bad is not None:
            raise RunFailedError(
                f"The loss was {bad['loss']} at step {bad['step']}. The last checkpoint in {run}/checkpoints is from before; "
                f"try a new run with a lower rate: `--lr {config.schedule.peak / 3:.1g}`."
            )
        if main:
            metrics.append(lines)
            done = lines[-1]["step"]
            rate = (done - start) / (time.monotonic() - loop_began)
            wait = waited / (time.monotonic() - loop_began)
            detail = f"loss {lines[-1]['loss']:.4f}  {rate * config.batch_size:.0f} pairs/s  data wait {wait:.0%}"
            on_event(Progress("pretraining", done, job.total_steps, "steps", detail))

    if start == 0 and not resume:
        save(0)  # a disk that cannot hold a checkpoint fails here, not after an hour
    saved_at, waited, table, table_epoch = time.monotonic(), 0.0, None, -1
    loop_began = time.monotonic()
    if main:
        on_event(Progress("pretraining", start, job.total_steps, "steps"))

    for step in range(start, job.total_steps):
        epoch, index = divmod(step, len(job.bounds))

        # the batch: this process's rows of the epoch's table, both views on the device
        asked = time.monotonic()
        if table is None or epoch != table_epoch:
            table, table_epoch = draw_epoch(config.seed, epoch, len(images), job.family, job.size), epoch
            left = job.bounds[index : index + job.total_steps - step]  # told at once, so that they can be read ahead
            batches = [table.order[first:last][rank::world] for first, last in left]
            reading = training_batches(images, batches, table, config.augment, job.size)
        first, last = job.bounds[index]
        rows = table.order[first:last][rank::world]
        x, y, target = _views(job, next(reading), rows, table)
        waited += time.monotonic() - asked

        # one step
        rates = set_rates(optimizer, job, step)
        torch.default_generator.manual_seed(seed_of(config.seed, step, "model", rank))  # dropout and drop path
        noise = [_noise(job, step, view, last - first, code_shape, rank, world) for view in ("original", "moved")]
        whole = last - first == config.batch_size
        mean, log_var = (step_model if whole else model)(net.normalise(x), net.normalise(y), *noise)
        verdict = job.objective.loss(mean, log_var, target)
        accelerator.backward(verdict.per_sample.sum() * (world / (last - first)))
        optimizer.step()
        optimizer.zero_grad()

        # what is worth keeping
        parts = {"loss": verdict.per_sample, **verdict.parts}
        part_names = list(parts)
        about = {"step": step + 1, "epoch": epoch, "lr": rates[0]}
        pending.append((about, torch.stack([part.detach().float().sum() for part in parts.values()]) / (last - first)))
        ended = index + 1 == len(job.bounds)
        due = main and time.monotonic() - saved_at > 60 * config.save_every
        signalled, due = _agree(accelerator, stop.number, due)
        if ended or signalled or due or (step + 1 - start) % LOG_EVERY == 0 or step + 1 == job.total_steps:
            flush()
        if signalled or due or step + 1 == job.total_steps:
            save(step + 1)
            saved_at = time.monotonic()
        if signalled and step + 1 < job.total_steps:
            raise InterruptedRunError(
                f"Stopped by signal {signalled} after step {step + 1}; the state is saved. Go on with:\n"
                f"  avt pretrain --resume {run}",
                signalled,
            )
    return _finish(job, run, metrics, seconds=seconds_before + time.monotonic() - began)


def _views(job: Job, images: Tensor, rows: Tensor, table: EpochTable) -> tuple[Tensor, Tensor, Target]:
    """Both views of a batch of uint8 images, and what tells them apart."""
    device = job.accelerator.device
    x = to_float(images)
    parameters = _to(table.parameters[rows], device)
    y = job.family.apply(x, parameters)
    return x, y, Target(_to(table.targets[rows], device).float(), parameters, job.family, job.size)


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, torch.float32 if device.type == "mps" else tensor.dtype)  # MPS has no float64


def _noise(
    job: Job, step: int, view: str, count: int, code_shape: tuple[int, ...] | None, rank: int, world: int
) -> Tensor | None:
    """This process's rows of the step's noise, drawn for the whole batch so that processes do not matter."""
    if code_shape is None:
        return None
    device = job.accelerator.device
    generator = keyed_generator(job.config.seed, step, "noise", view, device=device)
    return torch.randn(count, *code_shape, generator=generator, device=device)[rank::world]


def _agree(accelerator: Accelerator, signalled: int, due: bool) -> tuple[int, bool]:
    """Share the wish to stop or save, so that all processes do so after the same step."""
    if accelerator.num_processes == 1:
        return signalled, due
    flags = torch.tensor([signalled, int(due)], device=accelerator.device)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return int(flags[0]), bool(flags[1])


def _build_optimizer(job: Job) -> torch.optim.Optimizer:
    """Two groups: everything, and the decoder's log-variance layer where the schedule gives it rates of its own."""
    config, net = job.config.optimizer, job.net
    own = net.log_var_head if job.config.schedule.log_var_pieces else None
    apart = set() if own is None else {id(p) for p in own.parameters()}
    groups = [{"params": [p for p in net.parameters() if id(p) not in apart]}]
    if own is not None:
        groups.append({"params": list(own.parameters())})
    if config.name == "sgd":
        return torch.optim.SGD(
            groups, lr=0.0, momentum=config.momentum, nesterov=config.nesterov, weight_decay=config.weight_decay
        )
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=config.weight_decay)


def rates_at(config: PretrainConfig, step: int, steps_per_epoch: int) -> tuple[float, float]:
    """The learning rates of a step: of the network, and of the decoder's log-variance layer.

    Pieces are constant within an epoch, as published; a cosine moves each step.
    """
    schedule = config.schedule
    epoch = (step // steps_per_epoch) * schedule.epochs / config.total_epochs
    if schedule.pieces:
        rate = piecewise_rate(epoch, [(p.start, p.rate, p.slope) for p in schedule.pieces])
    else:
        progress = (step + 0.5) / (steps_per_epoch * config.total_epochs)
        rate = cosine_rate(progress, peak=schedule.rate, warmup=schedule.warmup)
    own = schedule.log_var_pieces
    return rate, piecewise_rate(epoch, [(p.start, p.rate, p.slope) for p in own]) if own else rate


def set_rates(optimizer: torch.optim.Optimizer, job: Job, step: int) -> tuple[float, float]:
    """Give each parameter group the rate of this step, and return them."""
    rates = rates_at(job.config, step, len(job.bounds))
    for group, rate in zip(optimizer.param_groups, rates, strict=False):
        group["lr"] = rate
    return rates


def _save(job: Job, run: Path, step: int, optimizer: torch.optim.Optimizer, *, seconds: float) -> Path:
    state = optimizer.state_dict()
    tensors = {f"{index}.{name}": value for index, slots in state["state"].items() for name, value in slots.items()}
    model = job.net.state_dict()
    broken = next((name for name, t in model.items() if t.is_floating_point() and not t.isfinite().all()), None)
    if broken is not None:
        raise RunFailedError(f"{broken} is not finite after step {step}: nothing was saved over the last good checkpoint.")
    about = {
        "config": job.config.model_dump(mode="json", exclude_none=True),
        "model": job.spec.model_dump(mode="json", exclude_none=True),
        "param_groups": state["param_groups"],
        "scaler": job.accelerator.scaler.state_dict() if job.accelerator.scaler is not None else None,
        "environment": job.environment,
        "seconds": seconds,
    }
    return save_checkpoint(run / "checkpoints", step, model=model, state=_only_tensors(tensors), about=about)


def _only_tensors(slots: dict[str, Any]) -> dict[str, Tensor]:
    """SGD's momentum buffer is none until the first step: such a slot is left out and comes back as none."""
    return {name: value for name, value in slots.items() if isinstance(value, Tensor)}


def _restore(
    job: Job, run: Path, optimizer: torch.optim.Optimizer, metrics: MetricsLog, *, on_event: OnEvent
) -> tuple[int, float]:
    """Load the newest whole checkpoint into net and optimiser; return its step and the seconds spent before."""
    checkpoint = load_newest(run / "checkpoints", on_event=on_event)
    about = checkpoint.about
    if "imported" in about:
        raise AvtError(
            f"{run} was made by `avt import`: it holds weights alone and no optimiser to go on with. Start a new run instead."
        )
    before = about["environment"]
    if before["data_fingerprint"] != job.data.fingerprint:
        raise AvtError(
            f"The data set '{job.config.dataset.name}' is not the one that {run} was trained on: its fingerprint was "
            f"{before['data_fingerprint']}, found {job.data.fingerprint}. Point --data-dir to the same images."
        )
    load_weights(job.net, checkpoint.model, path=checkpoint.folder)
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in checkpoint.state.items():
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": slots, "param_groups": about["param_groups"]})
    if about["scaler"] is not None and job.accelerator.scaler is not None:
        job.accelerator.scaler.load_state_dict(about["scaler"])
    step = int(about["step"])
    if job.accelerator.is_main_process:
        for change in environment_changes(before, job.environment):
            on_event(Notice(f"{change}: the numbers that follow may differ in their last bits"))
        metrics.cut_after(step)
        env = read_env(run)
        replace_file(
            run / "env.json", to_json({**env, "resumed": [*env.get("resumed", []), {"step": step, **job.environment}]})
        )
        on_event(Notice(f"resuming {run} after step {step}"))
    return step, float(about["seconds"])


def _finish(job: Job, run: Path, metrics: MetricsLog, *, seconds: float) -> PretrainResult:
    accelerator = job.accelerator
    mace_px = held_out_mace(job) if accelerator.is_main_process else None
    lines = metrics.read()
    losses = [line["loss"] for line in lines if line["epoch"] == lines[-1]["epoch"]]
    steps = job.total_steps
    result = PretrainResult(
        run=str(run),
        steps=steps,
        epochs=round(steps / len(job.bounds), 4),
        seconds=round(seconds, 1),
        loss=sum(losses) / len(losses) if losses else None,
        mace_px=mace_px,
        recipe=job.config.recipe,
    )
    if accelerator.is_main_process:
        replace_file(run / "result.json", to_json(asdict(result)))
    accelerator.wait_for_everyone()
    return result


@torch.no_grad()
def held_out_mace(job: Job) -> float | None:
    """The mean average corner error in pixels on held-out images with fresh transformations; none for photometric families.

    The images are the first 1 000 of a keyed draw from the test split, or from the training split where there is none.
    """
    if job.family.kind == "photometric" or job.spec.outputs != job.family.dof:
        return None
    split = job.data.test if job.data.test is not None and len(job.data.test) else job.data.train
    numbers = limited(split, min(MACE_COUNT, len(split)))
    device, net = job.accelerator.device, job.net.eval()
    images = build_images(split, numbers, device=device, shorter=job.config.augment.resize, workers=job.workers)
    parameters = job.family.draw(len(images), job.size, keyed_generator(job.config.seed, "held out"))
    errors = []
    batches = list(torch.split(torch.arange(len(images)), MACE_BATCH))
    for rows, batch in zip(batches, plain_batches(images, batches, job.size), strict=True):
        x = to_float(batch)
        y = job.family.apply(x, _to(parameters[rows], device))
        mean, _ = net(net.normalise(x), net.normalise(y))
        decoded = job.family.decode(mean.cpu().double(), job.size)
        true = job.family.in_from_out(parameters[rows], job.size)
        errors.append(corner_error(true, job.family.in_from_out(decoded, job.size), job.size))
    return float(torch.cat(errors).mean())
