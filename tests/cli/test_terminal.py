"""What a terminal shows: lines that fit, commands that can be pasted, defaults and examples in the help, short messages."""

import os
import pty
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from avtcli.cli import console, progress
from avtcli.cli.app import COMMANDS, app, load_command
from avtcli.cli.layout import fact_lines, table_lines, wrapped
from avtcli.cli.progress import plain_renderer, progress_line, renderer
from avtcli.events import Notice, Progress
from avtcli.runtime.signals import stop_signals
from tests.cli.test_compare_cli import write_runs

ROOMS = (60, 80, 100)
HEADER = ("layer", "pool", "top-1 %", "random top-1 %", "supervised top-1 %", "what")
ROWS = [
    ("layer4.1.conv2", "max 4", "81.20 ± 0.31", "9.10", "88.10", "a sentence of several-words that takes more than one line"),
    ("conv1", "-", "71.20", "-", "88.10", "short"),
]
COMMAND_LINES = [
    "recipes list",
    "plugins list",
    "probe RUN --layer conv1,conv2 --limit-train 40 --head knn",
    "probe RUN --limit-train 40 --head knn --no-baseline --verbose",
    "evaluate RUN --count 20 --layer conv1,conv3",
    "compare a b c",
    "bench --only homographies --rounds 1",
    "gen-homographies bank.safetensors --count 10",
    "embed RUN --split test --out x.npz",
    "export RUN --out x.safetensors",
    "demo",
]


def words(lines: list[str]) -> set[str]:
    return set(" ".join(lines).split())


@pytest.fixture
def layouts(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[int | None], list[str]]]:
    """What a command printed, each to be laid out again for another terminal."""
    found: list[Callable[[int | None], list[str]]] = []

    def table(*args: Any, **named: Any) -> list[str]:
        found.append(lambda room: table_lines(*args, **{**named, "room": room}))
        return found[-1](None)

    def facts(texts: Any, room: int | None) -> list[str]:
        found.append(lambda room: fact_lines(texts, room))
        return found[-1](None)

    def text(line: str, room: int | None, *indent: str) -> list[str]:
        found.append(lambda room: wrapped(line, room, *indent))
        return found[-1](None)

    for name, function in (("table_lines", table), ("fact_lines", facts), ("wrapped", text)):
        monkeypatch.setattr(console, name, function)
    return found


def shorten_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    head = SimpleNamespace(layer="conv2", pool="max", top1=70.0)
    trained = SimpleNamespace(
        run="runs/20261127-120000-fashion-mini-nin-avt", seconds=60.0, mace_px=12.0, constant_mace_px=23.7
    )
    exported = SimpleNamespace(file=f"{trained.run}/encoder.safetensors", load_with="import avtcli; encoder = 1")
    for name, result in {
        "training.pretrain.pretrain": trained,
        "models.weights.open_weights": None,
        "probing.probe.probe": SimpleNamespace(results=[head], baseline=[head]),
        "exporting.export.export": exported,
    }.items():
        monkeypatch.setattr(f"avtcli.{name}", lambda *args, result=result, **named: result)


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_no_output_is_wider_than_the_terminal_and_no_word_is_broken(
    avt, tiny_run: Path, layouts, monkeypatch, line: str
) -> None:
    if line == "demo":
        shorten_demo(monkeypatch)
    if line.startswith("compare"):
        write_runs()
    shutil.copytree(tiny_run, "run")
    result = avt(line.replace("RUN", "run"))

    assert result.code == 0, result.stderr
    assert layouts
    for lines in layouts:
        for room in ROOMS:
            narrow = lines(room)
            assert words(narrow) <= words(lines(None))
            assert [x for x in narrow if len(x) > room and len(x.split()) > 1 and not x.startswith("  ")] == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_table_too_wide_goes_on_below_its_first_column(room: int) -> None:
    lines = table_lines(HEADER, ROWS, best=0, room=room)

    assert max(map(len, lines)) <= room
    assert words(lines) == words([*HEADER, *(cell for row in ROWS for cell in row), "(best)"])
    blocks = "\n".join(lines).split("\n\n")
    assert all(block.startswith("layer") and "\nconv1" in block for block in blocks)


def test_words_stand_to_the_left_and_figures_to_the_right() -> None:
    rows = [("nin", "resnet18", "9.5", "1.5x", "-"), ("b", "x", "10.25 ± 1.00", "-", "-")]

    assert table_lines(("run", "backbone", "loss", "ratio", "none"), rows, best=1, room=None) == [
        "run       backbone          loss  ratio  none",
        "nin       resnet18           9.5   1.5x     -",
        "b (best)  x         10.25 ± 1.00      -     -",
    ]


def test_only_a_word_longer_than_a_line_is_shortened_in_its_middle() -> None:
    path = f"/home/{'x' * 200}/run"
    lines = table_lines(("run", "loss"), [(path, "1.5")], room=60)

    assert max(map(len, lines)) <= 60
    assert lines[1].split() == [f"{path[:14]}…{path[-14:]}", "1.5"]


@pytest.mark.parametrize("room", [59, 79, 99])
def test_count_and_times_are_the_last_to_go_in_the_progress_line(room: int) -> None:
    figures = ("12345/441000", "0:12:34 elapsed", "10:12:34 left")
    before, after = progress_line("random BatchNorm statistics", figures, "loss 1.2  900 pairs/s  data wait 2%", room)

    assert all(figure in after for figure in figures)
    assert len(before) + len(after) + 2 <= room
    assert words([before]) <= {"random", "BatchNorm", "statistics"}
    assert progress_line("pretraining", figures, "loss 1.2", 30) == ("", "  ".join(figures))


def test_times_of_a_task_that_comes_again_are_those_of_its_new_run(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    now = iter([0.0, 10.0, 20.0, 5000.0, 5010.0])
    monkeypatch.setattr("avtcli.cli.progress.time.monotonic", lambda: next(now))
    with renderer() as on_event:
        for done in (0, 50, 100, 0, 50):
            on_event(Progress("evaluating", done, 100, "images"))

    halves = "evaluating: 50/100 images  0:00:10 left"
    assert capsys.readouterr().err.splitlines() == [halves, "evaluating: 100/100 images", halves]


def test_a_finished_bar_goes_into_the_log_once_in_the_order_of_time(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with renderer() as on_event:
        for task, done in (("pretraining", 0), ("monitor: a", 9), ("monitor: b", 9), ("monitor: a", 9), ("pretraining", 9)):
            on_event(Progress(task, done, 9, "steps"))
            on_event(Notice(f"{task} {done}"))
    log = [line.split("  ")[0] for line in capsys.readouterr().err.splitlines() if line.strip()]

    assert log[-8:] == [
        *("pretraining 0", "monitor: a", "monitor: a 9", "monitor: b", "monitor: b 9", "monitor: a 9"),
        *("pretraining", "pretraining 9"),
    ]


def in_terminal(*args: str, columns: int) -> list[str]:
    """Run `avt` in a terminal; return what it shows, without control sequences."""
    leader, follower = pty.openpty()
    code = f"import fcntl, struct, termios, sys; fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack('4H', 50, {columns}, 0, 0));"
    code += "from avtcli.cli.app import main; main()"
    variables = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    subprocess.run([sys.executable, "-c", code, *args], stdin=follower, stdout=follower, stderr=follower, env=variables)
    os.close(follower)
    shown = b""
    try:
        while part := os.read(leader, 4096):
            shown += part
    except OSError:  # all is read
        pass
    os.close(leader)
    return shown.decode().splitlines()


def test_a_real_terminal_is_measured() -> None:
    narrow, refused = in_terminal("recipes", "list", columns=60), in_terminal("recipes", "show", "nowhere", columns=60)

    assert max(map(len, [*narrow, *refused])) <= 60
    assert refused[0].startswith("error: No recipe is called 'nowhere'.")
    assert len(refused) > 1
    assert refused[1].startswith("  ")


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_to_a_training_run_is_answered_before_the_step_ends(number: str) -> None:
    import signal
    import threading

    answered, texts = threading.Event(), list[str]()

    def on_event(event: Any) -> None:
        texts.append(event.text)
        answered.set()

    with stop_signals(on_event) as stop:
        signal.raise_signal(getattr(signal, number))
        assert answered.wait(5)

    assert texts == ["stopping after this step; again to leave at once"]
    assert stop.number == getattr(signal, number)


NAME = "a b/ü $x.toml"


def test_next_commands_can_be_pasted() -> None:
    Path("a b").mkdir()
    result = CliRunner().invoke(app, ["recipes", "copy", "cifar10-nin", NAME])
    shown, *others = result.stdout.splitlines()

    assert shown == f"copied to {NAME}"
    assert others[0] == "next:"
    assert shlex.split(others[1]) == ["avt", "pretrain", "--recipe", NAME]


@pytest.mark.parametrize("to", ["~/b.safetensors", "--out=~/b.safetensors"])
def test_the_home_folder_is_found_where_a_shell_leaves_it(
    avt, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    line = f"export {tiny_run} {to}" if to.startswith("--") else f"gen-homographies {to} --count 10"

    assert avt(line).code == 0
    assert (tmp_path / "home" / "b.safetensors").is_file()
    assert not Path("~").exists()


def test_the_file_of_another_format_is_refused_before_anything_is_written(avt, tiny_run: Path) -> None:
    result = avt(f"export {tiny_run} --out x.pt")

    assert result.code == 2
    assert "found --out x.pt. Give --out x.safetensors." in result.stderr
    assert list(Path().iterdir()) == []


BAD = {
    "pretrain --epochs many": "'--epochs': Input should be a valid integer, found 'many'. See `avt pretrain --help`.",
    "pretrain --epochs": "Option '--epochs' requires an argument.",
    "pretrain --epoch 3": "--epoch (Possible options: --epochs). See `avt pretrain --help`.",
    "pretrain --lr 0": "A learning rate, --lr, must be above 0 and finite, found 0.0",
    "pretrain --device cuda:1": "choose a GPU by CUDA_VISIBLE_DEVICES=N, and give --device cuda.",
    "pretrain --save-every 0": "found 0.0 (option --save-every)",
    "pretrain -o backbone.width=abc": "option 'width' should be a valid number, found 'abc'",
    "pretrian": "No such command 'pretrian'. Did you mean 'pretrain'? See `avt --help`.",
    "probe --pool median": "pool.0: Input should be 'max', 'avg' or 'none', found 'median' (option --pool)",
    "recipes show": "Missing argument 'NAME'. See `avt recipes show --help`.",
    "bench --rounds 0": "'--rounds': Input should be greater than or equal to 1, found '0'.",
    "compare": "Missing argument 'RUN...'.",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_usage_is_one_message_of_two_lines_at_most(avt, line: str) -> None:
    result = avt(line)

    assert (result.code, result.stdout) == (2, "")
    assert BAD[line] in result.stderr
    assert result.stderr.startswith("error: ")
    assert len(wrapped(result.stderr.strip(), 100, "  ", keep="  avt ")) <= 2


def test_the_mean_and_deviation_of_a_bank_are_a_table_by_coefficient(avt) -> None:
    mean, std = (
        avt(f"gen-homographies {name}.safetensors --count 10 --json").json[part] for name, part in (("a", "mean"), ("b", "std"))
    )
    lines = avt("gen-homographies c.safetensors --count 10").stdout.splitlines()
    table = lines.index("coefficients a to h of Pillow's PERSPECTIVE") + 1

    assert lines[table].split() == [*"abcdefgh"]
    assert [line.split() for line in lines[table + 1 : table + 3]] == [
        [name, *(f"{value:.4g}" for value in values)] for name, values in (("mean", mean), ("std", std))
    ]


def test_a_bank_is_a_file_of_safetensors(avt) -> None:
    result = avt("gen-homographies bank.pt --count 10")

    assert (result.code, list(Path().iterdir())) == (2, [])
    assert "found bank.pt. Give bank.safetensors." in result.stderr


def test_the_protocol_of_an_evaluation_takes_two_lines_and_verbose_shows_all(avt, tiny_run: Path) -> None:
    line = f"evaluate {tiny_run}/checkpoints/step-0000000009 --count 20"
    short, full = avt(line).stdout.rstrip().split("\n\n")[-1], avt(f"{line} --verbose").stdout.rstrip().split("\n\n")[-1]

    assert [text.split()[0] for text in short.splitlines()] == ["images", "protocol"]
    assert all(
        word in short
        for word in ("20 of the 1000 test images", "fashion-mini, projective", "ridge of 80", "10% of them", "random weights")
    )
    assert {"target", "views", "retrieval"} <= {text.split()[0] for text in full.splitlines()}


def test_the_protocol_of_a_probe_takes_two_lines_and_verbose_shows_all(avt, tiny_run: Path) -> None:
    line = f"probe {shutil.copytree(tiny_run, 'run')} --limit-train 100 --shots 2 --head knn --layer conv1,conv2"
    short, full = avt(line).stdout.rstrip().split("\n\n")[-1], avt(f"{line} --verbose").stdout.rstrip().split("\n\n")[-1]

    assert [text.split()[0] for text in short.splitlines()] == ["protocol", "figures"]
    used = "20 of 100 training and 1000 test images"
    assert all(word in short for word in ("knn", "no augmentation", "held-out training images", used, "test split"))
    assert len(full.splitlines()) > 10


def commands() -> list[tuple[str, Any]]:
    loaded = {name: load_command(name) for name in COMMANDS}
    return [
        (f"{name} {below}".strip(), command)
        for name, whole in loaded.items()
        for below, command in getattr(whole, "commands", {"": whole}).items()
    ]


@pytest.mark.parametrize(("name", "command"), commands())
def test_the_help_gives_an_example_and_every_default(name: str, command: Any) -> None:
    valued = [p for p in command.params if not p.required and not getattr(p, "is_flag", False) and p.name != "help"]
    without = [p.opts for p in valued if p.default is None and "efault" not in (getattr(p, "help", None) or "")]

    assert f"Example: `avt {name}" in command.help
    assert without == []


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("line", ["--help", "pretrain --help", "plugins new --help"])
def test_the_help_cuts_no_option_off(line: str, room: int) -> None:
    shown = in_terminal(*line.split(), columns=room)

    assert "…" not in "".join(shown)
    assert max(map(len, shown)) <= room
    assert "<auto|cpu|cuda|mps>" in "".join(shown) or "pretrain" not in line


def test_a_task_that_comes_again_is_timed_from_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Also one that reports nothing before its first images are done."""
    now = iter([0.0, 1.0, 5000.0, 5011.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    on_event = plain_renderer()
    for done in (250, 1000, 250, 500):
        on_event(Progress("statistics", done, 1000, "images"))

    assert capsys.readouterr().err == "statistics: 1000/1000 images\nstatistics: 500/1000 images  0:00:22 left\n"
