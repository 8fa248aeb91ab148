"""The shape of the source: sizes, names, and the picture of the packages in the README."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = sorted([*(ROOT / "avtcli").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")])
PACKAGES = sorted(path.parent.name for path in (ROOT / "avtcli").glob("*/__init__.py"))
THE_LOOP = "avtcli/training/pretrain.py:_train"


def where(path: Path) -> str:
    return str(path.relative_to(ROOT))


def lines(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def test_no_file_is_longer_than_250_lines() -> None:
    assert {where(path): lines(path) for path in FILES if lines(path) > 250} == {}


def test_no_function_but_the_loop_is_longer_than_60_lines() -> None:
    lengths = {f"{where(path)}:{f.name}": (f.end_lineno or 0) - f.lineno + 1 for path, f in functions()}
    commands = {name for name in lengths if name.startswith(("avtcli/cli/", "avtcli/api/"))}

    assert {name: n for name, n in lengths.items() if n > 60 and name != THE_LOOP and name not in commands} == {}


def test_no_signature_but_of_commands_their_functions_and_plugins_has_more_than_7_parameters() -> None:
    """What a plugin takes are its options, which people set by name."""
    found = {}
    for path, f in functions():
        named = [a.arg for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs) if a.arg not in ("self", "cls")]
        if len(named) > 7 and not where(path).startswith(("avtcli/cli/", "avtcli/api/", "plugins/")):
            found[f"{where(path)}:{f.name}"] = len(named)

    assert found == {}


def test_no_package_holds_more_than_15_percent_of_the_source() -> None:
    sizes = Counter({package: sum(map(lines, (ROOT / "avtcli" / package).rglob("*.py"))) for package in PACKAGES})
    total = sum(lines(path) for path in (ROOT / "avtcli").rglob("*.py"))

    assert {package: n for package, n in sizes.items() if n > 0.15 * total} == {}


@pytest.mark.parametrize("package", [package for package in PACKAGES if package != "cli"])
def test_no_package_has_more_than_nine_files(package: str) -> None:
    files = list((ROOT / "avtcli" / package).glob("*.py"))

    assert len(files) <= 9, [path.name for path in files]


def test_no_two_classes_have_one_name() -> None:
    names = Counter(
        node.name
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )

    assert [name for name, count in names.items() if count > 1] == []


def test_no_two_modules_have_one_name() -> None:
    paths = [path for path in (ROOT / "avtcli").rglob("*.py") if path.name != "__init__.py"]
    names = Counter(path.stem for path in paths if path.parent.name not in ("cli", "heads", "sections"))

    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_chain_inside_a_package_is_longer_than_five(package: str) -> None:
    folder = ROOT / "avtcli" / package
    modules = {
        f"avtcli.{package}." + ".".join(path.relative_to(folder).with_suffix("").parts): path for path in folder.rglob("*.py")
    }
    imports = {
        name: {
            node.module
            for node in ast.walk(tree(path))
            if isinstance(node, ast.ImportFrom) and node.module in modules and node.module != name
        }
        for name, path in modules.items()
    }

    def depth(name: str, above: tuple[str, ...] = ()) -> int:
        assert name not in above, f"{name} imports itself by way of {above}"
        return 1 + max((depth(other, (*above, name)) for other in imports[name]), default=0)

    assert max(map(depth, modules)) <= 5


def test_every_package_says_in_one_sentence_what_it_is() -> None:
    for package in PACKAGES:
        text = ast.get_docstring(tree(ROOT / "avtcli" / package / "__init__.py")) or ""
        assert text.endswith("."), package
        assert "\n" not in text, package


def test_the_readmes_picture_is_the_tree() -> None:
    picture = README[README.index("    avtcli/\n") : README.index("    tests/", README.index("    avtcli/\n"))]
    drawn = re.findall(r"^      (\w+)/ ", picture, re.MULTILINE)
    modules = re.findall(r"(\w+)\.py", picture)

    assert sorted(set(drawn) & {*PACKAGES, "recipes"}) == sorted(PACKAGES)
    own = {path.stem for path in (ROOT / "avtcli").glob("*.py")} - {"__init__", "__main__"}
    assert set(modules) == own
    for name in re.findall(r"plugins/avtplugins/\s+([\w ]+)", picture)[0].split():
        assert (ROOT / "plugins" / "avtplugins" / name).is_dir(), name


def test_the_guide_follows_a_batch_through_at_most_twelve_files() -> None:
    section = CONTRIBUTING[CONTRIBUTING.index("**One batch**") :]
    named = re.findall(r"`(avtcli/[\w/]+\.py|plugins/[\w/]+\.py)`", section)

    assert 0 < len(set(named)) <= 12
    assert all((ROOT / name).is_file() for name in named)
