"""What an objective checks: its outputs, one finite loss a sample, its gradients, and that the truth is better."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from avtcli.contracts import Loss, Objective, Target, TransformFamily
from avtcli.plugin_kit.checking import described, expect
from avtcli.seeding import keyed_generator

BATCH: Final = 16
SIZE: Final = (32, 48)


@dataclass(frozen=True)
class ObjectiveSubject:
    """An objective on trial, with the families that it accepts, by name."""

    objective: Objective
    families: Mapping[str, TransformFamily]


def _target(family: TransformFamily) -> Target:
    parameters = family.sample(BATCH, SIZE, keyed_generator("conformance draw"))
    return Target(family.target(parameters, SIZE).float(), parameters.float(), family, SIZE)


def _truth(objective: Objective, target: Target) -> Tensor:
    """What a perfect decoder says: the target, or logits that are sure of the class."""
    if not objective.predicts_classes:
        return target.values
    classes = target.family.classes(target.parameters)
    return 10 * functional.one_hot(classes, objective.outputs(target.family)).float()


def _log_var(objective: Objective, mean: Tensor) -> Tensor | None:
    return torch.zeros_like(mean) if objective.has_log_var else None


def _guess(truth: Tensor) -> Tensor:
    return truth + 0.3 * torch.randn(truth.shape, generator=keyed_generator("guess"))


def _cases(subject: ObjectiveSubject) -> Iterator[tuple[str, Target, Tensor]]:
    """A family's name, what was drawn, and the truth."""
    for name, family in subject.families.items():
        target = _target(family)
        yield name, target, _truth(subject.objective, target)


def what_it_asks_of_the_model_is_stated(subject: ObjectiveSubject) -> str:
    """`noise_scale`, `has_log_var`, `log_var_scale` and `views` have values that a model can be built with."""
    objective = subject.objective
    expect(
        isinstance(objective.noise_scale, float | int) and isfinite(objective.noise_scale) and objective.noise_scale >= 0,
        f"noise_scale is {objective.noise_scale!r}, expected a number of 0 or more",
    )
    expect(isinstance(objective.has_log_var, bool), f"has_log_var is {objective.has_log_var!r}, expected True or False")
    expect(
        isfinite(objective.log_var_scale) and objective.log_var_scale != 0,
        f"log_var_scale is {objective.log_var_scale!r}, expected a number other than 0",
    )
    expect(objective.views in ("both", "transformed"), f"views is {objective.views!r}, expected both or transformed")
    return f"noise scale {objective.noise_scale:g}"


def it_predicts_the_target_or_the_classes(subject: ObjectiveSubject) -> str:
    """`outputs` is the family's dof, or its number of classes where `predicts_classes`."""
    for name, family in subject.families.items():
        found = subject.objective.outputs(family)
        expected = family.n_classes if subject.objective.predicts_classes else family.dof
        expect(found == expected, f"outputs({name}) is {found}, expected {expected}")
    return f"with {', '.join(subject.families)}"


def every_sample_has_one_finite_loss_of_its_own(subject: ObjectiveSubject) -> str:
    """The loss and its named parts are (B,), the same each time, whatever else is in the batch."""
    objective = subject.objective
    for name, target, truth in _cases(subject):
        mean = _guess(truth)
        loss, again = (objective.loss(mean, _log_var(objective, mean), target) for _ in range(2))
        for what, values in {"the loss": loss.per_sample, **loss.parts}.items():
            expect(
                values.shape == (BATCH,) and bool(values.isfinite().all()),
                f"{what} with {name} is {described(values)}, expected ({BATCH},), a finite number a sample",
            )
        expect(torch.equal(loss.per_sample, again.per_sample), f"with {name}, the same prediction gave two losses")
        few = Target(target.values[:3], target.parameters[:3], target.family, target.size)
        alone = objective.loss(mean[:3], _log_var(objective, mean[:3]), few)
        expect(
            torch.allclose(alone.per_sample, loss.per_sample[:3], rtol=1e-4, atol=1e-5),
            f"with {name}, a sample's loss depends on the rest of its batch",
        )
    return ", ".join(loss.parts) or "no parts"


def gradients_are_finite_at_a_guess_and_at_the_truth(subject: ObjectiveSubject) -> str:
    """Of the mean, and of the log-variance where there is one."""
    objective = subject.objective
    for name, target, truth in _cases(subject):
        for where, said in (("a guess", _guess(truth)), ("the truth", truth)):
            mean = said.detach().clone().requires_grad_()
            log_var = torch.zeros_like(mean, requires_grad=True) if objective.has_log_var else None
            objective.loss(mean, log_var, target).per_sample.sum().backward()  # type: ignore[no-untyped-call]
            for what, leaf in (("mean", mean), ("log-variance", log_var)):
                if leaf is not None:
                    fine = leaf.grad is not None and bool(leaf.grad.isfinite().all())
                    expect(fine, f"at {where} with {name}, the gradient of the {what} is missing, NaN or infinite")
    return ""


def the_truth_has_a_smaller_loss_than_a_guess(subject: ObjectiveSubject) -> str:
    """On average over a batch."""

    def average(said: Tensor, target: Target) -> float:
        loss: Loss = subject.objective.loss(said, _log_var(subject.objective, said), target)
        return float(loss.per_sample.mean())

    for name, target, truth in _cases(subject):
        guess = torch.zeros_like(truth) if subject.objective.predicts_classes else _guess(truth)
        best, worse = average(truth, target), average(guess, target)
        expect(best < worse, f"with {name}, the truth has the loss {best:.4g} and a guess {worse:.4g}")
    return ""


CHECKS: Final = (
    what_it_asks_of_the_model_is_stated,
    it_predicts_the_target_or_the_classes,
    every_sample_has_one_finite_loss_of_its_own,
    gradients_are_finite_at_a_guess_and_at_the_truth,
    the_truth_has_a_smaller_loss_than_a_guess,
)
