"""The functions where a notebook calls them: in cells, threads and event loops, and interrupted."""

import asyncio
import code
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import avtcli
from avtcli.cli import console
from avtcli.events import Event, OnEvent, Progress
from avtcli.runtime.signals import ASKING
from avtcli.storage.checkpoints import load_newest

SETTINGS: dict[str, Any] = {
    **{"limit_train": 40, "batch_size": 16, "epochs": 3, "eval_every": 0},
    "options": {"backbone.width": 0.05},
}
CELL = f"import avtcli\nresult = avtcli.pretrain(**{SETTINGS!r}, out='run')\nsteps = result.steps"


def weights(run: str) -> bytes:
    return (Path(run) / "checkpoints/step-0000000009/model.safetensors").read_bytes()


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """Signal handlers, and threads, are those of before."""
    before = {number: signal.getsignal(number) for number in (*ASKING, signal.SIGCHLD)}
    yield
    assert {number: signal.getsignal(number) for number in before} == before
    assert [thread for thread in threading.enumerate() if not thread.daemon] == [threading.main_thread()]


@pytest.fixture
def during(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Do something whenever progress after a step of training, or a later one, is shown."""

    def install(step: int, do: Callable[[], None]) -> None:
        @contextlib.contextmanager
        def rendering() -> Iterator[OnEvent]:
            def on_event(event: Event) -> None:
                if isinstance(event, Progress) and event.task == "pretraining" and event.done >= step:
                    do()

            yield on_event

        monkeypatch.setattr(console, "rendering", rendering)

    return install


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupted_cell_has_saved_its_state_and_goes_on_to_the_same_weights(during) -> None:
    seen = []
    during(4, lambda: seen.append(signal.getsignal(signal.SIGTERM)) or (len(seen) == 1 and interrupt()))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="The state is saved") as caught:
        avtcli.pretrain(**SETTINGS, out="run", progress=True)
    step = load_newest(Path("run/checkpoints")).about["step"]
    scope: dict[str, Any] = {"avtcli": avtcli}
    exec("resumed = " + str(caught.value).partition("Go on with ")[2].removesuffix("."), scope)
    avtcli.pretrain(**SETTINGS, out="whole")

    assert not isinstance(caught.value, avtcli.AvtError)
    assert set(seen) == {before}, "only Ctrl-C is handled"
    assert 0 < step < 9
    assert scope["resumed"].steps == 9
    assert weights("run") == weights("whole")


def test_a_second_interruption_is_raised_at_once_and_the_run_can_go_on(during) -> None:
    during(4, lambda: [interrupt(), interrupt()])
    with pytest.raises(KeyboardInterrupt) as caught:
        avtcli.pretrain(**SETTINGS, out="run", progress=True)

    assert str(caught.value) == ""
    assert load_newest(Path("run/checkpoints")).about["step"] == 0
    assert avtcli.pretrain(resume="run").steps == 9


def test_an_interruption_after_the_last_step_is_not_lost(during) -> None:
    """A loop over runs in one cell must end."""
    during(9, interrupt)
    with pytest.raises(KeyboardInterrupt, match="complete"):
        avtcli.pretrain(**SETTINGS, out="run", progress=True)

    assert Path("run/result.json").is_file()


def test_a_handler_of_the_program_is_put_back(during) -> None:
    called: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: called.append(number))
    try:
        own = signal.getsignal(signal.SIGINT)
        avtcli.pretrain(**SETTINGS, out="run")
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)
    assert called == []


def test_a_cell_runs_in_an_interactive_interpreter_in_a_thread(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    interpreter = code.InteractiveInterpreter(names)
    thread = threading.Thread(target=interpreter.runcode, args=(compile(CELL, "<cell>", "exec"),))
    thread.start()
    thread.join()
    failing = threading.Thread(target=interpreter.runsource, args=("avtcli.probe('nowhere')",))
    failing.start()
    failing.join()
    shown = capsys.readouterr()

    assert names["steps"] == 9
    assert shown.out == ""
    assert shown.err.startswith("Traceback")
    assert "AvtError: There is no run folder" in shown.err
    assert "SystemExit" not in shown.err


def test_a_coroutine_may_call_them_itself_or_in_a_thread() -> None:
    async def cell() -> tuple[int, int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.01)

        ticking = asyncio.create_task(tick())
        there = await asyncio.to_thread(avtcli.pretrain, **SETTINGS, out="there")
        ticking.cancel()
        here = avtcli.pretrain(**SETTINGS, out="here")
        assert ticks > 1, "the loop went on meanwhile"
        return there.steps, here.steps

    assert asyncio.run(cell()) == (9, 9)
    assert weights("there") == weights("here")


def test_runs_in_several_threads_wait_for_each_other(during) -> None:
    thread = threading.Thread(target=avtcli.pretrain, kwargs={**SETTINGS, "out": "second"})
    begun: list[bool] = []

    def start() -> None:
        if not begun:
            thread.start()
            thread.join(timeout=1)
        begun.append(Path("second").exists())

    during(0, start)
    avtcli.pretrain(**SETTINGS, out="first", progress=True)
    thread.join()

    assert not any(begun)
    assert weights("first") == weights("second")


def test_progress_is_shown_on_stderr_if_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    avtcli.pretrain(**{**SETTINGS, "max_steps": 2}, out="quiet")
    quiet = capfd.readouterr()
    avtcli.pretrain(**{**SETTINGS, "max_steps": 2}, out="shown", progress=True)
    shown = capfd.readouterr()

    assert (quiet.out, quiet.err) == ("", "")
    assert shown.out == ""
    assert "pretraining: 2/2 steps" in shown.err
    assert f"saved {Path('shown').absolute()}/checkpoints/step-0000000002" in shown.err
