"""`avt plugins check` and `avt plugins new`."""

import importlib
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from avtcli import registry
from avtcli.plugin_kit import plugin_checks
from avtcli.plugin_kit.plugin_checks import FreshImport
from tests.support import Result

KINDS = list(registry.KINDS)
OBJECTIVE = """
from avtcli.contracts import Loss, Objective, TransformFamily
from avtcli.models.decoder import Decoder


class Wrong(Objective):
    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def predict(self, codes):
        return self.decoder(codes)

    def forward(self, codes, targets):
        return Loss(self.predict(codes).mean.square().mean())


def wrong(*, vector_dim: int, family: TransformFamily, weight=1.0, power: int = 2) -> Objective:
    {docstring}
    return {made}
"""


@pytest.fixture
def modules_import_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start no fresh process to import a module that another test imports in one."""
    monkeypatch.setattr(plugin_checks, "import_afresh", lambda info: FreshImport(info.entry_point.module, seconds=0.0))


@pytest.fixture
def check_wrong(avt: Callable[..., Result], install) -> Callable[..., Result]:
    """Install an objective and check it; by default its decoder has an output too many."""

    def check(docstring: str, made: str = "Wrong(Decoder(2 * vector_dim, 1 + family.dof))", text: str = OBJECTIVE) -> Result:
        module = f"wrong_{abs(hash((docstring, made, text)))}"
        source = text.format(docstring=docstring, made=made)
        install({"avtcli.objectives": {"wrong": f"{module}:wrong"}}, **{module: source})
        return avt("plugins check wrong")

    return check


def test_each_passed_check_is_a_line(avt: Callable[..., Result]) -> None:
    result = avt("plugins check aet")
    lines = result.stdout.splitlines()

    assert (result.code, result.stderr) == (0, "")
    assert all(line.startswith("ok      ") for line in lines)
    assert lines[0].startswith("ok      it imports in time  ")
    assert lines[0].endswith(" s")
    assert lines[-1] == "ok      the truth has a smaller loss than a guess"
    assert "  with affine, euclidean, photometric, projective, " in result.stdout


@pytest.mark.usefixtures("modules_import_here")
def test_the_json_names_the_plugin_and_every_check(avt: Callable[..., Result]) -> None:
    result = avt("plugins check translation --kind transform --json")

    assert {key: value for key, value in result.json.items() if key != "checks"} == {
        **{"kind": "transform", "name": "translation", "distribution": "avtcli"},
        **{"version": registry.info("transform", "translation").version, "ok": True},
    }
    assert all(set(check) == {"check", "ok", "problem", "figures"} and check["ok"] for check in result.json["checks"])
    names = {check["check"] for check in result.json["checks"]}
    assert {"decoding is the inverse", "targets have the stated statistics"} <= names


@pytest.mark.usefixtures("modules_import_here")
def test_a_plugin_that_fails_checks_ends_with_1_and_names_them(check_wrong: Callable[..., Result]) -> None:
    result = check_wrong('"""Wrong.\n\n    Args:\n        weight: of it.\n    """')

    assert result.code == 1
    assert "FAILED  every option is typed and documented" in result.stdout
    assert "the option weight has no type in the signature" in result.stdout
    assert "mean with affine is (16, 7) float32, expected (16, 6), finite" in result.stdout
    assert "The objective 'wrong' of stranger 3.1 fails 3 of 11 conformance checks, the first: every option is" in result.stderr


DOCUMENTED = '"""Wrong.\n\n    Args:\n        weight (float): of it, not the\n            power of it.\n    """'


@pytest.mark.usefixtures("modules_import_here")
@pytest.mark.parametrize(
    ("problem", "wrong"),
    [
        (r"wrong_\d+:wrong has no docstring: its first line is the plugin's help", {"docstring": "pass"}),
        (r"FAILED  it can be built +ZeroDivisionError: division by zero\n", {"docstring": '"Args of none."', "made": "1 / 0"}),
        (
            "the option power is not among the Args of the docstring",
            {"docstring": DOCUMENTED, "text": OBJECTIVE.replace("weight=1.0", "weight: float = 1.0")},
        ),
        (
            "it refuses every family of avtcli and of the plugin's distribution",
            {
                "docstring": '"Picky."',
                "text": "from avtcli.errors import AvtError"
                + OBJECTIVE.replace("super().__init__()", "raise AvtError('none')"),
            },
        ),
    ],
)
def test_each_failed_requirement_is_named(check_wrong: Callable[..., Result], problem: str, wrong: dict[str, str]) -> None:
    assert re.search(problem, check_wrong(**wrong).stdout)


@pytest.mark.parametrize(
    ("problem", "top"),
    [
        (
            r"wrong_\d+ imports here and fails in a fresh process",
            "import sys\nif 'tests.support' not in sys.modules: raise ImportError\n",
        ),
        (r"it imports in time .* s, pulls in torchvision\n", "import torchvision\n"),
    ],
)
def test_a_fresh_process_shows_what_an_import_needs(
    check_wrong: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, problem: str, top: str
) -> None:
    monkeypatch.setattr(plugin_checks, "IMPORT_SECONDS", 200.0)  # on a busy machine torchvision alone takes 20 s
    result = check_wrong(docstring='"A."', text=f"{top}{OBJECTIVE}")

    assert re.search(problem, result.stdout), result.stderr


def test_a_timm_model_is_shown_by_its_bare_name_as_a_run_takes_it(avt: Callable[..., Result]) -> None:
    shown = avt("plugins show resnet18 --json").json

    assert shown == avt("plugins show timm:resnet18 --json").json
    assert shown["name"] == "timm:resnet18"


def test_an_unknown_name_is_refused_with_the_nearest(avt: Callable[..., Result]) -> None:
    result = avt("plugins check nni")

    assert (result.code, result.stdout) == (2, "")
    assert "No plugin is called 'nni'. Did you mean 'nin'? `avt plugins list` shows what is installed." in result.stderr
    assert "No transform is called 'nin'." in avt("plugins check nin --kind transform").stderr


def test_a_package_that_is_not_installed_is_told_so(avt: Callable[..., Result]) -> None:
    avt("plugins new my-backbone --kind backbone")

    assert "is not installed yet: `pip install -e my-backbone`." in avt("plugins check my-backbone").stderr


def test_a_name_of_several_kinds_needs_its_kind(avt: Callable[..., Result], install) -> None:
    install({"avtcli.objectives": {"both": "absent:a"}, "avtcli.datasets": {"both": "absent:b"}})
    result = avt("plugins check both")

    assert result.code == 2
    assert "a plugin called 'both': dataset, objective. Give --kind dataset or --kind objective." in result.stderr
    assert "The objective 'both' of stranger 3.1 cannot be imported" in avt("plugins check both --kind objective").stderr


def test_a_data_set_that_is_not_here_is_not_checked(avt: Callable[..., Result]) -> None:
    result = avt("plugins check imagenet")

    assert (result.code, result.stdout) == (2, "")
    assert f"'imagenet' is not in {Path.cwd()}/data/imagenet" in result.stderr


@pytest.mark.usefixtures("few_held_out_images")
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_package_works_as_it_is(avt: Callable[..., Result], install, tmp_path: Path, kind: str) -> None:
    written = avt(f"plugins new my-{kind} --kind {kind}")
    folder, module = Path(f"my-{kind}"), f"my_{kind}"
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    sources = {path.stem: path.read_text() for path in folder.glob("*.py")}
    install(project["entry-points"], distribution=project["name"], **sources)

    assert (written.code, written.stderr) == (0, "")
    assert {path.name for path in folder.iterdir()} == {f"{module}.py", f"test_{module}.py", "pyproject.toml", "README.md"}
    assert f"CONTRACT_VERSION = {registry.CONTRACT_VERSION}\n" in sources[module]
    assert project["entry-points"] == {f"avtcli.{kind}s": {f"my-{kind}": f"{module}:{module}"}}
    importlib.import_module(f"test_{module}").test_the_plugin_passes_the_conformance_checks()
    if kind in ("exporter", "tracker"):
        return  # the conformance checks have run it
    smaller = "-o backbone.width=4" if kind == "backbone" else "-o backbone.width=0.05"
    ran = avt(f"pretrain --{kind} my-{kind} {smaller} --limit-train 40 --batch-size 16 --max-steps 1 --out run --json")
    assert (ran.code, ran.json["steps"]) == (0, 1), ran.stderr


def test_the_next_commands_are_printed(avt: Callable[..., Result]) -> None:
    assert avt("plugins new below/my-net").stdout.splitlines() == [
        "wrote the backbone 'my-net' in below/my-net: my_net.py, test_my_net.py, pyproject.toml, README.md",
        "next:",
        "  pip install -e below/my-net",
        "  avt plugins check my-net",
        "  pytest below/my-net",
    ]


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("taken", "taken exists already and is not overwritten. Choose another DIR"),
        ("My.Net", "'My.Net' is no name for a plugin: give lower-case letters, digits and single hyphens"),
        ("2nets", "'2nets' is no name for a plugin"),
        ("class", "'class' is no name for a plugin"),
        ("nin", "is called 'nin' already. Choose another folder name."),
        ("numpy", "A module is called 'numpy' already, and the plugin would hide it. Choose another folder name."),
    ],
)
def test_a_folder_that_gives_no_new_plugin_is_refused(avt: Callable[..., Result], folder: str, message: str) -> None:
    Path("taken").mkdir()
    result = avt(f"plugins new {folder}")

    assert (result.code, result.stdout) == (2, "")
    assert message in result.stderr
    assert [path.name for path in Path().iterdir()] == ["taken"]
    assert list(Path("taken").iterdir()) == []


def test_the_list_has_a_sentence_for_each_plugin_by_kind(avt: Callable[..., Result]) -> None:
    lines = avt("plugins list").stdout.splitlines()

    assert [line for line in lines if line and not line.startswith((" ", "`"))] == [f"{kind}s" for kind in KINDS]
    for info in registry.listing():
        first = (registry.load(info).__doc__ or "").splitlines()[0]
        (line,) = [line for line in lines if line.split()[:1] == [info.name] and first in line]
        assert (f"({info.origin})" in line) == (info.distribution != "avtcli")
    assert {plugin["name"]: plugin["summary"] for plugin in avt("plugins list --json").json}["nin"].startswith("Network in")


def test_a_backbone_is_shown_with_its_options_and_layers(avt: Callable[..., Result]) -> None:
    result = avt("plugins show nin --size 32 --json")

    assert {key: result.json[key] for key in ("kind", "name", "distribution", "variant", "problem")} == {
        **{"kind": "backbone", "name": "nin", "distribution": "avtcli", "variant": None, "problem": None}
    }
    (option,) = result.json["options"]
    assert {key: option[key] for key in ("name", "default", "required")} == {"name": "width", "default": 1.0, "required": False}
    assert option["help"] == "multiplier of the channels, above 0 and at most 64; 1 is the published network."
    assert result.json["backbone"]["image"] == [3, 32, 32]
    assert result.json["backbone"]["layers"] == {  # of the paper
        **{"conv1": [96, 16, 16], "conv2": [192, 8, 8], "conv3": [192, 8, 8], "conv4": [192, 8, 8], "classifier": [192]}
    }
    assert re.search(r"\n  conv2 +192 +8x8 +the code\n", avt("plugins show nin").stdout)


def test_types_bounds_and_defaults_of_options_are_shown(avt: Callable[..., Result]) -> None:
    shown = {
        option["name"]: option
        for line in ("avt", "affine", "cifar10", "timm --kind backbone")
        for option in avt(f"plugins show {line} --json").json["options"]
    }

    assert {name: shown[name]["type"] for name in ("noise_scale", "log_var_divisor", "views", "fill", "mean", "args")} == {
        **{"noise_scale": "float >= 0", "log_var_divisor": "float > 0", "views": "int >= 1 and <= 64"},
        **{"fill": "grey|constant|border|reflect", "mean": "3 of float", "args": "table"},
    }
    assert shown["code_at"]["type"] == "text"
    assert (shown["pretrained"]["type"], shown["pretrained"]["default"]) == ("bool", False)
    assert ' fill        grey|constant|border|reflect, default "grey": what lies outside' in avt("plugins show affine").stdout


def test_a_family_is_shown_with_its_parameters_and_units(avt: Callable[..., Result]) -> None:
    assert avt("plugins show similarity --json").json["parameters"] == {
        **{"cos": "", "sin": "", "tx": "largest shift", "ty": "largest shift", "scale": "half range"}
    }


def test_a_variant_is_shown_as_it_is_built(avt: Callable[..., Result]) -> None:
    result = avt("plugins show timm:resnet18 --size 64 --json")

    assert result.json["kind"] == "backbone"  # the exporter of that name takes nothing after a colon
    assert result.json["backbone"]["layers"]["layer2"] == [128, 8, 8]
    assert result.json["backbone"]["weights"] == 11_176_512  # of timm, without its classifier
    assert "has no model 'resnet81'" in avt("plugins show timm:resnet81").stderr
    assert "needs something after a colon" in avt("plugins show timm --kind backbone").stdout
    assert avt("plugins show timm").stderr.endswith("Give --kind backbone or --kind exporter.\n")
    assert "takes nothing after a colon, found 'nin:x'" in avt("plugins show nin:x").stderr


def test_a_plugin_of_another_distribution_is_shown(avt: Callable[..., Result], install) -> None:
    text = '''
from typing import Any
from avtcli.contracts import Objective


class Own:
    pass


def mine(*, vector_dim: int, needed: int, own: Own | None = None, any=3) -> Objective:
    """Mine.

    More of it.

    Args:
        needed: is needed.
    """
'''
    install({"avtcli.objectives": {"mine": "mine_of_stranger:mine"}}, mine_of_stranger=text)
    result = avt("plugins show mine")

    assert result.code == 0, result.stderr
    assert result.stdout.splitlines() == [
        "objective mine, of stranger 3.1",
        *("", "Mine.", "", "More of it."),
        *("", "options, as `-o objective.KEY=VALUE`"),
        " needed  int, needed: is needed.",
        " own     mine_of_stranger.Own | None, no default",
        " any     any, default 3",
    ]
