"""Settings written as TOML with their descriptions as comments."""

from typing import Any

from avtcli.config.components import Frozen
from avtcli.config.pretrain_config import PretrainConfig


def to_toml(config: PretrainConfig) -> str:
    """Write settings as TOML that `resolve` reads back to an equal model, each with its description above it."""
    import tomli_w

    lines: list[str] = []
    fields = PretrainConfig.model_fields
    for line in tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)).splitlines():
        if line.startswith("["):
            field = PretrainConfig.model_fields.get(line.strip("[]"))
            section: Any = field.annotation if field else None
            plain = isinstance(section, type) and issubclass(section, Frozen)
            fields = section.model_fields if plain else {}  # the plugin documents its options
            described = field.description if field else None
        else:
            found = fields.get(line.split(" = ")[0])
            described = found.description if found else None
        if described:
            lines.append(f"# {described}")
        lines.append(line)
    return "\n".join(lines) + "\n"
