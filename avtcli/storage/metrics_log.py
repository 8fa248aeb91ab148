"""The log of a run: metrics.jsonl, complete lines only."""

import json
from pathlib import Path
from typing import Any

from avtcli.storage.files import disk_errors_explained, replace_file


class MetricsLog:
    """metrics.jsonl: one line a training step and one an evaluation."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, lines: list[dict[str, Any]]) -> None:
        """Append lines with one write."""
        with disk_errors_explained(self.path), self.path.open("ab", buffering=0) as file:
            file.write(_encode(lines))

    def read(self) -> list[dict[str, Any]]:
        """All complete lines; none if there is no file."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def cut_after(self, step: int) -> None:
        """Remove lines beyond a step, and an incomplete last line."""
        replace_file(self.path, _encode([line for line in self.read() if line["step"] <= step]))


def _encode(lines: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()
