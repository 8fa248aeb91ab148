"""The log of a run: metrics.jsonl, complete lines only."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from avtcli.errors import AvtError
from avtcli.events import Notice, OnEvent, ignore
from avtcli.input_files import open_regular, read_bytes
from avtcli.storage.files import disk_errors_explained, write_file

BLOCK_BYTES: Final = 16_384


class MetricsLog:
    """metrics.jsonl: one line a training step and one an evaluation, JSON objects with `step` and `epoch`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, lines: list[dict[str, Any]]) -> None:
        """Append lines, all or none of them.

        Raises:
            RunFailedError: if the disk fails.
        """
        content = _encode(lines)
        with disk_errors_explained(self.path), self.path.open("ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                left = memoryview(content)
                while left:
                    left = left[file.write(left) :]  # a disk that fills up takes a part first
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)
                raise

    def read(self, *, on_event: OnEvent = ignore) -> list[dict[str, Any]]:
        """Return all lines; what a damaged disk or another program put between them is passed over with one notice."""
        lines, bad = [], list[int]()
        for number, text in enumerate(self._texts(on_event), start=1):
            line = _decode(text)
            if line is not None:
                lines.append(line)
            elif text:
                bad.append(number)
        if bad:
            on_event(Notice(f"{self.path}: {len(bad)} lines are damaged and left out, the first is line {bad[0]}"))
        return lines

    def newest(self, key: str) -> Iterator[dict[str, Any]]:
        """Yield the lines that have a key, the newest first; only these are parsed, and no more of the file is read."""
        name = f'"{key}"'.encode()
        with contextlib.suppress(AvtError):
            for text in self._texts_from_the_end():
                line = _decode(text) if name in text else None
                if line is not None and key in line:
                    yield line

    def _texts_from_the_end(self) -> Iterator[bytes]:
        if not os.path.lexists(self.path):
            return
        with open_regular(self.path) as file:
            start, rest = file.seek(0, os.SEEK_END), b""
            while start:
                length = min(start, BLOCK_BYTES)
                start -= length
                file.seek(start)
                rest, *texts = (file.read(length) + rest).split(b"\n")
                yield from reversed(texts)
            yield rest

    def _texts(self, on_event: OnEvent) -> list[bytes]:
        try:
            content = read_bytes(self.path) if os.path.lexists(self.path) else b""
        except AvtError as error:
            on_event(Notice(f"{error} Its lines are left out."))
            content = b""
        return content.split(b"\n")

    def cut_after(self, step: int, *, on_event: OnEvent = ignore) -> None:
        """Remove lines beyond a step, and what is no entry of the log."""
        kept = [line for line in self.read(on_event=on_event) if line["step"] <= step]
        write_file(self.path, _encode(kept), replace=True)


def _decode(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or type(line.get("step")) is not int or type(line.get("epoch")) is not int:
        return None
    return line if line["step"] > 0 and isinstance(line.get("loss"), float | int | None) else None


def _encode(lines: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()
