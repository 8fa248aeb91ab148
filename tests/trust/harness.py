"""The bench of the trust tests: a tiny run that saves after each step, trials that disturb it, and an independent judge.

A trial starts `avt` in a process of its own session, does harm, and hands the folder to the judge. The judge verifies every
checkpoint with its own code, resumes to the end and compares the last weights and optimiser state with a run that nothing
disturbed, byte by byte.

`pytest tests/trust` runs the small form, `pytest tests/trust -m long -n 2` the complete one. Each test adds a line to the file
that the variable TRUST_TABLE names: what was done, how many trials, how many lost.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SETTINGS = (
    "--transform photometric --limit-train 40 --batch-size 16 --epochs 3 --eval-every 0 --save-every 0.0001 "
    "-o backbone.width=0.0625"
).split()
"""Nine steps of three epochs, the last batch of each smaller. Photometric families have no corner error to measure."""
STEPS = 9


def picture_settings(folder: Path) -> list[str]:
    """Settings, beside SETTINGS, of a run on image files that are decoded as they are needed."""
    return ["--dataset", f"folder:{folder}", "-o", "augment.resize=32", "-o", "augment.crop=32"]


ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins"), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "OMP_NUM_THREADS": "1",
}
TIMEOUT = 120.0

TRIALS: Mapping[str, tuple[int, tuple[int, int]]] = {
    "kills": (5, (40, 25)),
    "damaged checkpoints": (60, (4, 250)),
    "kills of readers": (1, (6, 5)),
    "killed system calls": (3, (12, 0)),
    "failed system calls": (2, (24, 0)),
    "full disks": (2, (4, 5)),
    "signals": (4, (40, 10)),
    "resumptions": (2, (12, 4)),
    "resumptions of two processes": (1, (12, 1)),
}
"""Trials of the small form, and of the long form: parts, and trials in each (0: a share of all that there are)."""


def forms(name: str) -> list[Any]:
    """Return the parameters (part, parts, trials) of a test: part 0 is the small form, the others together the long one."""
    small, (parts, count) = TRIALS[name]
    long = [pytest.param(n, parts, count, id=f"long-{n}", marks=_LONG) for n in range(1, parts + 1)]
    return [pytest.param(0, 0, small, id="small"), *long]


_LONG = (pytest.mark.long, pytest.mark.timeout(3600))


@dataclass
class Tally:
    """Trials and what went wrong in them."""

    name: str
    tried: int = 0
    lost: list[str] = field(default_factory=list)

    def add(self, trial: str, problems: list[str]) -> None:
        """Count one trial; `trial` says how to repeat it."""
        self.tried += 1
        self.lost += [f"{trial}: {'; '.join(problems)}"] if problems else []


@contextlib.contextmanager
def tally(name: str) -> Iterator[Tally]:
    """Count trials, write the sum to the file that TRUST_TABLE names, and fail if anything was lost."""
    counted = Tally(name)
    try:
        yield counted
    finally:
        if table := os.environ.get("TRUST_TABLE"):
            with open(table, "a") as file:
                file.write(f"{name}\t{counted.tried}\t{len(counted.lost)}\n")
    assert not counted.lost, f"{len(counted.lost)} of {counted.tried} lost:\n" + "\n".join(counted.lost)


@dataclass(frozen=True)
class Ended:
    """How a process ended: the exit code, -n after an unhandled signal n, and what it wrote."""

    code: int
    stdout: str
    stderr: str

    def problems(self, *codes: int) -> list[str]:
        """What is wrong with an end that should have one of these codes."""
        wrong = [] if self.code in codes else [f"exit {self.code}, not {codes}: {self.stderr[-600:]}"]
        return wrong + (["a traceback"] if "Traceback" in self.stderr else [])

    def message_problems(self, run: Path) -> list[str]:
        """What is wrong with a failure's message: there is one, and it names a path of the run."""
        messages = re.findall(r"^error.*(?:\n.*)*", self.stderr, re.MULTILINE)
        told = len(messages) == 1 and len(re.findall("^error", messages[0], re.MULTILINE)) == 1 and str(run) in messages[0]
        return [] if told else [f"not one message with the path: {self.stderr[-400:]}"]


class Trial:
    """One `avt` of the zygote, in a session of its own."""

    def __init__(self, zygote: "Zygote", pid: int, folder: Path) -> None:
        self.zygote, self.pid, self.folder = zygote, pid, folder
        self._code: int | None = None

    def send(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the process, or to its group; nothing if it ended before."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number) if group else os.kill(self.pid, number)

    def is_running(self) -> bool:
        if self._code is None and self.zygote.has_reply():
            self._code = self.zygote.receive()["code"]
        return self._code is None

    def written(self) -> str:
        """Return what it wrote to stderr so far."""
        path = self.folder / "stderr"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for(self, seen: Callable[[], Any], *, timeout: float = TIMEOUT) -> bool:
        """Wait until something is seen; false if the process ended before."""
        limit = time.monotonic() + timeout
        while self.is_running() and time.monotonic() < limit:
            if seen():
                return True
            time.sleep(0.001)
        return bool(seen())

    def wait(self, *, timeout: float = TIMEOUT) -> Ended:
        """Wait for the end; a process that does not end is killed and has code -SIGKILL."""
        if self._code is None and not self.zygote.has_reply(timeout):
            self.send(signal.SIGKILL, group=True)
        if self._code is None:
            self._code = self.zygote.receive()["code"]
        texts = [(self.folder / name) for name in ("stdout", "stderr")]
        stdout, stderr = (path.read_text(errors="replace") if path.exists() else "" for path in texts)
        return Ended(self._code, stdout, stderr)

    def clear(self) -> None:
        """End what is left of the session."""
        self.send(signal.SIGKILL, group=True)
        self.wait()


class Zygote:
    """The client of `zygote.py`; one trial at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count, self._rest = folder, 0, b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.trust.zygote"],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.receive()

    def has_reply(self, timeout: float = 0) -> bool:
        assert self.process.stdout is not None
        return b"\n" in self._rest or bool(select.select([self.process.stdout], [], [], timeout)[0])

    def receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while b"\n" not in self._rest:
            read = os.read(self.process.stdout.fileno(), 4096)
            assert read, "the zygote ended"
            self._rest += read
        line, self._rest = self._rest.split(b"\n", 1)
        return dict(json.loads(line))

    @contextlib.contextmanager
    def start(self, *args: str, cwd: Path | None = None, **request: Any) -> Iterator[Trial]:
        """Start `avt ARGS` in a folder of its own, and end all of it at the end."""
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir()
        files = {"cwd": str(cwd or folder), "stdout": str(folder / "stdout"), "stderr": str(folder / "stderr")}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({**files, "args": args, **request}).encode() + b"\n")
        self.process.stdin.flush()
        trial = Trial(self, self.receive()["pid"], folder)
        try:
            yield trial
        finally:
            trial.clear()

    def run(self, *args: str, **request: Any) -> Ended:
        """Run `avt ARGS` to its end."""
        with self.start(*args, **request) as trial:
            return trial.wait()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


# The judge: no code of avtcli below.


def steps_of(run: Path) -> dict[int, Path]:
    """List the folders that stand for checkpoints, by step."""
    found = (run / "checkpoints").glob("step-*")
    return {int(path.name[5:]): path for path in found if re.fullmatch(r"step-\d{10}", path.name)}


def damage_of(folder: Path) -> str:
    """What is wrong with a checkpoint; empty if it is complete."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        for name in ("model.safetensors", "state.safetensors", "state.json"):
            content = (folder / name).read_bytes()
            if manifest[name] != {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}:
                return f"{folder.name}/{name} is not what the manifest says"
    except (OSError, ValueError, LookupError, TypeError) as error:
        return f"{folder.name}: {error!r}"
    return ""


def contents(folder: Path) -> dict[str, str]:
    """Hash every file of a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def weights_of(run: Path, step: int = STEPS) -> tuple[str, str]:
    """Hash model and optimiser state of a step."""
    files = [run / "checkpoints" / f"step-{step:010d}" / f"{name}.safetensors" for name in ("model", "state")]
    return hashlib.sha256(files[0].read_bytes()).hexdigest(), hashlib.sha256(files[1].read_bytes()).hexdigest()


def newest_step(run: Path) -> int:
    """Return the newest step on disk; -1 if there is none."""
    return max(steps_of(run), default=-1)


def standing(run: Path, said: str = "") -> list[str]:
    """What is wrong with a folder that a run left: a torn checkpoint, too few, or not what it said that it had saved.

    An old checkpoint may be half deleted, where two newer ones are complete.
    """
    damage = {step: damage_of(path) for step, path in sorted(steps_of(run).items(), reverse=True)}
    complete = [step for step, wrong in damage.items() if not wrong]
    wrong = [wrong for step, wrong in damage.items() if wrong and sum(other > step for other in complete) < 2]
    if newest_step(run) > 0 and len(complete) < 2:
        wrong.append(f"{len(complete)} complete checkpoints after step {newest_step(run)}")
    promised = [int(step) for step in re.findall(rf"saved \S*{re.escape(run.name)}\S*/step-(\d+)", said)]
    if max(promised, default=-1) > max(complete, default=-1):
        wrong.append(f"said that step {max(promised)} was saved; complete are {complete}")
    return wrong


def args_to_go_on(run: Path, settings: list[str]) -> list[str]:
    """What a user types: resume a run that is there, else start it."""
    if (run / "config.toml").exists():
        return ["pretrain", "--resume", str(run)]
    return ["pretrain", *settings, "--out", str(run)]


def finished(run: Path, weights: tuple[str, str], *, steps: int = STEPS) -> list[str]:
    """What is wrong with a run that should be complete."""
    wrong = standing(run)
    if newest_step(run) != steps:
        return [*wrong, f"ended at step {newest_step(run)} of {steps}"]
    wrong += [] if weights_of(run, steps) == weights else ["other weights or optimiser state than the undisturbed run"]
    try:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        logged = [line["step"] for line in lines if "loss" in line]
    except (ValueError, LookupError, TypeError) as error:
        return [*wrong, f"metrics.jsonl: {error!r}"]
    wrong += [] if logged == list(range(1, steps + 1)) else [f"metrics.jsonl has the steps {logged}"]
    left = [path.name for path in (run / "checkpoints").glob(".tmp-*")]
    return wrong + ([f"left behind: {left}"] if left else [])


def resumed(zygote: Zygote, run: Path, weights: tuple[str, str], *more: str, settings: list[str] = SETTINGS) -> list[str]:
    """Go on with a run to its end: what is wrong then."""
    args = args_to_go_on(run, settings)
    ended = zygote.run(*args, *(more if "--resume" in args else ()))
    return ended.problems(0) or finished(run, weights)


def write_in_place(folder: str) -> None:
    """Write checkpoints as a naive program does: over the last one, without end. The harness must see it lose them."""
    path, generator = Path(folder) / "checkpoints" / "step-0000000001", random.Random(0)
    path.mkdir(parents=True, exist_ok=True)
    while True:
        manifest = {}
        for name in ("model.safetensors", "state.safetensors", "state.json"):
            content = generator.randbytes(1 << 20)
            (path / name).write_bytes(content)
            manifest[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (path / "manifest.json").write_text(json.dumps(manifest))
        time.sleep(0.005)


@contextlib.contextmanager
def small_disk(path: Path, *, size: str) -> Iterator[Path]:
    """Mount a disk of its own, of a size such as 1m; it is unmounted at the end."""
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root may mount a disk")
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)
