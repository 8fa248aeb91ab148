"""The architecture: which package imports which, and what the command line loads."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OPTIONAL = {"sklearn"}
"""Modules that are used where they are installed, and asked for nowhere."""

HEAVY = {"torch", "torchvision", "timm", "accelerate", "numpy", "safetensors"}

LAYERS = (
    {"errors", "seeding", "contracts", "events", "input_files", "plugin_options", "registry"},
    {"recipes"},
    {"config"},
    {"geometry", "objectives"},
    {"storage"},
    {"metrics", "models", "runtime"},
    {"data"},
    {"features"},
    {"training"},
    {"probing", "evaluation", "embedding", "exporting"},
    {"inspection"},
    {"reporting", "plugin_kit", "bench"},
    {"cli"},
    {"api"},
)
"""The packages and top-level modules of avtcli in the order of imports: none imports from a layer above its own."""

WITHOUT_SETTINGS = ("geometry/*.py", "metrics/*.py", "objectives/*.py", "models/encoder.py", "models/siamese.py")
FOR_PLUGINS = {"avtcli.errors", "avtcli.contracts", "avtcli.seeding", "avtcli.geometry", "avtcli.models"}


def imports(path: Path, *, top_only: bool = False) -> Iterator[str]:
    """The modules that a file imports, with the names that it takes from them."""
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


def ours(path: Path) -> Iterator[str]:
    """The packages or top-level modules of avtcli that a file imports."""
    for name in imports(path):
        if name.startswith("avtcli."):
            yield name.split(".")[1]


def starts(name: str, *prefixes: str) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def test_imports_between_packages_go_one_way() -> None:
    rank = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    found = []
    for path in (ROOT / "avtcli").rglob("*.py"):
        where = path.relative_to(ROOT / "avtcli").parts[0].removesuffix(".py")
        if where in ("__init__", "__main__"):
            continue
        assert where in rank, f"{where} has no layer"
        higher = {name for name in ours(path) if rank.get(name, -1) > rank[where]}
        peers = {name for name in ours(path) if rank.get(name) == rank[where] and name != where} if rank[where] else set()
        found += [f"{path.relative_to(ROOT)} imports {name}" for name in sorted(higher | peers)]

    assert found == []


def test_mathematics_knows_no_settings_and_no_files() -> None:
    paths = [path for pattern in WITHOUT_SETTINGS for path in (ROOT / "avtcli").glob(pattern)]
    found = [(path.name, name) for path in paths for name in imports(path) if starts(name, "avtcli.config", "avtcli.storage")]

    assert found == []


def test_plugins_import_what_plugins_may() -> None:
    paths = list((ROOT / "plugins").rglob("*.py"))
    found = [
        (path.name, name)
        for path in paths
        for name in imports(path)
        if starts(name, "avtcli", "typer", "rich") and not starts(name, *FOR_PLUGINS)
    ]

    assert found == []


def test_nobody_imports_a_plugin_by_name() -> None:
    paths = (ROOT / "avtcli").rglob("*.py")

    assert [(path.name, name) for path in paths for name in imports(path) if starts(name, "avtplugins")] == []


def test_the_command_line_imports_nothing_heavy_at_its_top() -> None:
    paths = (ROOT / "avtcli" / "cli").rglob("*.py")
    found = [(path.name, name) for path in paths for name in imports(path, top_only=True) if name.split(".")[0] in HEAVY]

    assert found == []


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(text for name, extra in extras.items() if name != "dev" for text in extra)]
    declared = {re.split("[^a-z0-9-]", text)[0] for text in texts}
    paths = [*(ROOT / "avtcli").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
    modules = {name.split(".")[0] for path in paths for name in imports(path)} - sys.stdlib_module_names
    distribution = {module: names[0].lower().replace("_", "-") for module, names in packages_distributions().items()}

    assert {distribution.get(module, module) for module in modules - {"avtcli", "avtplugins", *OPTIONAL}} == declared


def loaded_by(code: str) -> set[str]:
    code = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('\\n' + '\\n'.join(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ended.stdout.splitlines())


@pytest.mark.parametrize("line", ["--help", "pretrain --help", "plugins list", "recipes list", "--version"])
def test_the_command_line_loads_neither_torch_nor_a_plugin(line: str) -> None:
    modules = loaded_by(f"sys.argv[1:] = {line.split()!r}; from avtcli.cli.app import main; main()")

    assert "avtcli.cli.app" in modules
    assert not {m for m in modules if m.split(".")[0] in {"torch", "torchvision", "timm", "accelerate", "avtplugins"}}


def test_pretraining_and_loading_an_encoder_import_no_torchvision_no_timm_and_no_compiler(tiny_run: Path) -> None:
    modules = loaded_by(f"import avtcli.training.pretrain; avtcli.load_encoder({str(tiny_run)!r})")

    assert "avtplugins.backbones.nin" in modules
    assert not modules & {"torchvision", "timm", "torch._dynamo"}


def test_importing_avtcli_loads_no_torch() -> None:
    assert "torch" not in loaded_by("import avtcli, avtcli.plugin_kit")


def test_pickle_is_used_in_two_named_places_only() -> None:
    allowed = {
        "plugins/avtplugins/datasets/cifar.py": {"pickle"},
        "avtcli/storage/torch_files.py": {"torch.load", "pickle"},
    }
    banned = ("pickle", "torch.load", "eval", "exec", "yaml.load")
    found = set()
    for path in [*(ROOT / "avtcli").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        where = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [ast.unparse(node.func)] if isinstance(node, ast.Call) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            found |= {(where, n) for n in names if n in banned and n not in allowed.get(where, set())}

    assert found == set()
