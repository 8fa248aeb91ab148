"""The stochastic encoder and the model around it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from avtcli.errors import AvtError
from avtcli.models.decoder import Decoder
from avtcli.models.encoder import Encoder
from avtcli.models.siamese import SiameseModel
from avtplugins.backbones.nin import NIN
from avtplugins.objectives._pairs import PairObjective
from avtplugins.objectives.aet import aet_loss

GREY = {"pixel_mean": [0.5], "pixel_std": [0.25]}


def siamese(encoder: Encoder, log_var_scale: float = 1.0) -> SiameseModel:
    decoder = Decoder(2 * encoder.backbone.vector_dim, 8, log_var_scale=log_var_scale)
    return SiameseModel(encoder, PairObjective(decoder, aet_loss, noise_scale=encoder.noise_scale))


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(NIN(1, 0.05), noise_scale=0.1, **GREY).eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))


def test_the_code_is_mean_plus_scaled_deviation_times_noise(encoder: Encoder, x: torch.Tensor) -> None:
    eps = torch.randn(3, 10, 8, 8, generator=torch.Generator().manual_seed(2))
    taps = encoder.features(x, ["conv2", "conv2.log_var"])
    code = taps["conv2"] + 0.1 * torch.sqrt(torch.exp(taps["conv2.log_var"])) * eps

    torch.testing.assert_close(encoder.features(x, ["conv3"], eps)["conv3"], encoder.backbone.conv3(code))


def test_in_eval_mode_the_code_is_its_mean(encoder: Encoder, x: torch.Tensor) -> None:
    taps = encoder.features(x, ["conv1", "conv2", "conv3"])

    torch.testing.assert_close(taps["conv2"], encoder.backbone.conv2(taps["conv1"]))
    torch.testing.assert_close(taps["conv3"], encoder.backbone.conv3(taps["conv2"]))
    assert torch.equal(encoder(x), taps["conv2"])


def test_in_training_two_calls_draw_different_noise(encoder: Encoder, x: torch.Tensor) -> None:
    encoder.train()

    assert not torch.equal(encoder.encode(x)[0], encoder.encode(x)[0])


def test_without_noise_there_is_no_log_variance_branch(x: torch.Tensor) -> None:
    encoder = Encoder(NIN(1, 0.05), **GREY)

    assert encoder.layers == ("conv1", "conv2", "conv3", "conv4", "classifier")
    assert not [name for name in encoder.state_dict() if "log_var" in name]


def test_a_layer_that_does_not_exist_is_refused_with_the_list(encoder: Encoder, x: torch.Tensor) -> None:
    layers = r"conv1, conv2, conv3, conv4, classifier\.$"
    with pytest.raises(AvtError, match=rf"no layer 'conv7'\. .*Its layers: {layers}"):
        encoder.features(x, ["conv7"])
    assert encoder.features(x, ["conv2.log_var"])["conv2.log_var"].shape == (3, 10, 8, 8)


def test_an_encoder_made_with_an_output_returns_that_tap(x: torch.Tensor) -> None:
    assert Encoder(NIN(1, 0.05), output="conv4", **GREY).eval()(x).shape == (3, 10, 8, 8)
    assert Encoder(NIN(1, 0.05), output="classifier", **GREY).eval()(x).shape == (3, 10)


def test_images_are_normalised_from_grey_levels_and_from_shares(encoder: Encoder) -> None:
    levels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)

    assert encoder.normalise(levels).flatten().tolist() == [-2.0, 2.0]
    assert encoder.normalise(levels.float() / 255).flatten().tolist() == [-2.0, 2.0]


def test_the_code_shape_is_known_without_a_trace(encoder: Encoder) -> None:
    encoder.train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}

    assert encoder.code_shape(1, (32, 32)) == (10, 8, 8)
    assert encoder.training
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


def test_each_view_moves_the_running_averages_once(encoder: Encoder, x: torch.Tensor) -> None:
    model = siamese(encoder).train()
    model(x, x + 1)

    assert int(model.encoder.backbone.conv1[0][1].num_batches_tracked) == 2


def test_the_log_variance_is_scaled_and_the_mean_is_not(encoder: Encoder, x: torch.Tensor) -> None:
    model = siamese(encoder, 0.001).eval()
    both = torch.cat([encoder.encode(x)[0], encoder.encode(-x)[0]], 1)
    mean, log_var = model(x, -x)

    torch.testing.assert_close(mean, model.objective.decoder.mean_head(both))
    torch.testing.assert_close(log_var, model.objective.decoder.log_var_head(both) / 1000)


def test_the_decoder_keeps_full_precision_under_autocast(encoder: Encoder, x: torch.Tensor) -> None:
    model = siamese(encoder).eval()
    with torch.autocast("cpu", torch.bfloat16):
        mean, log_var = model(x, -x)
        vectors = torch.cat([encoder.encode(x)[0], encoder.encode(-x)[0]], 1)
    exact = model(x, -x)[0]

    assert vectors.dtype == torch.bfloat16
    assert (mean.dtype, log_var.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(mean, model.objective.decoder.mean_head(vectors.float()))
    assert not torch.equal(mean, mean.bfloat16().float())
    assert 0 < (mean - exact).abs().max() < 0.02 * exact.abs().max()


def test_nin_has_the_published_number_of_parameters() -> None:
    model = siamese(Encoder(NIN(3, 1.0), noise_scale=0.001, pixel_mean=[0] * 3, pixel_std=[1] * 3))

    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 1.45


def refusal(call: Callable[[], object]) -> str:
    """The message with which a call is refused."""
    with pytest.raises(AvtError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("name", ["normalise", "__call__", "features"])
@pytest.mark.parametrize(
    ("images", "channels", "advice"),
    [
        (torch.rand(2, 3, 32, 32), 1, "Images are (B, 1, H, W), found (2, 3, 32, 32): give images.mean(1, keepdim=True)"),
        (torch.rand(2, 1, 32, 32), 3, "Images are (B, 3, H, W), found (2, 1, 32, 32): give images.expand(-1, 3, -1, -1)"),
        (torch.rand(2, 32, 32, 3), 3, "Images are (B, 3, H, W), found (2, 32, 32, 3): give images.permute(0, 3, 1, 2)"),
        (torch.rand(2, 32, 32, 1), 1, "Images are (B, 1, H, W), found (2, 32, 32, 1): give images.permute(0, 3, 1, 2)"),
        (torch.rand(3, 32, 32), 3, "Images are (B, 3, H, W), found (3, 32, 32): give images[None]"),
        (torch.rand(32, 32, 3), 3, "Images are (B, 3, H, W), found (32, 32, 3): give images.permute(2, 0, 1)[None]"),
        (torch.rand(2, 5, 32, 32), 3, "Images are (B, 3, H, W), found (2, 5, 32, 32): give another shape"),
        (np.zeros((2, 1, 32, 32), np.float32), 1, "a tensor, (B, 1, H, W), found ndarray: give torch.as_tensor(images)"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(getattr(value, "shape", value)),
)
def test_images_of_another_layout_are_refused_with_what_to_give(name: str, images: Any, channels: int, advice: str) -> None:
    encoder = Encoder(NIN(channels, 0.05), pixel_mean=[0.5] * channels, pixel_std=[0.25] * channels).eval()
    arguments = (images, ["conv1"]) if name == "features" else (images,)

    assert advice in refusal(lambda: getattr(encoder, name)(*arguments))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.rand(2, 1, 32, 32) * 255, "Images are floats in [0, 1] or uint8, found values from"),
        (torch.randint(0, 256, (2, 1, 32, 32)), r"found torch.int64: give images.to(torch.uint8)"),
        (torch.full((2, 1, 32, 32), float("nan")), "found values from nan to nan"),
    ],
)
def test_images_of_another_range_are_not_normalised(encoder: Encoder, images: torch.Tensor, words: str) -> None:
    assert words in refusal(lambda: encoder.normalise(images))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.rand(2, 1, 32, 32) * 255, "Normalised images are within 2.0 of 0, found values from"),
        (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), "found torch.uint8: give encoder.normalise(images)"),
        (torch.zeros(2, 1, 32, 32).double(), "The images are torch.float64 on cpu, the weights torch.float32 on cpu: give"),
        (torch.zeros(2, 1, 32, 32, device="meta"), "The images are torch.float32 on meta, the weights torch.float32 on cpu"),
    ],
)
def test_what_is_not_normalised_is_not_encoded(encoder: Encoder, images: torch.Tensor, words: str) -> None:
    for call in (encoder, lambda x: siamese(encoder)(x, x)):
        assert words in refusal(lambda call=call: call(images))


def test_interpolated_images_may_overshoot(encoder: Encoder) -> None:
    images = torch.nn.functional.interpolate(torch.rand(4, 1, 32, 32).round(), size=48, mode="bicubic")
    assert images.max() > 1.1

    encoder(encoder.normalise(images))


def test_the_checks_break_no_graph(encoder: Encoder, x: torch.Tensor) -> None:
    whole = torch.compile(lambda images: encoder(encoder.normalise(images)), fullgraph=True, backend="eager")
    images = x.sigmoid()

    torch.testing.assert_close(whole(images), encoder(encoder.normalise(images)))
    assert torch.equal(torch.export.export(encoder, (x,)).module()(x), encoder(x))


def test_the_encoder_is_mapped_over_batches(encoder: Encoder, x: torch.Tensor) -> None:
    batches = torch.stack([x, x.flip(0)])

    mapped = torch.func.vmap(encoder.eval())(batches)

    torch.testing.assert_close(mapped, torch.stack([encoder(batch) for batch in batches]))
