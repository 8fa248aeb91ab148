"""Settings written as TOML with their descriptions as comments."""

from typing import Any

from avtcli.config.components import Frozen
from avtcli.config.pretrain_config import PretrainConfig


def to_toml(config: PretrainConfig) -> str:
    """Write settings as TOML that `resolve` reads back to an equal model, each with its description above it."""
    import tomli_w

    text, fields = "", PretrainConfig.model_fields
    for line in tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)).splitlines():
        field = fields.get(line.split(" = ")[0])
        if line.startswith("["):
            field = PretrainConfig.model_fields.get(line.strip("[]"))
            section: Any = field.annotation if field else None
            plain = isinstance(section, type) and issubclass(section, Frozen)
            fields = section.model_fields if plain else {}  # the plugin documents its options
        text += f"# {field.description}\n{line}\n" if field and field.description else f"{line}\n"
    return text
