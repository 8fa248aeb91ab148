"""`avt export`: the format is a plugin, and nothing is published that does not load back."""

from collections.abc import Callable
from pathlib import Path

import pytest

from avtcli.exporting import export as export_module
from tests.support import Result

FOLDER_FORMAT = """
from avtcli.contracts import Exporter
from avtcli.models.weights import save_encoder

class Folder(Exporter):
    suffix = ""

    def write(self, encoder, path, about):
        path.mkdir()
        (path / "sub").mkdir()
        {write}

    def load_with(self, path):
        return "from avtcli import load_encoder", f"encoder = load_encoder({{str(path / 'sub' / 'a.safetensors')!r}})"

def folder() -> Exporter:
    "A folder."
    return Folder()
"""
WRITE = "save_encoder(encoder, path / 'sub' / 'a.safetensors', about)"
COPY = "from copy import deepcopy; encoder = deepcopy(encoder).requires_grad_(False);"
OTHER_NAMES = f"{COPY} encoder.log_var = None; {WRITE}"
OTHER_WEIGHTS = f"{COPY} encoder.backbone.conv1[0][1].weight.mul_(2); {WRITE}"


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.endswith((".py", ".pyc")))


@pytest.fixture
def export(avt: Callable[..., Result], install: Callable[..., None], tiny_run: Path) -> Callable[..., Result]:
    """Install a folder format with another way to write, and export with it."""

    def run(write: str, *lines: str) -> list[Result]:
        install({"avtcli.exporters": {"folder": "folder_format:folder"}}, folder_format=FOLDER_FORMAT.format(write=write))
        return [avt(f"export {tiny_run} --format folder {line}") for line in lines]

    return run


@pytest.mark.usefixtures("exports_load_here")
def test_a_folder_is_written_loaded_back_and_kept_when_written_again(export: Callable[..., list[Result]]) -> None:
    first, again, other = export(WRITE, "--out out", "--out out", "--out out --layer conv3")

    assert (first.code, again.code, other.code) == (0, 0, 2), first.stderr + again.stderr
    assert written(Path("out")) == ["README.md", "sub", "sub/a.safetensors"]
    assert "out exists already and is not overwritten" in other.stderr


@pytest.mark.parametrize("write", [OTHER_NAMES, "pass"])
def test_nothing_is_left_of_a_file_that_does_not_load_back(export: Callable[..., list[Result]], write: str) -> None:
    (result,) = export(write, "--out below/out")

    assert (result.code, "was written and does not load back" in result.stderr) == (1, True), result.stderr
    assert written(Path("below")) == []


@pytest.mark.usefixtures("exports_load_here")
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (OTHER_WEIGHTS, "differ by"),
        ("raise OSError(28, 'No space left on device')", "could not be written: No space left on device"),
    ],
)
def test_nothing_is_left_of_a_file_with_other_features_or_on_a_full_disk(
    export: Callable[..., list[Result]], write: str, message: str
) -> None:
    (result,) = export(write, "--out below/out")

    assert (result.code, message in result.stderr) == (1, True), result.stderr
    assert written(Path("below")) == []


@pytest.mark.parametrize(("found", "code"), [((1e-3, 1e3), 0), ((1e-7, 1e-3), 1), ((0.0, 0.0), 0)])
def test_features_are_compared_by_their_own_scale(
    found: tuple[float, float], code: int, avt: Callable[..., Result], tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest difference and the largest feature, of a format that may be off by a share of 1e-5."""
    monkeypatch.setattr(export_module, "compare_loaded", lambda *args: found)

    assert avt(f"export {tiny_run} --out out.safetensors").code == code


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--out encoder.bin", "writes a file that ends in .safetensors, found --out encoder.bin. Give --out encoder.s"),
        ("--format safetensor", "No exporter is called 'safetensor'. Did you mean 'safetensors'?"),
    ],
)
def test_another_ending_or_format_is_refused_before_anything_is_written(
    avt: Callable[..., Result], tiny_run: Path, line: str, message: str
) -> None:
    result = avt(f"export {tiny_run} {line}")

    assert (result.code, list(Path().iterdir())) == (2, [])
    assert message in result.stderr
