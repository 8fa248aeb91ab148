"""Every built-in plugin passes the conformance checks."""

import inspect
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from avtcli import registry
from avtcli.plugin_kit import check_plugin
from avtcli.plugin_kit.plugin_checks import FreshImport
from avtcli.plugin_options import option_helps
from tests.support import write_cifar10, write_cifar100, write_idx, write_stl10, write_svhn

torch.set_num_threads(1)

OURS = [info for info in registry.listing() if info.distribution == "avtcli"]
VARIANTS = {("backbone", "timm"): "resnet18"}
PLACES = "data/vision/torralba/deeplearning/images256"


def write_images(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 36), (number * 40, 7, 200 - number * 30)).save(folder / name, format="JPEG")


def small_imagenet(folder: Path) -> Path:
    write_images(folder, [f"{part}/n0{c}/n0{c}_{i}.JPEG" for part in ("train", "val") for c in (1, 2) for i in (1, 2)])
    return folder


def small_folder(folder: Path) -> Path:
    write_images(folder, ["b.jpg", "a/1.jpg", "a/b/2.jpeg"])
    return folder


def small_places(folder: Path) -> Path:
    write_images(folder / PLACES, [f"a/abbey/gsun_{i}.jpg" for i in range(4)])
    for part, numbers in (("train", (0, 1, 2)), ("val", (3,))):
        path = folder / "trainvalsplit_places205" / f"{part}_places205.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"a/abbey/gsun_{i}.jpg {i}\n" for i in numbers))
    return folder


def small_list(folder: Path) -> Path:
    write_images(folder, ["b.jpg", "a/1.jpg", "a/b/2.jpeg"])
    (folder / "list.csv").write_text("path,label\nb.jpg,x\na/1.jpg,y\na/b/2.jpeg,x\n")
    return folder / "list.csv"


def small_shard(folder: Path) -> Path:
    write_images(folder, ["0.jpg", "1.jpg", "2.jpg"])
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.add(folder, "")
    return folder / "*.tar"


def small_hub(folder: Path) -> Path:
    from datasets import Dataset, Features, disable_progress_bars
    from datasets import Image as ImageColumn

    disable_progress_bars()
    write_images(folder, ["0.jpg", "1.jpg", "2.jpg"])
    columns = {"image": [str(folder / f"{i}.jpg") for i in range(3)]}
    Dataset.from_dict(columns, features=Features({"image": ImageColumn()})).save_to_disk(folder / "saved")
    return folder / "saved"


SMALL = {
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "fashion-mnist": write_idx,
    "files": small_list,
    "folder": small_folder,
    "hf": small_hub,
    "imagenet": small_imagenet,
    "mnist": write_idx,
    "places205": small_places,
    "shards": small_shard,
    "stl10": write_stl10,
    "svhn": write_svhn,
}


@pytest.mark.parametrize("info", OURS, ids=[f"{info.kind}-{info.name}" for info in OURS])
def test_every_built_in_plugin_passes_the_conformance_checks(
    info: registry.PluginInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a fresh process for each would cost minutes: the next test imports all of them in one
    monkeypatch.setattr("avtcli.plugin_kit.plugin_checks.import_afresh", lambda info: FreshImport(info.value, seconds=0.0))
    variant = VARIANTS.get((info.kind, info.name))
    spec = info.name if variant is None else f"{info.name}:{variant}"
    if info.name in SMALL:
        spec = f"{info.name}:{SMALL[info.name](tmp_path / 'small')}"

    checks = check_plugin(spec, kind=info.kind)

    assert [check for check in checks if not check.ok] == []
    assert len(checks) >= (6 if info.kind == "tracker" else 8)


def test_the_data_sets_of_own_images_share_their_options_and_the_texts() -> None:
    """They stand in each of the signatures, which `avt plugins show` and completion read."""
    stated = list[object]()
    for name in ("folder", "files", "shards", "hf"):
        function = registry.load(registry.info("dataset", name))
        parameters, helps = inspect.signature(function).parameters, option_helps(inspect.getdoc(function) or "")
        shared = ("channels", "orient", "background", "mean", "std")
        stated.append([(key, parameters[key].annotation, parameters[key].default, helps[key]) for key in shared])

    assert stated[1:] == stated[:1] * 3


def test_importing_plugins_prints_nothing_and_loads_no_heavy_library() -> None:
    modules = sorted({info.entry_point.module for info in OURS if info.name != "timm"})
    code = f"import sys, {', '.join(modules)}; print([name for name in ('timm', 'torchvision') if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)

    assert (ended.stdout, ended.stderr) == ("[]\n", "")
