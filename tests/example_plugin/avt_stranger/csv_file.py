"""A run's figures as CSV."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avtcli.contracts import Tracker

CONTRACT_VERSION = 1


class CsvFile(Tracker):
    """trackers/stranger.csv in the run folder: step, name, value; a continued run drops the rows after its first step."""

    path: Path

    def start(self, run_dir: Path, config: Mapping[str, Any], step: int) -> None:
        """Keep the rows up to `step`, or begin a file."""
        self.path = run_dir / "trackers" / "stranger.csv"
        rows = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                rows = [row for row in list(csv.reader(file))[1:] if int(row[0]) <= step]
        with self.path.open("w", newline="") as file:
            csv.writer(file).writerows([("step", "name", "value"), *rows])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row per value."""
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows((step, name, value) for name, value in values.items())

    def finish(self) -> None:
        """Every row is in the file already."""


def stranger_csv() -> Tracker:
    """A CSV file in the run folder."""
    return CsvFile()
