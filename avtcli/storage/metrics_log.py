"""The log of a run: metrics.jsonl, complete lines only."""

import json
import os
from pathlib import Path
from typing import Any

from avtcli.storage.files import disk_errors_explained, replace_file


class MetricsLog:
    """metrics.jsonl: whole lines only, one a step and one an evaluation."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, lines: list[dict[str, Any]]) -> None:
        """Add lines with one write."""
        blob = "".join(json.dumps(line) + "\n" for line in lines).encode()
        with disk_errors_explained(self.path):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(descriptor, blob)
            finally:
                os.close(descriptor)

    def read(self) -> list[dict[str, Any]]:
        """All whole lines."""
        if not self.path.exists():
            return []
        return [
            json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")
        ]

    def cut_after(self, step: int) -> None:
        """Forget the lines beyond a step, and a torn one: they will be written again."""
        kept = [line for line in self.read() if line["step"] <= step]
        replace_file(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
