"""`avt compare` from the command line."""

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from avtcli.events import ignore
from avtcli.reporting.comparison import compare_runs
from avtcli.reporting.comparison_rows import STAR
from tests.reporting.test_comparison import made, probed


def write_runs() -> None:
    for name, width, seed, top in (("a", 0.5, 0, 70), ("b", 0.5, 1, 80), ("c", 0.25, 0, 60)):
        run = made(Path(name), config=f'seed = {seed}\n[backbone]\nname = "nin"\nwidth = {width}\n')
        probed(run, "1", top)
    probed(Path("a"), "2", 50, head="linear", train_images=7)


def test_the_tables_have_a_row_for_each_group_and_a_table_for_each_protocol(avt) -> None:
    write_runs()
    result = avt("compare a b c")

    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "run           seed  step  backbone.width",
        "2 runs: a, b  0, 1     4             0.5",
        "c             0        4            0.25",
        "",
        "training: loss of the last epoch, last evaluation",
        "                       loss       mace_px      knn_top1        rankme",
        "2 runs: a, b  2.000 ± 0.000  12.00 ± 0.00  80.00 ± 0.00  30.00 ± 0.00",
        "c                     2.000         12.00         80.00         30.00",
        "",
        "probe: top-1 %, dataset=mini, train_images=100",
        "                  conv2 knn",
        "2 runs: a, b  75.00 ± 7.07*",
        "c                    60.00",
        "",
        "probe: top-1 %, dataset=mini, train_images=7",
        "                conv2 linear",
        "2 runs: a, b  50.00 (1 of 2)",
        "",
        STAR,
    ]


def test_settings_have_their_options_and_many_runs_are_shortened(avt) -> None:
    settings = '[backbone]\nname = "{}"\n[schedule]\nrate = 0.5\nepochs = {}\n'
    names = [f"of-the-same-settings-{seed}" for seed in range(3)]
    for seed, name in enumerate(names):
        made(Path(name), config=f"limit_train = 9\nseed = {seed}\n{settings.format('nin', 3)}")
    made(Path("other"), config=f"limit_train = 8\nseed = 0\n{settings.format('alexnet', 4).replace('0.5', '0.25')}")
    header, group, *lines = avt(f"compare {' '.join(names)} other").stdout.splitlines()

    for title in ("limit_train (--limit-train)", "backbone.name (--backbone)", "schedule.rate (--lr)", "schedule.epochs  "):
        assert title in f"{header}  "
    assert group.startswith(f"3 runs: {', '.join(names)}  0, 1, 2 ")
    assert sum(line.startswith("3 runs: of-the-same-settings-0, ...  2.000") for line in lines) == 1


def test_the_json_is_the_comparison(avt) -> None:
    write_runs()

    assert avt("compare a b c --json").json == asdict(compare_runs([Path("a"), Path("b"), Path("c")], on_event=ignore))


def test_last_is_the_newest_run_for_comparison_and_report(avt) -> None:
    for name, since in (("new", 200), ("old", 100)):
        run = made(Path("runs", name), config='seed = 0\n[backbone]\nname = "nin"\n')
        next(run.glob("checkpoints/step-*")).joinpath("manifest.json").write_text("{}")
        os.utime(run / "config.toml", (since, since))
    (group,) = avt("compare last --json").json["groups"]
    result = avt("report last --json")

    assert group["runs"] == result.json["runs"] == ["runs/new"]
    assert "using the newest run, runs/new" in result.stderr
    named = avt("report old --json")
    assert (named.json["runs"], "using the newest run" in named.stderr) == (["runs/old"], False)


def test_what_is_no_run_is_one_message(avt) -> None:
    result = avt("compare nowhere")

    assert (result.code, result.stdout) == (2, "")
    assert "nowhere is no run folder" in result.stderr


def test_a_comparison_loads_no_torch() -> None:
    write_runs()
    line = "app(['compare', 'a', 'c'], standalone_mode=False)"
    code = f"import sys; from avtcli.cli.app import app; {line}; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ended.stdout.splitlines()[-1] == "False"
