"""Each system call on a run's folder killed or made to fail, one at a time, and the order of the calls of a save."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.trust.conftest import Reference
from tests.trust.harness import (
    SETTINGS,
    Ended,
    Trial,
    Zygote,
    contents,
    forms,
    newest_step,
    resumed,
    standing,
    steps_of,
    tally,
)

CALLS = (
    "openat,write,pwrite64,writev,ftruncate,fallocate,fsync,fdatasync,rename,renameat,renameat2,link,linkat,symlink,"
    "unlink,unlinkat,rmdir,mkdir,mkdirat,chmod,fchmod,fchmodat,flock"
).split(",")
TRACE = "trace=" + ",".join(f"?{name}" for name in CALLS)  # not every machine has every one


@dataclass(frozen=True)
class Call:
    """A system call of the main thread: its name, the how-manieth of that name it is, and strace's line."""

    name: str
    nth: int
    line: str


@contextlib.contextmanager
def traced(trial: Trial, *options: str) -> Iterator[Path]:
    """Attach strace to a trial that was started with `traced`, for which it waits."""
    log = trial.folder / "strace"
    command = ["strace", "-f", "-y", "-s", "0", "-o", str(log), "-e", TRACE, *options, "-p", str(trial.pid)]
    strace, status = subprocess.Popen(command, stderr=subprocess.PIPE, text=True), Path(f"/proc/{trial.pid}/status")
    try:
        if trial.wait_for(lambda: strace.poll() is not None or "TracerPid:\t0" not in status.read_text()) and strace.poll():
            pytest.skip(f"strace cannot attach here: {strace.communicate()[1].strip()}")
        yield log
    finally:
        trial.send(signal.SIGKILL, group=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            strace.communicate(timeout=30)
        strace.kill()
        strace.wait()


def run_traced(zygote: Zygote, run: Path, *options: str) -> tuple[Ended, Path]:
    """Resume a run under strace."""
    with zygote.start("pretrain", "--resume", str(run), traced=True) as trial, traced(trial, *options) as log:
        return trial.wait(), log


def calls_on(run: Path, log: Path) -> list[Call]:
    """Read the main thread's calls that name a run's folder or a file in it; strace counts each name by itself."""
    lines = [line.split(maxsplit=1) for line in log.read_text().splitlines()]
    main, counts, found = lines[0][0], Counter[str](), list[Call]()
    for pid, line in lines:
        match = re.match(r"(\w+)\(", line)
        if pid == main and match:
            counts[match[1]] += 1
            if str(run) in line:
                found.append(Call(match[1], counts[match[1]], line))
    return found


@pytest.fixture(scope="session")
def halfway(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed with two or three of nine steps to go."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    for attempt in range(10):
        run = tmp_path_factory.mktemp("halfway") / str(attempt)
        with zygote.start("pretrain", *SETTINGS, "--out", str(run)) as trial:
            trial.wait_for(lambda run=run: newest_step(run) >= 6)
            trial.send(signal.SIGKILL)
        if newest_step(run) in (6, 7):
            return run
    raise AssertionError("ten kills came too late")


@pytest.fixture(scope="session")
def calls(zygote: Zygote, halfway: Path) -> list[Call]:
    """The calls of a run that resumes, saves two or three times, prunes, and ends."""
    run = halfway.with_name("run")
    shutil.copytree(halfway, run)
    ended, log = run_traced(zygote, run)
    if "ptrace" in ended.stderr:
        pytest.skip(ended.stderr)
    assert ended.problems(0) == []
    found = calls_on(run, log)
    shutil.rmtree(run)
    assert len(found) > 40, "a save has dozens of system calls"
    return found


def share(calls: list[Call], part: int, parts: int, trials: int) -> list[Call]:
    """Return the calls of a form: a draw, or this part of all."""
    return calls[part - 1 :: parts] if parts else random.Random(0).sample(calls, trials)


@pytest.mark.parametrize(("part", "parts", "trials"), forms("killed system calls"))
def test_a_kill_at_any_system_call_loses_nothing(
    zygote: Zygote, reference: Reference, halfway: Path, calls: list[Call], part: int, parts: int, trials: int
) -> None:
    run = halfway.with_name("run")
    with tally("SIGKILL at each system call on the run's folder") as counted:
        for call in share(calls, part, parts, trials):
            shutil.copytree(halfway, run)
            ended, _ = run_traced(zygote, run, "-e", f"inject={call.name}:signal=KILL:when={call.nth}")
            wrong = standing(run, ended.stderr) or resumed(zygote, run, reference.weights)
            counted.add(f"{call.name} {call.nth} ({call.line[:120]})", wrong)
            shutil.rmtree(run)


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize(("part", "parts", "trials"), forms("failed system calls"))
def test_an_error_of_any_system_call_loses_nothing(
    zygote: Zygote, reference: Reference, halfway: Path, calls: list[Call], part: int, parts: int, trials: int, error: str
) -> None:
    """It ends with one message that names the folder, or goes on where the call did not matter; what was saved stays."""
    run, before = halfway.with_name("run"), {path.name: contents(path) for path in steps_of(halfway).values()}
    with tally(f"{error} from each system call on the run's folder") as counted:
        for call in share(calls, part, parts, trials):
            shutil.copytree(halfway, run)
            ended, log = run_traced(zygote, run, "-e", f"inject={call.name}:error={error}:when={call.nth}")
            hit = str(run) in next(
                (line for line in log.read_text().splitlines() if "(INJECTED)" in line), ""
            )  # not a neighbour
            wrong = [*(ended.problems(0, 1, 2) if hit else []), *standing(run, ended.stderr)]
            wrong += [
                f"{path.name} changed"
                for path in steps_of(run).values()
                if contents(path) != before.get(path.name, contents(path))
            ]
            wrong += ended.message_problems(run) if ended.code and hit else []
            counted.add(f"{call.name} {call.nth} ({call.line[:120]})", wrong + resumed(zygote, run, reference.weights))
            shutil.rmtree(run)


def test_a_save_waits_for_the_disk_at_each_step(zygote: Zygote, calls: list[Call], halfway: Path) -> None:
    """Files are synced after their last write, then their folder; then the rename, its parent; only then an old one goes."""
    run = halfway.with_name("run")
    root = str(run / "checkpoints")
    events = [event for call in calls if (event := describe(call, root))]
    saves = [
        n
        for n, (kind, where) in enumerate(events)
        if kind == "rename" and re.fullmatch(rf"{re.escape(root)}/step-\d{{10}}", where.split(" ")[1])
    ]
    assert len(saves) >= 2
    for n in saves:
        partial, final = events[n][1].split(" ")
        inside = [event for event in events[:n] if event[1] == partial or event[1].startswith(f"{partial}/")]
        written = {where for kind, where in inside if kind == "write"}
        assert {Path(where).name for where in written} >= {"state.json", "manifest.json"}, inside
        assert ("fsync", partial) in inside, f"{partial} is renamed before its entries are synced"
        folder_synced = len(inside) - 1 - inside[::-1].index(("fsync", partial))
        for where in written:
            last = max(k for k, event in enumerate(inside) if event == ("write", where))
            moved = next(
                (event[1].split(" ")[1] for event in inside if event[0] == "rename" and event[1].startswith(f"{where} ")), where
            )
            synced = [k for k, event in enumerate(inside) if k > last and event in (("fsync", where), ("fsync", moved))]
            assert synced, f"{where} is not synced after its last write"
            assert synced[0] < folder_synced, f"the folder is synced before {where}"
        assert not [event for event in inside[folder_synced + 1 :] if event[0] == "write"]
        after = events[n + 1 :]
        synced = after.index(("fsync", root))
        assert not [event for event in after[:synced] if event[0] == "remove"], f"pruned before {final} was on disk"


def describe(call: Call, root: str) -> tuple[str, str] | None:
    """Reduce a call on the checkpoints to write, fsync, rename or remove, and the path; none for other calls."""
    paths = [path for path in re.findall(r'[<"]([^<>"]+)[>"]', call.line) if path.startswith("/")]
    if call.name.startswith("unlink") or call.name == "rmdir":
        relative = re.search(r'<([^<>]+)>, "([^"/]+)"', call.line)
        where = os.path.join(relative[1], relative[2]) if relative else (paths or [""])[-1]
        return ("remove", where) if where.startswith(f"{root}/step-") else None
    paths = [path for path in paths if path.startswith(root)]
    if not paths or " = -1 " in call.line:
        return None
    if call.name.startswith("rename") and paths[0].startswith(f"{root}/step-"):
        return "remove", paths[0]
    if call.name.startswith("rename"):
        return ("rename", f"{paths[0]} {paths[1]}") if len(paths) > 1 else None
    kinds = {"write": "write", "pwrite64": "write", "writev": "write", "fsync": "fsync", "fdatasync": "fsync"}
    return (kinds[call.name], paths[0]) if call.name in kinds else None
