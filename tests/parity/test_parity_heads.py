"""Our heads, filled by the golden formula, give what the release's heads give."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from avtcli.config.components import Plugin
from avtcli.features.pooling import pool_features
from avtcli.probing.head import TrainedHead
from avtcli.probing.heads import resolve_head
from tests.parity.tolerances import assert_near
from tests.parity.weights import filled, load_golden

GOLDEN = load_golden("heads.json")
KINDS = {"MultLayerFC1": "mlp1", "MultLayerFC2": "mlp2", "MultLayer": "mlp3", "NIN_ConvBlock3": "conv"}
SIDES = {"conv1": 12, "conv2": 7, "conv3": 5, "conv4": 6, "conv5": 6}


def features_of(name: str) -> Tensor:
    """The golden input, pooled as the release's linear heads pool it."""
    shape = GOLDEN[name]["input"]
    maps = torch.from_numpy(np.sin(0.01 * np.arange(np.prod(shape)))).float().reshape(shape)
    if name in KINDS:
        return maps
    _, pool, layer = name.split("_")
    return pool_features(maps, pool, SIDES[layer])


def head_of(name: str, features: Tensor) -> nn.Module:
    """Our head with the golden weights: the release's names stand in the order of ours."""
    keys: dict[str, list[int]] = GOLDEN[name]["keys"]
    classes = keys[next(reversed(keys))][0]
    kind = resolve_head(Plugin(name=KINDS.get(name, "linear")))
    assert isinstance(kind, TrainedHead)
    head = kind.build("", features.shape[1:], classes)
    own = head.state_dict()
    assert [list(tensor.shape) for tensor in own.values()] == list(keys.values())
    weights = [filled(key, shape) for key, shape in keys.items()]
    head.load_state_dict(dict(zip(own, weights, strict=True)))
    return head


def test_every_published_head_is_compared() -> None:
    assert len(GOLDEN) == 14
    assert set(GOLDEN) == {*KINDS, *(f"linear_{pool}_{layer}" for pool in ("max", "avg") for layer in SIDES)}


@pytest.mark.parametrize("name", GOLDEN)
@torch.no_grad()
def test_a_head_in_eval_mode_gives_the_golden_logits(name: str) -> None:
    features = features_of(name)
    head = head_of(name, features).eval()

    assert_near("outputs", name, head(features), GOLDEN[name]["eval"])


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_head_in_train_mode_gives_the_golden_logits(name: str) -> None:
    """In float64: statistics of four images magnify what processors round, the golden side too, to most of the tolerance."""
    features = features_of(name)
    head = head_of(name, features).double().train()

    assert_near("outputs", name, head(features.double()), GOLDEN[name]["train"])
