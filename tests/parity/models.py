"""Our models with the release's filled weights, built as the recipes build them."""

from typing import Any

import torch
from torch import Tensor

from avtcli import registry
from avtcli.contracts import Backbone, Objective, Target
from avtcli.exporting.published_import import HEADS
from avtcli.models.encoder import Encoder
from avtcli.models.siamese import SiameseModel
from tests.parity.weights import load_golden, released_state_dict

IMAGE_SIDE = {"nin": 32, "alexnet": 224}
GIVEN_TO_NIN: dict[str, Any] = {"width": 1.0}


def our_name(backbone: str, key: str) -> str:
    """Our state-dict name for one of the release's."""
    module, _, leaf = key.rpartition(".")
    modules = registry.provided("published_checkpoint")[backbone].modules
    return f"{({**modules, **HEADS})[module]}.{leaf}"


def objective(vector_dim: int) -> Objective:
    """AVT with the release's constants, on its family."""
    options = {"noise_scale": 0.001, "log_var_divisor": 1000, "variance_floor": 1e-4}
    family = registry.build("transform", "projective", {"target": "coefficients"})
    made: Objective = registry.build("objective", "avt", options, vector_dim=vector_dim, family=family)
    return made


def build(backbone: str) -> SiameseModel:
    """Encoder and decoder with the golden formula's weights, float32."""
    side = IMAGE_SIDE[backbone]
    options = GIVEN_TO_NIN if backbone == "nin" else {}
    with torch.device("meta"):
        net: Backbone = registry.build("backbone", backbone, options, in_channels=3, image_size=(side, side))
        avt = objective(net.vector_dim)
        encoder = Encoder(net, noise_scale=avt.noise_scale, pixel_mean=(0.5,) * 3, pixel_std=(0.5,) * 3)
        model = SiameseModel(encoder, avt)
    weights = {our_name(backbone, key): tensor for key, tensor in released_state_dict(backbone).items()}
    model.load_state_dict(weights, assign=True)
    return model


def loss_of(model: SiameseModel, views: tuple[Tensor, Tensor], noise: Tensor, values: Tensor) -> Tensor:
    """The objective's loss as the release takes it: summed over samples and divided by their number."""
    family = registry.build("transform", "projective", {"target": "coefficients"})
    codes = model.encode(views, [noise, noise])
    per_sample = model.loss(codes, [Target(values, values, family, (32, 32))]).per_sample
    return per_sample.sum() / len(per_sample)


def golden_of(backbone: str) -> dict[str, Any]:
    """The golden numbers of a network."""
    numbers: dict[str, Any] = load_golden("networks.json")[backbone]
    return numbers
