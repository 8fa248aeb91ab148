"""Settings: layers merged, checked at once, written and read back."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from avtcli import recipes
from avtcli.config.pretrain_config import PretrainConfig
from avtcli.config.resolution import merge, options_from_texts, resolve, validate
from avtcli.config.toml_text import to_toml
from avtcli.errors import AvtError
from avtcli.evaluation.evaluation_setup import choose_transform


def test_flags_override_the_recipe_and_none_means_not_given() -> None:
    config = resolve({"dataset": {"name": "cifar10"}, "backbone": {"name": "nin", "width": "0.5"}, "seed": None}, recipe=None)

    assert config.recipe == "cifar10-nin"
    assert config.backbone.options == {"width": 0.5}
    assert config.batch_size == 512
    assert config.seed == 0


def test_a_plugin_of_another_name_leaves_the_options_of_the_first_behind() -> None:
    below = {"transform": {"name": "projective", "shift": 0.1}}

    assert merge(below, {"transform": {"name": "affine"}}) == {"transform": {"name": "affine"}}
    assert merge(below, {"transform": {"scale_low": 1}}) == {"transform": {"name": "projective", "shift": 0.1, "scale_low": 1}}


def test_lr_is_the_peak_and_the_others_keep_their_ratio() -> None:
    before = resolve({}, recipe="cifar10-nin").schedule
    after = resolve({"lr": 0.05}, recipe="cifar10-nin").schedule

    assert after.peak == 0.05
    assert [p.rate for p in after.pieces] == pytest.approx([10 * p.rate for p in before.pieces])
    assert [p.slope for p in after.pieces] == pytest.approx([10 * p.slope for p in before.pieces])
    assert [p.rate for p in after.log_var_pieces] == pytest.approx([0.1, 1e-4])


@pytest.mark.parametrize("lr", [0.0, -1.0, float("inf"), float("nan")])
def test_a_rate_that_cannot_be_stored_is_refused(lr: float) -> None:
    with pytest.raises(AvtError, match="must be above 0 and finite"):
        resolve({"lr": lr}, recipe=None)


@pytest.mark.parametrize("recipe", ["default", "cifar10-nin"])
def test_a_written_config_reads_back_equal_and_writes_the_same_text(recipe: str, tmp_path: Path) -> None:
    over = {"lr": 0.30000000000000004, "backbone": {"width": 0.25}, "limit_train": 100, "dataset": {"name": 'folder:a"\n\\:é'}}
    config = resolve(over, recipe=recipe)
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    again = resolve({}, recipe=str(path))

    assert again == config
    assert to_toml(again) == to_toml(config)


SUM = "projective+photometric"
SPELLINGS = [
    ({}, {"transform": {"shift": "0.125"}}),
    ({"backbone": {"width": "1"}}, {"backbone": {"width": 1.0}}),
    ({"transform": {"mean": [0] * 8, "rotate": "no"}}, {"transform": {"rotate": False, "mean": [0.0] * 8}}),
    ({"backbone": {"name": "resnet18"}}, {"backbone": {"name": "timm:resnet18", "pretrained": "false"}}),
    ({"transform": {"name": SUM}}, {"transform": {"name": SUM, "photometric": {"low": "0.2"}}}),
    ({"objective": {"name": "avt+simclr"}}, {"objective": {"name": "avt+simclr", "simclr": {"weight": "1"}}}),
    (
        {"backbone": {"name": "timm:test_vit", "args": {"patch_size": "8", "class_token": "false"}}},
        {"backbone": {"name": "test_vit", "args": {"patch_size": 8, "class_token": False}}},
    ),
]


@pytest.mark.parametrize(("one", "other"), SPELLINGS)
def test_two_spellings_of_one_setting_are_equal(one: dict[str, Any], other: dict[str, Any], tmp_path: Path) -> None:
    config = resolve(one, recipe=None)
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")

    assert resolve(other, recipe=None) == config
    assert resolve({}, recipe=str(tmp_path / "config.toml")) == config
    assert resolve(other, recipe=str(tmp_path / "config.toml")) == config


def test_a_written_config_holds_every_option_of_the_plugins_typed() -> None:
    config = resolve({"backbone": {"name": "resnet18"}, "transform": {"name": "projective+photometric"}}, recipe=None)
    written = tomllib.loads(to_toml(config))

    assert written["backbone"] == {"name": "timm:resnet18", "pretrained": False}
    options = {"noise_scale": 0.001, "log_var_divisor": 1000.0, "variance_floor": 1e-4, "views": 1}
    assert written["objective"] == {"name": "avt", **options}
    assert set(written["transform"]) == {"name", "projective", "photometric"}
    assert written["transform"]["photometric"] == {"low": 0.2, "high": 1.8, "truncate": True}


def test_a_transform_given_as_the_run_has_it_is_the_runs_own() -> None:
    config = resolve({}, recipe=None)

    assert choose_transform(config, {"shift": "0.125"}) == config.transform
    assert choose_transform(None, {}) == config.transform


def test_an_unknown_option_of_a_plugin_is_refused_on_resolving() -> None:
    with pytest.raises(AvtError, match=r"'projective' has no option 'shfit'\. Did you mean 'shift'"):
        resolve({"transform": {"shfit": "0.1"}}, recipe=None)
    with pytest.raises(AvtError, match=r"takes its parts' options, found 'transform\.shift'\."):
        resolve({"transform": {"name": "projective+photometric", "shift": "0.1"}}, recipe=None)


def test_every_setting_is_preceded_by_its_description() -> None:
    text = to_toml(resolve({}, recipe="cifar10-nin"))

    assert "# Images per step, over all processes.\nbatch_size = 512\n" in text
    assert "# Black pixels added on each side before the crop.\npadding = 4\n" in text


def test_all_bad_settings_are_named_at_once_with_the_nearest_known() -> None:
    with pytest.raises(AvtError) as caught:
        resolve({"batch_size": 1, "schedule": {"rat": 1}, "optimizer": {"name": "adam"}}, recipe=None)

    message = str(caught.value)
    assert "batch_size: Input should be greater than or equal to 2, found 1" in message
    assert "schedule.rat: there is no such setting. Did you mean 'rate'?" in message
    assert "optimizer.name: Input should be 'sgd' or 'adamw', found 'adam'" in message


def test_pieces_out_of_order_are_refused() -> None:
    pieces = [{"start": 0, "rate": 1}, {"start": 9, "rate": 1}, {"start": 5, "rate": 1}]
    with pytest.raises(AvtError, match="must start at epoch 0 and be in ascending order"):
        validate(PretrainConfig, {"schedule": {"pieces": pieces}}, where="here")


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (["optimizer.name=sgd", "optimizer.momentum=0"], r"optimizer: Nesterov .* give `-o optimizer\.nesterov=false`"),
        (["schedule.pieces=[{start=0, rate=0}]"], "schedule.pieces must have a rate above 0"),
        (
            ["schedule.pieces=[{start=0, rate=1}, {start=30, rate=0.1}]"],
            r"must start before the end, epoch 30, found .* --epochs",
        ),
        (["schedule.pieces=[{start=0, rate=1, slope=-0.1}]"], "must not fall below 0, found the rate -2 at epoch 30"),
        (["schedule.log_var_pieces=[{start=0, rate=1, slope=-1}, {start=9, rate=1}]"], "the rate -8 at epoch 9"),
    ],
)
def test_what_would_fail_or_train_nothing_is_a_settings_error(texts: list[str], why: str) -> None:
    with pytest.raises(AvtError, match=why):
        resolve(options_from_texts(texts, kinds=("optimizer", "schedule")), recipe="default")


@pytest.mark.parametrize(
    "texts",
    [
        ["optimizer.momentum=0"],  # adamw has none
        ["optimizer.name=sgd", "optimizer.momentum=0", "optimizer.nesterov=false"],
        ["schedule.pieces=[{start=0, rate=0, slope=0.1}, {start=10, rate=1, slope=-0.05}]"],  # down to 0
    ],
)
def test_settings_that_can_be_trained_with_are_taken(texts: list[str]) -> None:
    resolve(options_from_texts(texts, kinds=("optimizer", "schedule")), recipe="default")


def test_options_go_to_their_sections_and_deeper() -> None:
    texts = ["backbone.width=0.25", "transform.mean=[1, 2]", "transform.projective.shift=0.1", "augment.flip=no"]

    assert options_from_texts(texts, kinds=("backbone", "transform", "augment")) == {
        "backbone": {"width": "0.25"},
        "transform": {"mean": [1, 2], "projective": {"shift": "0.1"}},
        "augment": {"flip": "no"},
    }


@pytest.mark.parametrize("text", ["width=1", "backbone.width", "backbone.=1", "backbone..x=1", "=1"])
def test_an_option_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(AvtError, match=r"-o takes KIND\.KEY=VALUE"):
        options_from_texts([text], kinds=("backbone",))
    with pytest.raises(AvtError, match=r"-o takes no kind 'backbon' here\. Did you mean 'backbone'"):
        options_from_texts(["backbon.width=1"], kinds=("backbone",))


@pytest.mark.parametrize("texts", [["backbone.a=1", "backbone.a.b=2"], ["backbone.a.b=2", "backbone.a=1"]])
def test_a_value_and_options_of_one_name_are_refused(texts: list[str]) -> None:
    with pytest.raises(AvtError, match=r"-o gives 'a' both"):
        options_from_texts(texts, kinds=("backbone",))


def test_a_value_in_place_of_a_table_is_refused() -> None:
    with pytest.raises(AvtError, match="augment needs a table of settings, found 32"):
        merge({"augment": 32}, {"augment": {"crop": 8}})


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_has_a_kind_a_title_and_a_source(name: str) -> None:
    about = recipes.parse(name, recipes.text(name))["about"]

    assert set(about) == {"kind", "title", "source"}
    assert about["kind"] in ("pretrain", "probe")


def test_a_recipe_that_does_not_exist_or_is_no_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("a = ")
    (tmp_path / "latin.toml").write_bytes(b"# \xe9")
    (tmp_path / "untitled.toml").write_text("seed = 1\n[about]\ntitle = 'mine'")

    with pytest.raises(AvtError, match=r"No recipe is called 'cifar10-nim'\. Did you mean 'cifar10-nin'"):
        recipes.load("cifar10-nim", kind="pretrain")
    with pytest.raises(AvtError, match=r"There is no recipe file nowhere\.toml"):
        recipes.load("nowhere.toml", kind="pretrain")
    with pytest.raises(AvtError, match=r"bad\.toml is no TOML"):
        recipes.load(str(tmp_path / "bad.toml"), kind="pretrain")
    with pytest.raises(AvtError, match=r"latin\.toml is not UTF-8 text"):
        recipes.load(str(tmp_path / "latin.toml"), kind="pretrain")
    assert recipes.load(str(tmp_path / "untitled.toml"), kind="pretrain") == {"seed": 1}
    with pytest.raises(AvtError, match="is for `avt pretrain`, not for `avt probe`"):
        recipes.load("default", kind="probe")
