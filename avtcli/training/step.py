"""One training step and what goes into it, as the loop takes it and the bench measures it."""

from collections.abc import Callable

import torch
from torch import Tensor

from avtcli.contracts import Loss, Target
from avtcli.data.epoch_table import EpochTable
from avtcli.geometry.cropping import to_float
from avtcli.runtime.devices import seed_model, to_device
from avtcli.seeding import keyed_generator, seed_of
from avtcli.training.optimizer import set_rates
from avtcli.training.training_setup import TrainingSetup

Noise = Callable[[int, int], tuple[Tensor | None, Tensor | None]]
"""The noise of both views' codes at a step, given the images of all processes; none where the code has none."""


def make_views(setup: TrainingSetup, images: Tensor, rows: Tensor, table: EpochTable) -> tuple[Tensor, Tensor, Target]:
    """Both views of a batch, normalised, (B, C, H, W) each, and what tells them apart.

    Args:
        setup: whose transformations move the images.
        images: cropped, uint8, (B, C, H, W), on the device.
        rows: theirs in the table.
        table: of the epoch.
    """
    device, net = setup.accelerator.device, setup.net
    x = to_float(images)
    parameters = to_device(table.parameters[rows], device)
    y = setup.family.apply(x, parameters)
    target = Target(to_device(table.targets[rows], device).float(), parameters, setup.family, setup.size)
    return net.normalise(x), net.normalise(y), target


def noise_of(setup: TrainingSetup) -> Noise:
    """What draws this process's noise: its rows of the whole batch's, so that the number of processes does not matter."""
    accelerator, spec = setup.accelerator, setup.spec
    shape = setup.net.encoder.code_shape(spec.channels, setup.size) if spec.noise_scale else None

    def draw(step: int, view: str, count: int) -> Tensor | None:
        if shape is None:
            return None
        generator = keyed_generator(setup.config.seed, step, "noise", view, device=accelerator.device)
        drawn = torch.randn(count, *shape, generator=generator, device=accelerator.device)
        return drawn[accelerator.process_index :: accelerator.num_processes]

    return lambda step, count: (draw(step, "original", count), draw(step, "transformed", count))


class Trainer:
    """Trains a setup's network a batch at a time.

    Args:
        setup: the network and its settings.
        optimizer: of the network's parameters, with its state restored where a run goes on.

    Attributes:
        optimizer: the same, or around it what scales the losses of half precision.
    """

    def __init__(self, setup: TrainingSetup, optimizer: torch.optim.Optimizer) -> None:
        accelerator = setup.accelerator
        self._setup, self._noise = setup, noise_of(setup)
        self._model = accelerator.prepare(setup.net)
        self._compiled = torch.compile(self._model, dynamic=False) if setup.config.compile else self._model
        self._model.train()
        self.optimizer = optimizer if accelerator.scaler is None else accelerator.prepare(optimizer)

    def step(self, step: int, x: Tensor, y: Tensor, target: Target, *, count: int) -> tuple[Loss, tuple[float, float]]:
        """Take a step.

        Args:
            step: its number, from 0: rates, noise and what layers draw follow from it.
            x: this process's originals, normalised.
            y: the transformed images, likewise.
            target: what tells them apart.
            count: the images of all processes.

        Returns:
            The loss of each sample before the step, and the rates that it was taken with.
        """
        setup, accelerator = self._setup, self._setup.accelerator
        rates = set_rates(self.optimizer, setup.config, step, len(setup.bounds))
        seed_model(seed_of(setup.config.seed, step, "model", accelerator.process_index), accelerator.device)
        model = self._compiled if count == setup.config.batch_size else self._model  # none is compiled for a partial batch
        mean, log_var = model(x, y, *self._noise(step, count))
        loss = setup.objective.loss(mean, log_var, target)
        accelerator.backward(loss.per_sample.sum() * (accelerator.num_processes / count))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss, rates
