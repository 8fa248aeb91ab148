"""What the trackers share: settings by dotted name, and what a resumed run continues from."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def flat_settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, str | float | bool]:
    """Return settings by dotted name, `backbone.width`; lists as text."""
    out: dict[str, str | float | bool] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            out |= flat_settings(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value if isinstance(value, str | int | float) else json.dumps(value)
    return out


class Continuation:
    """The id of a run at a service that only appends, and the last step recorded of each figure, in a JSON file.

    Steps that come again after an interruption are recorded once: the first time.
    """

    def __init__(self, path: Path) -> None:
        kept = json.loads(path.read_text()) if path.exists() else {}
        self.path, self.id = path, kept.get("id")
        self._steps: dict[str, int] = kept.get("steps", {})

    def save_id(self, run_id: str) -> None:
        """Keep the run's id."""
        self.id = run_id
        self._save()

    def take_new(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Return the figures that were not recorded at this step or a later one, which count as recorded from now on."""
        new = {name: value for name, value in values.items() if step > self._steps.get(name, 0)}
        if new:
            self._steps |= dict.fromkeys(new, step)
            self._save()
        return new

    def _save(self) -> None:
        written = self.path.with_suffix(".tmp")
        written.write_text(json.dumps({"id": self.id, "steps": self._steps}))
        os.replace(written, self.path)
