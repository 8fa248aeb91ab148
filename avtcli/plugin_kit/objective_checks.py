"""Conformance checks of objectives: what they state, their predictions, losses and gradients, and that they can be learned."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from avtcli import registry
from avtcli.contracts import Loss, Objective, Prediction, Target, TransformFamily
from avtcli.errors import AvtError
from avtcli.plugin_kit.checking import Trial, checks_of, expect, expect_tensor
from avtcli.seeding import keyed_generator

BATCH: Final = 16
SIZE: Final = (32, 48)
VECTOR_DIM: Final = 24
STEPS: Final = 60
BUILT_IN: Final = "avtcli"  # its families are tried, and those of the objective's own distribution


@dataclass(frozen=True)
class ObjectiveUnderTest:
    """An objective under test: how to build it for a family, and the families that it accepts, by name."""

    make: Callable[[TransformFamily], Objective]
    families: Mapping[str, TransformFamily]


@dataclass(frozen=True)
class Case:
    """An objective with random vectors and targets of a family."""

    name: str
    objective: Objective
    codes: tuple[Tensor, ...]
    targets: tuple[Target, ...]

    def loss(self) -> Loss:
        """Return the loss of the batch."""
        loss: Loss = self.objective(self.codes, self.targets)
        return loss


def trial(spec: str) -> Trial:
    """Find the families that an objective accepts, and how to build it, for its checks."""

    def make(family: TransformFamily) -> Objective:
        made: Objective = registry.build("objective", spec, {}, vector_dim=VECTOR_DIM, family=family)
        return made

    distributions = (BUILT_IN, registry.info("objective", registry.split_name(spec)[0]).distribution)
    families: dict[str, TransformFamily] = {}
    for other in registry.listing():
        if other.kind == "transform" and other.distribution in distributions:
            family = registry.build("transform", other.name, {})
            try:
                make(family)
            except AvtError:
                continue
            families[other.name] = family
    expect(bool(families), f"it refuses every family of {BUILT_IN} and of the plugin's distribution")
    return CHECKS, ObjectiveUnderTest(make, families)


def _target(family: TransformFamily, view: int) -> Target:
    parameters = family.sample(BATCH, SIZE, keyed_generator("conformance draw", view))
    return Target(family.target(parameters, SIZE).float(), parameters.float(), family, SIZE)


def _cases(subject: ObjectiveUnderTest) -> Iterator[Case]:
    for name, family in subject.families.items():
        objective = subject.make(family)
        generators = [keyed_generator("conformance code", view) for view in range(len(objective.views))]
        codes = tuple(torch.randn(BATCH, VECTOR_DIM, generator=generator).requires_grad_() for generator in generators)
        targets = tuple(_target(family, view) for view in range(objective.views.count("transformed")))
        yield Case(name, objective, codes, targets)


def it_states_its_views_noise_and_prediction(subject: ObjectiveUnderTest) -> str:
    """`views`, `noise_scale`, `prediction` and `depends_on_batch` have values that a model can be built with."""
    objective = next(_cases(subject)).objective
    views, scale, prediction = objective.views, objective.noise_scale, objective.prediction
    roles = isinstance(views, tuple) and "transformed" in views and set(views) <= {"original", "transformed"}
    expect(roles, f"views is {views!r}, expected a tuple of roles, original or transformed, with one transformed at least")
    fine = isinstance(scale, float | int) and isfinite(scale) and scale >= 0
    expect(fine, f"noise_scale is {scale!r}, expected a number of 0 or more")
    expect(prediction in ("target", "classes", None), f"prediction is {prediction!r}, expected target, classes or None")
    depends = objective.depends_on_batch
    expect(isinstance(depends, bool), f"depends_on_batch is {depends!r}, expected True or False")
    return f"{', '.join(views)}; noise scale {scale:g}"


def its_prediction_is_the_target_or_the_classes(subject: ObjectiveUnderTest) -> str:
    """`predict` returns (B, dof), or logits (B, n_classes); without a decoder it raises NotImplementedError."""
    for case in _cases(subject):
        objective, family = case.objective, subject.families[case.name]
        if objective.prediction is None:
            return "no decoder"
        found = objective.predict(case.codes)
        outputs = family.n_classes if objective.prediction == "classes" else family.dof
        for what, values in (("mean", found.mean), ("log_var", found.log_var)):
            if values is not None:
                expect_tensor(f"{what} with {case.name}", values, (BATCH, outputs or 0))
    return f"with {', '.join(subject.families)}"


def every_sample_has_one_finite_loss(subject: ObjectiveUnderTest) -> str:
    """The loss and its parts are (B,), the same each time; without `depends_on_batch` independent of other samples."""
    parts: list[str] = []
    for case in _cases(subject):
        loss, again = case.loss(), case.loss()
        parts = list(loss.parts)
        for what, values in {"the loss": loss.per_sample, **loss.parts}.items():
            expect_tensor(f"{what} with {case.name}", values, (BATCH,))
        expect(torch.equal(loss.per_sample, again.per_sample), f"with {case.name}, the same codes gave two losses")
        targets = tuple(Target(t.values[:3], t.parameters[:3], t.family, t.size) for t in case.targets)
        alone: Loss = case.objective(tuple(code[:3] for code in case.codes), targets)
        same = torch.allclose(alone.per_sample, loss.per_sample[:3], rtol=1e-4, atol=1e-5) or case.objective.depends_on_batch
        expect(same, f"with {case.name}, a sample's loss depends on the rest of its batch: state depends_on_batch = True")
    return ", ".join(parts) or "no parts"


def gradients_reach_every_code_and_weight(subject: ObjectiveUnderTest) -> str:
    """Every view's code and every weight of the heads gets a finite gradient."""
    for case in _cases(subject):
        case.loss().per_sample.sum().backward()  # type: ignore[no-untyped-call]
        leaves = {f"the code of view {view}": code for view, code in enumerate(case.codes)}
        for name, leaf in {**leaves, **dict(case.objective.named_parameters())}.items():
            fine = leaf.grad is not None and bool(leaf.grad.isfinite().all())
            expect(fine, f"with {case.name}, the gradient of {name} is missing, NaN or infinite")
    return f"{sum(p.numel() for p in case.objective.parameters()):,} weights for codes of {VECTOR_DIM}"


def gradient_descent_lowers_the_loss(subject: ObjectiveUnderTest) -> None:
    """On codes and heads."""
    for case in _cases(subject):
        before = float(case.loss().per_sample.mean().detach())
        optimizer = torch.optim.Adam([*case.codes, *case.objective.parameters()], lr=0.03)
        for _ in range(STEPS):
            optimizer.zero_grad()
            case.loss().per_sample.mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        after = float(case.loss().per_sample.mean().detach())
        expect(after < before, f"with {case.name}, {STEPS} steps took the loss from {before:.4g} to {after:.4g}")


def _loss_of(case: Case, prediction: Prediction) -> float:
    case.objective.predict = lambda codes: prediction  # type: ignore[method-assign]
    return float(case.loss().per_sample.mean())


@torch.no_grad()
def the_truth_has_a_smaller_loss_than_a_guess(subject: ObjectiveUnderTest) -> str | None:
    """On average over a batch, with `predict` replaced; `forward` compares what `predict` returns with the targets."""
    for case in _cases(subject):
        objective = case.objective
        if objective.prediction is None:
            return "no decoder"
        own, target = objective.predict(case.codes), case.targets[0]
        truth, guess = target.values, torch.zeros_like(own.mean)
        if objective.prediction == "classes":
            truth = 10 * functional.one_hot(target.family.classes(target.parameters), own.mean.shape[1]).float()
        else:
            guess = truth + 0.3 * torch.randn(truth.shape, generator=keyed_generator("conformance guess"))
        log_var = None if own.log_var is None else torch.zeros_like(truth)
        losses = [_loss_of(case, Prediction(mean, log_var)) for mean in (truth, guess)]
        expect(losses[0] < losses[1], f"with {case.name}, the truth has the loss {losses[0]:.4g} and a guess {losses[1]:.4g}")
    return None


CHECKS: Final = checks_of(ObjectiveUnderTest, globals())
