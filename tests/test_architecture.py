"""The floors of the house: who imports whom, and what the front door wakes."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent
HEAVY = {"torch", "torchvision", "timm", "accelerate", "numpy", "safetensors"}

# (files, what they may never import, at any depth; at their top)
RULES = {
    "avtcli/core": (
        {
            "avtcli.config.settings_models",
            "avtcli.config.resolution",
            "avtcli.registry",
            "avtcli.runs",
            "avtcli.cli",
            "avtplugins",
        },
        set[str](),
    ),
    "avtcli/runs": ({"avtcli.cli", "avtplugins", "rich", "typer"}, set[str]()),
    "avtcli/cli": (
        {"avtplugins"},
        {
            *HEAVY,
            "pydantic",
            "avtcli.runs",
            "avtcli.config.settings_models",
            "avtcli.config.resolution",
            "avtcli.core",
            "avtcli.contracts",
        },
    ),
    "plugins/avtplugins": (
        {
            "avtcli.runs",
            "avtcli.cli",
            "avtcli.registry",
            "avtcli.config.settings_models",
            "avtcli.config.resolution",
            "typer",
            "rich",
        },
        set[str](),
    ),
}
GROUND = {"errors.py", "registry.py", "config.py", "settings.py", "contracts.py", "recipes/__init__.py"}


def imports(path: Path, *, top_only: bool) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checked = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    typing_only = {id(node) for block in checked for node in ast.walk(block)}
    for node in tree.body if top_only else ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def breaches(name: str, banned: set[str], path: Path, *, top_only: bool) -> list[str]:
    found = (i for i in imports(path, top_only=top_only) if any(i == b or i.startswith(f"{b}.") for b in banned))
    return [f"{path.relative_to(HOUSE)} imports {i}" for i in found]


@pytest.mark.parametrize("floor", RULES)
def test_nobody_walks_up_the_stairs(floor: str) -> None:
    never, not_at_top = RULES[floor]
    found = []
    for path in (HOUSE / floor).rglob("*.py"):
        found += breaches(floor, never, path, top_only=False) + breaches(floor, not_at_top, path, top_only=True)

    assert found == []


def test_the_ground_floor_imports_nothing_above_it() -> None:
    above = {"avtcli.core", "avtcli.runs", "avtcli.cli", "avtplugins"}
    found = [b for name in GROUND for b in breaches(name, above, HOUSE / "avtcli" / name, top_only=False)]

    assert found == []


def loaded_by(code: str) -> set[str]:
    code = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('\\n' + '\\n'.join(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ended.stdout.splitlines())


@pytest.mark.parametrize("line", ["--help", "pretrain --help", "plugins list", "recipes list", "--version"])
def test_the_front_door_wakes_neither_torch_nor_any_plugin(line: str) -> None:
    modules = loaded_by(f"sys.argv[1:] = {line.split()!r}; from avtcli.cli.app import main; main()")

    assert "avtcli.cli.app" in modules
    assert not {m for m in modules if m.split(".")[0] in {"torch", "torchvision", "timm", "accelerate", "avtplugins"}}


def test_pretraining_small_data_loads_neither_torchvision_nor_timm() -> None:
    modules = loaded_by(
        "import avtcli.training.pretrain; from avtcli import registry; registry.build('backbone', 'nin', {}, in_channels=1)"
    )

    assert "torch" in modules
    assert not {m for m in modules if m.split(".")[0] in {"torchvision", "timm"}}


def test_the_back_doors_wake_no_torch_when_imported() -> None:
    assert "torch" not in loaded_by("import avtcli, avtcli.testing")


def test_no_pickle_but_in_the_two_named_places() -> None:
    allowed = {"plugins/avtplugins/datasets/cifar.py": {"pickle"}, "avtcli/runs/import_.py": {"torch.load", "pickle"}}
    banned = ("pickle", "torch.load", "eval", "exec", "yaml.load")
    found = set()
    for path in [*(HOUSE / "avtcli").rglob("*.py"), *(HOUSE / "plugins").rglob("*.py")]:
        where = str(path.relative_to(HOUSE))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [ast.unparse(node.func)] if isinstance(node, ast.Call) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            found |= {(where, n) for n in names if n in banned and n not in allowed.get(where, set())}

    assert found == set()
