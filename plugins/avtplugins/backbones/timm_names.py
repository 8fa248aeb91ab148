"""The names of timm's models, read from its source: importing timm takes seconds, and a shell waits for its completions."""

import importlib.util
import re
from collections.abc import Collection
from pathlib import Path


def model_names() -> Collection[str]:
    """Return the names of the models that the installed timm defines, without tags of published weights."""
    spec = importlib.util.find_spec("timm")
    folders = [] if spec is None else spec.submodule_search_locations or []
    sources = (path.read_text(encoding="utf-8") for folder in folders for path in Path(folder, "models").glob("*.py"))
    return sorted({name for text in sources for name in re.findall(r"^@register_model\ndef (\w+)\(", text, re.MULTILINE)})
