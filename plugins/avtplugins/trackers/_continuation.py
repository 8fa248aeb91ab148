"""What the trackers share: the error for a missing library, and what a resumed run continues from."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from avtcli.errors import AvtError


def missing_library(name: str, error: ImportError) -> AvtError:
    """Return the error for a tracker whose library, which has the names of tracker and extra, cannot be imported."""
    return AvtError(f"The tracker '{name}' needs {name} ({error}): `pip install 'avtcli[{name}]'`.")


class Continuation:
    """The id of a run at a service that only appends, and the last step recorded of each figure, in a JSON file.

    Steps that come again after an interruption are recorded once: the first time.
    """

    def __init__(self, path: Path) -> None:
        kept = json.loads(path.read_text()) if path.exists() else {}
        self.path, self.id = path, kept.get("id")
        self.steps: dict[str, int] = kept.get("steps", {})

    def take_new(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Return the figures that were not recorded at this step or a later one."""
        new = {name: value for name, value in values.items() if step > self.steps.get(name, 0)}
        self.steps |= dict.fromkeys(new, step)
        return new

    def save(self, run_id: str) -> None:
        """Keep the id, and that all figures taken until now are recorded."""
        written = self.path.with_suffix(".tmp")
        written.write_text(json.dumps({"id": run_id, "steps": self.steps}))
        os.replace(written, self.path)
