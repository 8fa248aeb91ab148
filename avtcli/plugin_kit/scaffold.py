"""A new plugin package: a working module, a test that runs the conformance checks, and what pip needs."""

import importlib.util
import keyword
import re
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

from avtcli import registry
from avtcli.errors import AvtError
from avtcli.storage.files import new_path, refuse_existing

TEMPLATES: Final = files("avtcli.plugin_kit") / "templates"


def new_plugin(folder: Path, *, kind: str) -> tuple[str, ...]:
    """Write a working plugin package of a kind, named as its folder, and return the names of its files.

    Raises:
        AvtError: if the folder exists, or its name is no name for a plugin, or is taken.
        RunFailedError: if the disk fails.
    """
    refuse_existing(folder, flag="DIR")
    name = folder.absolute().name
    module = _module_of(name)
    words = {"kind": kind, "name": name, "module": module, "version": str(registry.CONTRACT_VERSION)}
    words["Class"] = "".join(word.capitalize() for word in module.split("_"))
    templates = {f"{module}.py": f"{kind}.py", f"test_{module}.py": "test.py"}
    templates |= {name: name for name in ("pyproject.toml", "README.md")}
    with new_path(folder) as written:
        written.mkdir()
        for file, template in templates.items():
            text = (TEMPLATES / f"{template}.tmpl").read_text(encoding="utf-8")
            (written / file).write_text(Template(text).substitute(words), encoding="utf-8")
    return tuple(templates)


def _module_of(name: str) -> str:
    module = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*", name) or keyword.iskeyword(module):
        raise AvtError(
            f"'{name}' is no name for a plugin: give lower-case letters, digits and single hyphens, as in `my-backbone`."
        )
    for info in registry.listing():
        if info.name == name:
            raise AvtError(f"The {info.kind} of {info.origin} is called '{name}' already. Choose another folder name.")
    if importlib.util.find_spec(module) is not None:
        raise AvtError(f"A module is called '{module}' already, and the plugin would hide it. Choose another folder name.")
    return module
