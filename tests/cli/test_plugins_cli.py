"""`avt plugins check` and `avt plugins new`."""

import importlib
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from avtcli import registry
from avtcli.plugin_kit.scaffold import new_plugin
from tests.support import Result

KINDS = ["backbone", "transform", "dataset", "objective"]
OBJECTIVE = """
from avtcli.contracts import Loss, Objective


class Wrong(Objective):
    def outputs(self, family):
        return 1 + family.dof

    def loss(self, mean, log_var, target):
        return Loss((mean - target.values).mean())


def wrong(*, weight=1.0, power: int = 2) -> Objective:
    {docstring}
    return {made}
"""


def test_a_plugin_that_keeps_its_promises_is_told_so_line_by_line(avt: Callable[..., Result]) -> None:
    result = avt("plugins check aet")
    lines = result.stdout.splitlines()

    assert (result.code, result.stderr) == (0, "")
    assert all(line.startswith("ok      ") for line in lines)
    assert lines[0].startswith("ok      it imports in time  ")
    assert lines[0].endswith(" s")
    assert lines[-1] == "ok      the truth has a smaller loss than a guess"
    assert "  with affine, euclidean, photometric, projective, " in result.stdout


def test_the_json_names_the_plugin_and_every_promise(avt: Callable[..., Result]) -> None:
    result = avt("plugins check translation --kind transform --json")

    assert {key: value for key, value in result.json.items() if key != "checks"} == {
        **{"kind": "transform", "name": "translation", "distribution": "avtcli"},
        **{"version": registry.info("transform", "translation").version, "ok": True},
    }
    assert all(set(check) == {"check", "ok", "problem", "figures"} and check["ok"] for check in result.json["checks"])
    assert {"decoding is the inverse", "targets have the stated statistics"} <= {
        check["check"] for check in result.json["checks"]
    }


def test_a_plugin_that_breaks_promises_ends_with_1_and_says_which(avt: Callable[..., Result], install) -> None:
    text = OBJECTIVE.format(docstring='"""Wrong.\n\n    Args:\n        weight: of it.\n    """', made="Wrong()")
    install({"avtcli.objectives": {"wrong": "wrong_a:wrong"}}, wrong_a=text)
    result = avt("plugins check wrong")

    assert result.code == 1
    assert "BROKEN  every option is typed and documented" in result.stdout
    assert "the option weight has no type in the signature" in result.stdout
    assert "outputs(affine) is 7, expected 6" in result.stdout
    assert "error: The objective 'wrong' of stranger 3.1 breaks 4 of 10 promises, the first: every option is" in result.stderr


@pytest.mark.parametrize(
    ("docstring", "made", "problem"),
    [
        ("pass", "Wrong()", "wrong_b:wrong has no docstring: its first line is the plugin's help"),
        ('"Args of none."', "1 / 0", r"BROKEN  it can be built +ZeroDivisionError: division by zero\n"),
    ],
)
def test_a_plugin_that_says_nothing_or_cannot_be_built_is_told_so(
    avt: Callable[..., Result], install, docstring: str, made: str, problem: str
) -> None:
    install({"avtcli.objectives": {"wrong": "wrong_b:wrong"}}, wrong_b=OBJECTIVE.format(docstring=docstring, made=made))
    result = avt("plugins check wrong")

    assert result.code == 1
    assert re.search(problem, result.stdout)


def test_an_option_that_the_docstring_forgets_is_named(avt: Callable[..., Result], install) -> None:
    text = OBJECTIVE.replace("weight=1.0", "weight: float = 1.0")
    docstring = '"""Wrong.\n\n    Args:\n        weight (float): of it, not the\n            power of it.\n    """'
    install({"avtcli.objectives": {"wrong": "wrong_c:wrong"}}, wrong_c=text.format(docstring=docstring, made="Wrong()"))

    assert "the option power is not among the Args of the docstring" in avt("plugins check wrong").stdout


def test_an_objective_that_takes_no_family_is_told_so(avt: Callable[..., Result], install) -> None:
    text = OBJECTIVE.replace("return 1 + family.dof", "raise AvtError('none')")
    text = "from avtcli.errors import AvtError\n" + text.format(docstring='"Picky."', made="Wrong()")
    install({"avtcli.objectives": {"wrong": "wrong_d:wrong"}}, wrong_d=text)

    assert "it refuses every family of avtcli and of its own distribution" in avt("plugins check wrong").stdout


def test_a_module_that_leans_on_anothers_import_is_caught(avt: Callable[..., Result], install) -> None:
    text = "import sys\nif 'tests.support' not in sys.modules: raise ImportError\n" + OBJECTIVE
    install({"avtcli.objectives": {"wrong": "wrong_e:wrong"}}, wrong_e=text.format(docstring='"A."', made="Wrong()"))

    assert "wrong_e imports here and fails in a fresh process" in avt("plugins check wrong").stdout


def test_what_an_import_pulls_in_is_told(avt: Callable[..., Result], install) -> None:
    text = "import torchvision\n" + OBJECTIVE.format(docstring='"A."', made="Wrong()")
    install({"avtcli.objectives": {"wrong": "wrong_f:wrong"}}, wrong_f=text)

    assert avt("plugins check wrong").stdout.splitlines()[0].endswith(" s, pulls in torchvision")


def test_a_timm_models_bare_name_is_told_with_its_plugin(avt: Callable[..., Result]) -> None:
    assert "No plugin is called 'resnet18'. Did you mean 'timm:resnet18'?" in avt("plugins check resnet18").stderr


def test_an_unknown_name_is_refused_with_the_nearest(avt: Callable[..., Result]) -> None:
    result = avt("plugins check nni")

    assert (result.code, result.stdout) == (2, "")
    assert "No plugin is called 'nni'. Did you mean 'nin'? `avt plugins list` shows what is installed." in result.stderr
    assert "No transform is called 'nin'." in avt("plugins check nin --kind transform").stderr


def test_a_name_of_several_kinds_needs_its_kind(avt: Callable[..., Result], install) -> None:
    install({"avtcli.objectives": {"both": "absent:a"}, "avtcli.datasets": {"both": "absent:b"}})
    result = avt("plugins check both")

    assert result.code == 2
    assert (
        "Several kinds have a plugin called 'both': dataset, objective. Say which: --kind dataset or --kind objective."
        in result.stderr
    )
    assert "The objective 'both' of stranger 3.1 cannot be imported" in avt("plugins check both --kind objective").stderr


def test_a_data_set_that_is_not_here_is_not_checked(avt: Callable[..., Result]) -> None:
    result = avt("plugins check imagenet")

    assert (result.code, result.stdout) == (2, "")
    assert "The data set 'imagenet' is not in data/imagenet" in result.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_package_works_as_it_is(avt: Callable[..., Result], install, tmp_path: Path, kind: str) -> None:
    written = avt(f"plugins new my-{kind} --kind {kind}")
    folder, module = Path(f"my-{kind}"), f"my_{kind}"
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    sources = {path.stem: path.read_text() for path in folder.glob("*.py")}
    install(project["entry-points"], distribution=project["name"], **sources)

    assert (written.code, written.stderr) == (0, "")
    assert {path.name for path in folder.iterdir()} == {f"{module}.py", f"test_{module}.py", "pyproject.toml", "README.md"}
    assert project["entry-points"] == {f"avtcli.{kind}s": {f"my-{kind}": f"{module}:{module}"}}
    importlib.import_module(f"test_{module}").test_every_promise_of_the_contract_is_kept()
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
        ("My.Net", "'My.Net' is no name for one: expected small letters and digits, with single hyphens between"),
        ("2nets", "'2nets' is no name for one"),
        ("class", "'class' is no name for one"),
        ("nin", "is called 'nin' already. Name the folder otherwise."),
        ("torch", "A module is called 'torch' already, and the plugin would hide it. Name the folder otherwise."),
    ],
)
def test_a_folder_that_gives_no_new_plugin_is_refused(avt: Callable[..., Result], folder: str, message: str) -> None:
    Path("taken").mkdir()
    result = avt(f"plugins new {folder}")

    assert (result.code, result.stdout) == (2, "")
    assert message in result.stderr
    assert [path.name for path in Path().iterdir()] == ["taken"]
    assert list(Path("taken").iterdir()) == []


def test_the_new_package_states_the_contract_that_this_avt_speaks() -> None:
    for kind in KINDS:
        new_plugin(Path(f"my-{kind}"), kind=kind)

        assert f"CONTRACT_VERSION = {registry.CONTRACT_VERSION}\n" in Path(f"my-{kind}/my_{kind}.py").read_text()
