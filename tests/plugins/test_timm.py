"""timm's families as backbones: what is read is what timm reads, everything learns, and what cannot work says why."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from avtcli import registry
from avtcli.errors import AvtError
from avtcli.models.decoder import Decoder
from avtcli.models.encoder import Encoder
from avtcli.models.siamese import SiameseModel
from avtplugins.backbones._timm_taps import TapLocation, default_code_tap
from avtplugins.backbones.timm import TimmBackbone, timm_backbone
from avtplugins.objectives._pairs import PairObjective
from avtplugins.objectives.gaussian import gaussian_loss

SMALL_VIT = {"embed_dim": 48, "depth": 3, "num_heads": 3}
QUICK: dict[str, dict[str, Any]] = {
    "test_resnet": {},
    "test_convnext": {},
    "test_efficientnet": {},
    "test_mambaout": {},  # (B, H, W, C)
    "test_nfnet": {},
    "test_vit": {"patch_size": 8},  # a class token
    "mixer_s16_224": {},  # tokens without one
}
_PLAIN = """
    resnet18 resnetv2_18 regnetx_002 regnety_002 convnext_atto convnextv2_atto efficientnet_b0 mobilenetv3_small_050
    mobilenetv4_conv_small_035 densenet121 vgg11_bn inception_v3 dla46_c nf_regnet_b0 resnest14d res2net50_26w_4s skresnet18
    dpn48b swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 hieradet_small maxvit_rmlp_pico_rw_256
    coatnet_pico_rw_224 levit_128s poolformer_s12 xcit_nano_12_p8_224 edgenext_xx_small mobilevit_xxs cait_xxs24_224
    convit_tiny repvgg_a0 ghostnet_050 rexnet_100 fastvit_t8 efficientformerv2_s0 repvit_m0_9 pvt_v2_b0 volo_d1_224
    davit_tiny focalnet_tiny_srf gcvit_xxtiny nest_tiny_jx tiny_vit_5m_224 rdnet_tiny cspresnet50 xception41
    efficientvit_b0 selecsls42
"""
SLOW: dict[str, dict[str, Any]] = {
    **{name: {} for name in _PLAIN.split()},
    "vit_tiny_patch16_224": {"patch_size": 8},
    "vit_small_patch14_reg4_dinov2": {"patch_size": 8, **SMALL_VIT},  # a class token and four registers
    "deit3_small_patch16_224": {"patch_size": 8, **SMALL_VIT},
    "beit_base_patch16_224": {"patch_size": 8, **SMALL_VIT},
    "eva02_tiny_patch14_224": {"patch_size": 8, **SMALL_VIT},
}
LARGER = {"inception_v3": 96, "levit_128s": 64, "mixer_s16_224": 64}
"""The sides of images, where 32 px are too few."""


@dataclass(frozen=True)
class Trained:
    """A model after two steps of training, since weights that begin at zero hide the gradients of the first."""

    name: str
    model: SiameseModel
    backbone: TimmBackbone
    images: Tensor


def build(name: str, *, side: int = 32, **options: Any) -> TimmBackbone:
    torch.default_generator.manual_seed(0)
    made = registry.build("backbone", f"timm:{name}", options, in_channels=1, image_size=(side, side))
    assert isinstance(made, TimmBackbone)
    return made


def train(name: str, args: dict[str, Any]) -> Trained:
    side = LARGER.get(name, 32)
    backbone = build(name, side=side, args=args)
    decoder = Decoder(2 * backbone.vector_dim, 8, log_var_scale=1.0)
    objective = PairObjective(decoder, gaussian_loss, noise_scale=0.1)
    model = SiameseModel(Encoder(backbone, noise_scale=0.1, pixel_mean=[0.5], pixel_std=[0.25]), objective).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x, y = torch.randn(2, 4, 1, side, side, generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        optimizer.zero_grad()
        mean, log_var = model(x, y)
        (((mean - 1) ** 2 / log_var.exp() + log_var).sum() / len(x)).backward()
        optimizer.step()
    return Trained(name, model, backbone, x)


FAMILIES = [*QUICK.items(), *(pytest.param(family, marks=pytest.mark.slow) for family in SLOW.items())]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family[0])
def trained(request: pytest.FixtureRequest) -> Trained:
    return train(*request.param)


def test_every_tap_is_finite_and_equals_the_feature_that_timm_reads(trained: Trained) -> None:
    taps = trained.model.encoder.eval().features(trained.images, list(trained.backbone.taps))
    model = trained.backbone.model
    if not hasattr(model, "forward_intermediates"):
        pytest.skip("this version of timm cannot read the features itself")
    modules = [feature["module"] for feature in model.feature_info]
    theirs = dict(zip(modules, model.forward_intermediates(trained.images, norm=False, intermediates_only=True), strict=True))

    for name, tap in taps.items():
        assert tap.isfinite().all(), name
        assert tap.shape[1] == trained.backbone.taps[name], name
        torch.testing.assert_close(tap, theirs[name] if name != "pre_logits" else model(trained.images), rtol=1e-4, atol=1e-5)


def test_the_gradient_reaches_the_first_layer_and_every_trained_weight(trained: Trained) -> None:
    first = next(m for m in trained.backbone.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    without = [name for name, p in trained.model.named_parameters() if p.requires_grad and p.grad is None]

    assert first.weight.grad is not None
    assert first.weight.grad.abs().max() > 0
    assert without == []


def test_only_layers_after_the_code_depend_on_what_it_returns(trained: Trained) -> None:
    backbone, names = trained.backbone.eval(), list(trained.backbone.taps)
    at = names.index(backbone.code_tap)
    wanted = [name for name in names if name != backbone.code_tap]
    with torch.no_grad():
        plain_vector, plain = backbone(trained.images, lambda mean: mean, wanted)
        moved_vector, transformed = backbone(trained.images, lambda mean: mean.flip(1) + 1, wanted)

    assert all(torch.equal(plain[name], transformed[name]) for name in names[:at])
    assert not any(torch.equal(plain[name], transformed[name]) for name in names[at + 1 :])
    assert not torch.equal(plain_vector, moved_vector)


def test_a_copy_gives_the_same_output_and_shares_no_weights(trained: Trained) -> None:
    trained.model.train()(trained.images, trained.images)
    encoder = trained.model.encoder.eval()
    twin = copy.deepcopy(encoder)
    with torch.no_grad():
        before = encoder(trained.images)
        for parameter in encoder.parameters():
            parameter.mul_(1.5)
        after = twin(trained.images)
        for parameter in encoder.parameters():
            parameter.div_(1.5)

    assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("hrnet_w18_small", 32),
        *(
            pytest.param(name, side, marks=pytest.mark.slow)
            for name, side in [
                ("coat_tiny", 32),
                ("efficientvim_m1", 64),
                ("mvitv2_tiny", 32),
                ("tnt_s_legacy_patch16_224", 32),
                ("pit_ti_224", 64),
                ("twins_svt_small", 32),
            ]
        ),
    ],
)
def test_without_a_map_to_stand_at_the_code_is_the_pooled_feature(name: str, side: int) -> None:
    backbone = build(name, side=side)
    encoder = Encoder(backbone, noise_scale=0.1, pixel_mean=[0.5], pixel_std=[0.25])
    x = torch.randn(3, 1, side, side, generator=torch.Generator().manual_seed(1))
    encoder.train().encode(x)[0].square().sum().backward()
    without = [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    with torch.no_grad():
        vector, _ = encoder.eval().encode(x)
        noisy, _ = encoder.encode(x, torch.ones(3, backbone.vector_dim, 1, 1))
        code = encoder.features(x, ["pre_logits"])["pre_logits"]
        log_var = encoder.features(x, ["pre_logits.log_var"])["pre_logits.log_var"]

        assert without == []
        assert torch.equal(vector, backbone.model(x))
        assert torch.equal(code, vector[:, :, None, None])
        torch.testing.assert_close(noisy, vector + 0.1 * (0.5 * log_var).exp().flatten(1))


def test_a_model_that_does_not_take_the_images_says_why_in_one_line() -> None:
    with pytest.raises(
        AvtError, match=r"does not take images of 1x32x32: RuntimeError: Calculated padded input.*Try larger"
    ) as e:
        build("inception_v3")
    assert "\n" not in str(e.value)


def test_one_block_under_a_class_token_leaves_the_pooled_feature_to_the_code() -> None:
    assert build("test_vit", args={"depth": 1, "global_pool": "token"}).code_tap == "pre_logits"


def test_the_default_code_is_the_deepest_inner_map_of_4x4_cells() -> None:
    assert build("test_resnet").code_tap == "layer2"  # 4x4 at 32 px
    assert build("test_resnet", side=64).code_tap == "layer3"
    assert build("test_resnet", side=128).code_tap == "layer3"  # layer4 is 4x4 too, and the last
    assert build("test_vit", args={"patch_size": 8}).code_tap == "blocks.4"  # of six, all 4x4


def places(*sides: int, reaches: tuple[bool, ...] | None = None) -> list[TapLocation]:
    return [
        TapLocation(f"p{i}", 1, (side, side), "NCHW", reaches=reaches is None or reaches[i]) for i, side in enumerate(sides)
    ]


def test_without_4x4_cells_the_code_is_the_deepest_of_the_largest_maps() -> None:
    assert default_code_tap(places(3, 3, 2, 1)).name == "p1"
    assert default_code_tap(places(2)).name == "p0"


def test_the_default_code_is_at_a_map_that_the_vector_depends_on() -> None:
    assert default_code_tap(places(8, reaches=(False,))) is None
    assert default_code_tap(places(8, 8, 8, reaches=(True, False, True))).name == "p0"
    assert default_code_tap(places(8, 8, reaches=(False, True))).name == "p1"


def test_the_code_is_placed_by_name_and_refused_at_no_map_with_the_taps() -> None:
    assert build("test_resnet", code_at="layer3").code_tap == "layer3"
    with pytest.raises(AvtError, match=r"at 'layer9': no map of that name\. Did you mean 'layer4'\? Taps: act1, la"):
        build("test_resnet", code_at="layer9")


def test_a_code_that_a_class_token_passes_by_is_refused() -> None:
    with pytest.raises(
        AvtError, match=r"cannot stand at 'blocks\.5': the pooled feature does not depend on it.*blocks\.4, pre_logits\.$"
    ):
        build("test_vit", code_at="blocks.5", args={"global_pool": "token"})


def test_tokens_become_the_map_row_by_row_and_come_back_with_their_prefix() -> None:
    place = TapLocation("blocks.0", 2, (2, 3), "tokens", prefix=1)
    tokens = torch.arange(2 * 7 * 2.0).view(2, 7, 2)
    cells = place.to_map(tokens)

    assert cells[0, :, 1, 2].tolist() == tokens[0, 6].tolist()
    assert cells[0, :, 0, 1].tolist() == tokens[0, 2].tolist()
    assert torch.equal(place.from_map(cells, tokens), tokens)


def test_images_need_not_be_square() -> None:
    made = registry.build("backbone", "timm:test_vit", {"args": {"patch_size": "8"}}, in_channels=3, image_size=(16, 40))
    seen: list[Tensor] = []
    made.eval()(torch.zeros(1, 3, 16, 40), lambda mean: seen.append(mean) or mean)

    assert seen[0].shape[2:] == (2, 5)


def test_the_vector_is_timms_own_pooled_feature_and_a_tap() -> None:
    made, x = build("test_resnet").eval(), torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    vector, taps = made(x, lambda mean: mean, ["pre_logits"])

    assert vector.shape == (2, made.vector_dim)
    assert torch.equal(vector, made.model.forward_head(made.model.forward_features(x), pre_logits=True))
    assert torch.equal(taps["pre_logits"], vector)


def test_weights_keep_timms_own_names_so_that_timm_loads_them() -> None:
    made = build("test_efficientnet")
    weights = {name.removeprefix("model."): tensor for name, tensor in made.state_dict().items()}

    timm.create_model("test_efficientnet", num_classes=0, in_chans=1).load_state_dict(weights, strict=True)


def test_weights_without_influence_are_frozen() -> None:
    made = build("test_vit", args={"global_pool": "avg", "reg_tokens": 1, "block_fn": Unused})

    frozen = [name for name, parameter in made.model.named_parameters() if not parameter.requires_grad]
    assert frozen == [f"blocks.{i}.spare.{part}" for i in range(6) for part in ("weight", "bias")]


class Unused(timm.models.vision_transformer.Block):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.spare = nn.Linear(2, 2)


def test_building_disturbs_no_random_state_beyond_the_weights() -> None:
    build("test_vit")
    after = torch.default_generator.get_state()
    torch.default_generator.manual_seed(0)
    timm.create_model("test_vit", num_classes=0, in_chans=1, img_size=32)

    assert torch.equal(torch.default_generator.get_state(), after)


def test_building_changes_neither_running_averages_nor_the_mode() -> None:
    made = build("test_resnet")

    assert made.training
    assert all(module.training for module in made.modules())
    assert not any(int(t) for name, t in made.state_dict().items() if name.endswith("num_batches_tracked"))


def test_it_builds_where_gradients_are_switched_off() -> None:
    with torch.no_grad():
        assert build("test_resnet").code_tap == "layer2"


def test_an_unknown_model_is_refused_with_the_nearest() -> None:
    with pytest.raises(AvtError, match=rf"timm {timm.__version__} has no model 'resnt18'\. Did you mean 'resnet18'\?"):
        build("resnt18")


def test_an_argument_that_the_model_does_not_take_is_refused() -> None:
    for option in ("patch_size", "img_size"):
        with pytest.raises(AvtError, match=f"'test_resnet' does not take these arguments: .*keyword argument '{option}'"):
            build("test_resnet", args={option: "32"})


def test_a_value_that_the_model_cannot_be_made_with_is_refused() -> None:
    expected = r"'test_resnet' cannot be made with \{'in_chans': 1, 'act_layer': 'nonsense'\}: KeyError: 'nonsense'"
    with pytest.raises(AvtError, match=expected):
        build("test_resnet", args={"act_layer": "nonsense"})


def test_arguments_from_the_command_line_are_numbers_truth_values_or_text() -> None:
    made = build("test_vit", args={"patch_size": "16", "class_token": "false", "global_pool": "avg", "init_values": "1e-2"})

    assert made.model.cls_token is None
    assert made.model.patch_embed.grid_size == (2, 2)
    assert float(made.model.blocks[0].ls1.gamma[0].detach()) == pytest.approx(0.01)


def test_without_a_network_published_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(AvtError, match=r"published weights of timm's 'test_resnet' cannot be loaded: .*use --init-from"):
        build("test_resnet", pretrained=True)


def test_a_model_without_one_vector_an_image_is_refused() -> None:
    with pytest.raises(AvtError, match=r"'test_resnet' gives \(1, 96, 1, 1\) for one image, expected one vector"):
        build("test_resnet", args={"global_pool": ""})


def test_a_bare_name_that_no_plugin_has_is_timms() -> None:
    assert registry.full_name("backbone", "test_resnet") == "timm:test_resnet"
    assert registry.full_name("backbone", "resnet18.a1_in1k") == "timm:resnet18.a1_in1k"
    assert registry.full_name("backbone", "nin") == "nin"
    assert registry.full_name("backbone", "timm:nin") == "timm:nin"
    assert isinstance(registry.build("backbone", "test_resnet", {}, in_channels=1, image_size=(32, 32)), TimmBackbone)


def test_a_bare_name_that_nobody_has_is_refused_with_the_nearest_of_all() -> None:
    with pytest.raises(AvtError, match=r"called 'resnt18'\. Did you mean 'resnet18'\? Installed: alexnet, nin, .*timm\."):
        registry.build("backbone", "resnt18", {}, in_channels=1)


def test_images_that_fill_no_whole_number_of_patches_are_refused() -> None:
    """timm drops the rest of their rows and columns."""
    with pytest.raises(AvtError, match=r"multiples of 16 px, found 75x75\. Give `-o augment\.crop=64`"):
        timm_backbone("vit_tiny_patch16_224", in_channels=3, image_size=(75, 75))
