"""The published pretraining recipes, against the papers' and releases' figures typed in here."""

import tomllib

import pytest

from avtcli import recipes, registry
from avtcli.config.components import Augment, Optimizer
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.config.resolution import resolve
from avtcli.training.optimizer import rates_at

CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
TABLE = {
    # recipe: backbone, data set, its figures, batch, epochs, objective, family, crop, padding, resize, bank
    "cifar10-nin": ("nin", "cifar10", CIFAR, 512, 4500, "avt", "projective", 32, 4, None, None),
    "cifar10-nin-aet": ("nin", "cifar10", CIFAR, 512, 1500, "aet", "projective", 32, 4, None, None),
    "cifar10-nin-aet-affine": ("nin", "cifar10", CIFAR, 512, 1500, "aet", "affine", 32, 4, None, None),
    "imagenet-alexnet": ("alexnet", "imagenet", IMAGENET, 768, 400, "avt", "projective", 224, 0, 256, 500_000),
    "imagenet-alexnet-aet": ("alexnet", "imagenet", IMAGENET, 768, 200, "aet", "projective", 224, 0, 256, 500_000),
}


def recipe(name: str) -> PretrainConfig:
    return resolve({}, recipe=name)


@pytest.mark.parametrize("name", TABLE)
def test_the_settings_are_the_published_ones(name: str) -> None:
    config = recipe(name)
    backbone, dataset, figures, batch, epochs, objective, family, crop, padding, resize, bank = TABLE[name]

    assert (config.backbone.name, config.dataset.name, config.objective.name, config.transform.name) == (
        *(backbone, dataset, objective, family),
    )
    assert {key: tuple(value) for key, value in config.dataset.options.items()} == figures
    assert (config.batch_size, config.total_epochs, config.bank_count) == (batch, epochs, bank)
    assert config.augment == Augment(crop=crop, padding=padding, resize=resize, flip=True)
    assert config.optimizer == Optimizer(name="sgd", momentum=0.9, nesterov=True, weight_decay=5e-4)


@pytest.mark.parametrize("name", ["cifar10-nin", "imagenet-alexnet"])
def test_the_objective_has_the_releases_constants(name: str) -> None:
    family = registry.build("transform", "projective", {})
    objective = registry.build("objective", "avt", recipe(name).objective.options, vector_dim=4, family=family)

    found = (objective.noise_scale, objective.decoder.log_var_scale, objective.pair_loss.keywords)
    assert found == (0.001, 1 / 1000, {"variance_floor": 1e-4})


CIFAR_TARGET = [0, 0, 16, 0, 0, 16, 0, 0], [1, 1, 20, 1, 1, 20, 0.015, 0.015]
IMAGENET_TARGET = [0, 0, 112, 0, 0, 112, 6.4e-5, 6.4e-5], [0.75, 0.75, 118, 0.75, 0.75, 118, 7.75e-4, 7.75e-4]


@pytest.mark.parametrize(
    ("name", "size", "mean", "std"),
    [
        ("cifar10-nin", 32, *CIFAR_TARGET),
        ("cifar10-nin-aet", 32, *CIFAR_TARGET),
        ("cifar10-nin-aet-affine", 32, [0] * 6, [1] * 6),
        ("imagenet-alexnet", 224, *IMAGENET_TARGET),
        ("imagenet-alexnet-aet", 224, *IMAGENET_TARGET),
    ],
)
def test_the_target_is_normalised_by_the_releases_figures(name: str, size: int, mean: list[float], std: list[float]) -> None:
    config = recipe(name)
    family = registry.build("transform", config.transform.name, config.transform.options)

    assert [figure.tolist() for figure in family.statistics((size, size))] == [mean, std]


def aet_cifar(epoch: int) -> float:
    if epoch >= 1000:
        return 1.6e-4 - 3e-7 * (epoch - 999)
    return 0.1 * 0.2 ** sum(epoch >= start for start in (240, 480, 640, 800))


def aet_imagenet(epoch: int) -> float:
    return 0.01 * 0.1 ** sum(epoch >= start for start in (100, 150))


@pytest.mark.parametrize(
    ("name", "distribution"),
    [("cifar10-nin-aet", aet_cifar), ("cifar10-nin-aet-affine", aet_cifar), ("imagenet-alexnet-aet", aet_imagenet)],
)
def test_aets_rates_are_the_published_ones_in_every_epoch(name: str, distribution) -> None:
    config = recipe(name)
    rates = [rates_at(config, epoch * 98 + 5, 98) for epoch in range(config.total_epochs)]

    assert [rate for rate, _ in rates] == pytest.approx([distribution(epoch) for epoch in range(config.total_epochs)], rel=1e-9)
    assert all(rate == head for rate, head in rates)


@pytest.mark.parametrize(
    ("dataset", "objective", "family", "chosen"),
    [
        ("cifar10", None, None, "cifar10-nin"),
        ("cifar10:/data", "avt", "projective", "cifar10-nin"),
        ("cifar10", "aet", None, "cifar10-nin-aet"),
        ("cifar10", "aet", "affine", "cifar10-nin-aet-affine"),
        ("cifar10", "gaussian", None, "cifar10-nin"),
        ("fashion-mini", None, None, "default"),
        (None, None, None, "default"),
    ],
)
def test_data_set_backbone_objective_and_family_choose_the_recipe(dataset, objective, family, chosen: str) -> None:
    named = {"dataset": dataset, "backbone": "nin", "objective": objective, "transform": family}

    assert resolve({kind: {"name": name} for kind, name in named.items() if name}, recipe=None).recipe == chosen


@pytest.mark.parametrize(
    ("given", "same_as", "recipe"),
    [
        ("dataset=cifar10", "dataset=cifar10 backbone=nin", "cifar10-nin"),
        ("dataset=cifar10", "dataset=cifar10 backbone=nin objective=avt transform=projective", "cifar10-nin"),
        ("dataset=cifar10:/d", "dataset=cifar10:/d backbone=nin", "cifar10-nin"),
        ("dataset=cifar10 objective=aet", "dataset=cifar10 backbone=nin objective=aet", "cifar10-nin-aet"),
        ("dataset=imagenet:/d", "dataset=imagenet:/d backbone=alexnet", "imagenet-alexnet"),
        ("dataset=imagenet:/d objective=aet", "dataset=imagenet:/d backbone=alexnet objective=aet", "imagenet-alexnet-aet"),
        ("dataset=imagenet:/d backbone=nin", "dataset=imagenet:/d backbone=nin objective=avt", "default"),
        ("dataset=fashion-mnist", "dataset=fashion-mnist backbone=nin", "default"),
        ("backbone=alexnet", "backbone=alexnet dataset=fashion-mini", "default"),
        ("backbone=nin", "", "default"),
        ("", "dataset=fashion-mini backbone=nin objective=avt transform=projective", "default"),
    ],
)
def test_one_pair_is_one_recipe_given_or_defaulted_on_every_device(given: str, same_as: str, recipe: str) -> None:
    def resolved(line: str, device: str) -> PretrainConfig:
        named = {kind: {"name": name} for kind, name in (word.split("=") for word in line.split())}
        return resolve({**named, "device": device}, recipe=None)

    assert resolved(given, "cpu") == resolved(same_as, "cpu")
    assert resolved(given, "cpu").model_copy(update={"device": "cuda"}) == resolved(given, "cuda")
    assert resolved(given, "cpu").recipe == recipe


def test_the_default_recipe_is_taken_by_name_for_a_published_pair() -> None:
    config = resolve({"dataset": {"name": "cifar10"}}, recipe="default")

    assert (config.recipe, config.schedule.epochs, config.optimizer.name) == ("default", 30, "adamw")


def test_only_the_default_recipe_has_a_budget() -> None:
    with_budget = {name for name in recipes.names() if "max_pairs" in tomllib.loads(recipes.text(name))}

    assert with_budget == {"default"}
