"""Heads by name and options, and their modules where golden values do not reach: initialisation, shapes, refusals."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from avtcli.config.components import Plugin
from avtcli.config.resolution import options_from_texts, resolve_probe
from avtcli.errors import AvtError
from avtcli.features.pooling import pool_features
from avtcli.probing import heads
from avtcli.probing.head import ClosedFormHead, TrainedHead, check_head
from avtcli.probing.heads import HEADS, resolve_head, resolve_options

TRAINED = ("conv", "linear", "mlp1", "mlp2", "mlp3", "nonlinear")


def build_module(name: str, shape: tuple[int, ...], classes: int, **options: Any) -> Any:
    head = resolve_head(Plugin(name=name, **options))
    assert isinstance(head, TrainedHead)
    return head.build("a", shape, classes)


# names and options


def test_every_file_of_the_folder_is_a_head_and_describes_itself() -> None:
    assert set(HEADS) == {*TRAINED, "knn", "logistic", "ridge"}
    for name in HEADS:
        head = resolve_head(Plugin(name=name))
        assert head.description
        assert isinstance(head, TrainedHead if name in TRAINED else ClosedFormHead)
        assert head.pool == ("max" if name in ("linear", "knn", "logistic", "ridge") else "none")


def test_a_head_takes_one_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "HEADS", (*HEADS, "example"))
    monkeypatch.setattr(heads, "__path__", [*heads.__path__, str(tmp_path)])
    source = Path(heads.__path__[0], "mlp2.py").read_text(encoding="utf-8").replace("def mlp2(", "def example(")
    (tmp_path / "example.py").write_text(source, encoding="utf-8")

    assert build_module("example", (6,), 4)(torch.randn(3, 6)).shape == (3, 4)


def test_options_come_as_text_or_toml_and_defaults_are_filled_in() -> None:
    texts = options_from_texts(["head.k=10,20"], kinds=("head",))
    config = resolve_probe({"head": {"name": "knn", **texts["head"]}}, recipe=None)

    assert resolve_options(config.head) == {"k": (10, 20), "temperature": 0.07}
    assert resolve_options(Plugin(name="ridge", penalties=[0.1])) == {"penalties": (0.1,)}
    assert resolve_options(Plugin(name="nonlinear", conv_first="conv4,conv5")) == {"conv_first": ("conv4", "conv5")}


def test_options_go_over_those_of_a_recipe_and_leave_with_its_head() -> None:
    published, other = (
        resolve_probe(over, recipe="imagenet-nonlinear").head for over in ({"head": {"name": "nonlinear"}}, {"head": "mlp2"})
    )
    over = resolve_probe({"head": {"conv_first": "conv5"}}, recipe="imagenet-nonlinear").head
    plain = resolve_probe({"head": {"name": "knn"}}, recipe="cifar10-mlp2").head

    assert (published.options, other.options, over.options) == ({"conv_first": ["conv4"]}, {}, {"conv_first": "conv5"})
    assert (plain.name, resolve_probe({}, recipe="cifar10-mlp2").head.name) == ("knn", "mlp2")
    assert resolve_probe({}, recipe=None).head.name == "linear"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("kn", {}, r"No head is called 'kn'\. Did you mean 'knn'\? Heads: conv, knn"),
        ("mlp2", {"k": "5"}, r"The head 'mlp2' has no option 'k'\. Its options: none"),
        ("knn", {"penalties": [0.1]}, r"has no option 'penalties'\. Its options: k, temperature"),
        (
            "knn",
            {"k": "5,many", "temperature": -1},
            r"option 'k\.1' .*found 'many'; option 'temperature' should be greater than or equal to 0",
        ),
        ("knn", {"k": []}, r"option 'k' .* at least 1 item"),
        ("ridge", {"penalties": "0"}, r"option 'penalties\.0' should be greater than 0"),
    ],
)
def test_a_bad_name_or_option_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AvtError, match=message):
        resolve_head(Plugin(name=name, **options))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "knn", "augmented": True}, "The head 'knn' reads features once: it takes no augmented images"),
        ({"head": "ridge", "finetune": True}, "The head 'ridge' reads features once"),
        ({"head": "knn", "epochs": 3}, "The head 'knn' is not trained in steps: leave out the epochs and the rate"),
        ({"head": "ridge", "lr": 0.1}, "The head 'ridge' is not trained in steps"),
    ],
)
@pytest.mark.parametrize("recipe", [None, "cifar10-mlp2"])
def test_a_closed_form_head_refuses_settings_of_training(settings: dict[str, Any], message: str, recipe: str | None) -> None:
    config = resolve_probe({"augmented": False, **settings}, recipe=recipe)
    with pytest.raises(AvtError, match=message):
        check_head(resolve_head(config.head), config)

    supervised = resolve_probe({"augmented": False, "head": "knn", "epochs": 3, "lr": 0.1, "supervised": True}, recipe=recipe)
    check_head(resolve_head(supervised.head), supervised)


# modules


@pytest.mark.parametrize("pool", ["max", "avg"])
def test_pooling_reduces_windows_as_by_hand(pool: str) -> None:
    maps = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    windows = maps.view(2, 3, 4, 2, 4, 2)
    by_hand = windows.amax((3, 5)) if pool == "max" else windows.mean((3, 5))

    torch.testing.assert_close(pool_features(maps, pool, 4), by_hand)


def test_no_pooling_and_vectors_pass_unchanged() -> None:
    maps, vectors = torch.randn(2, 3, 5, 5), torch.randn(2, 3)

    assert pool_features(maps, "none", 4) is maps
    assert pool_features(vectors, "max", 4) is vectors


def test_the_linear_head_normalises_without_affine_and_is_linear() -> None:
    torch.manual_seed(0)
    head, maps = build_module("linear", (3, 2, 2), 5), torch.randn(6, 3, 2, 2) * 4 + 1
    mean, var = maps.mean((0, 2, 3), keepdim=True), maps.var((0, 2, 3), unbiased=False, keepdim=True)
    by_hand = ((maps - mean) / (var + 1e-5).sqrt()).flatten(1) @ head.linear.weight.T + head.linear.bias

    torch.testing.assert_close(head(maps), by_hand)
    assert [name for name, _ in head.named_parameters()] == ["linear.weight", "linear.bias"]


@pytest.mark.parametrize("name", TRAINED)
def test_every_layer_is_initialised_as_in_the_release(name: str) -> None:
    torch.manual_seed(0)
    head = build_module(name, (64, 4, 4), 40, **({"conv_first": ["a"]} if name == "nonlinear" else {}))
    layers = [layer for layer in head.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]

    for layer in layers:
        fan_out = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels * math.prod(layer.kernel_size)
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            assert not layer.bias.any()
    assert isinstance(layers[-1], nn.Linear)
    assert layers[-1].bias is not None
    assert all(layer.bias is None for layer in layers[:-1] if isinstance(layer, nn.Linear))


def test_the_nonlinear_head_has_the_published_shapes() -> None:
    with torch.device("meta"):
        conv4 = build_module("nonlinear", (256, 13, 13), 1000, conv_first=["a"])
        conv5 = build_module("nonlinear", (256, 13, 13), 1000, conv_first=["b"])
    full = [(4096, 9216), (4096,), (4096,), (4096, 4096), (4096,), (4096,), (1000, 4096), (1000,)]

    assert [tuple(p.shape) for p in conv5.parameters()] == full
    assert [tuple(p.shape) for p in conv4.parameters()] == [(256, 256, 3, 3), (256,), (256,), (256,), *full]


def _normalised(x: Tensor) -> Tensor:
    return functional.batch_norm(x, None, None, training=True)


def test_the_nonlinear_head_is_convolution_pooling_and_three_layers() -> None:
    torch.manual_seed(0)
    head, maps = build_module("nonlinear", (3, 5, 5), 4, conv_first=["a"]), torch.randn(6, 3, 5, 5)
    conv, first, second, last = (layer for layer in head if isinstance(layer, (nn.Conv2d, nn.Linear)))
    x = functional.max_pool2d(_normalised(functional.conv2d(maps, conv.weight, conv.bias, padding=1)).relu(), 3, 2)
    x = _normalised(x.flatten(1) @ first.weight.T).relu()
    x = _normalised(x @ second.weight.T).relu()

    torch.testing.assert_close(head(maps), x @ last.weight.T + last.bias, rtol=1e-4, atol=1e-4)


def test_the_nonlinear_head_does_not_pool_a_map_below_3_cells() -> None:
    head = build_module("nonlinear", (3, 2, 2), 4)

    assert not any(isinstance(layer, nn.MaxPool2d) for layer in head)
    assert head(torch.randn(2, 3, 2, 2)).shape == (2, 4)


@pytest.mark.parametrize("name", TRAINED)
def test_a_head_takes_a_vector_or_refuses_it(name: str) -> None:
    if name in ("conv", "nonlinear"):
        with pytest.raises(AvtError, match=rf"The head '{name}' needs a map, this layer gives a vector of 6\. Give --head"):
            build_module(name, (6,), 4)
    else:
        assert build_module(name, (6,), 4)(torch.randn(3, 6)).shape == (3, 4)
