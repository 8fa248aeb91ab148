"""`avt bench`."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from avtcli.cli.console import reporting, say, say_json, say_table
from avtcli.cli.options import Device, Json, Precision, parts_of

if TYPE_CHECKING:
    from avtcli.bench.benchmark_suite import BenchResult
    from avtcli.bench.benchmark_timing import Comparison


def bench(
    only: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME]", help="Benchmarks to run: homographies, warp-224, pairs, step, loop, probe. Default: all."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Timed rounds of each benchmark.")] = 5,
    backbone: Annotated[
        str | None,
        typer.Option(metavar="NAME[:VARIANT]", help="Network of step, loop and probe. Default: nin.", rich_help_panel="Model"),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            metavar="PX", min=8, help="Image side of pairs, step, loop and probe. Default: 32.", rich_help_panel="Model"
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=2,
            max=2_000,
            help="Batch size of step and loop. Default: 32; 512 on a GPU.",
            rich_help_panel="Model",
        ),
    ] = None,
    device: Device = None,
    compile: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compile our training step.", rich_help_panel="Hardware")
    ] = False,
    precision: Precision = None,
    as_json: Json = False,
) -> None:
    """Compare the speed of avt with an independent baseline, in one process and in turn. Takes minutes on a CPU.

    A ratio above 1 means that avt is faster.

    Example: `avt bench --only step --backbone timm:resnet18 --size 64 --rounds 9`
    """
    from avtcli.bench.benchmark_suite import bench as run_bench
    from avtcli.bench.benchmark_timing import BenchConfig
    from avtcli.config.components import Plugin
    from avtcli.runtime.context import Context

    with reporting() as on_event:
        config = BenchConfig.build(
            Context.build(device=device or "auto").device,
            backbone=Plugin(name=backbone) if backbone else None,
            size_px=size,
            batch_size=batch_size,
            compile=compile,
            precision=precision,
        )
        result = run_bench(config, only=parts_of(only) or (), rounds=rounds, on_event=on_event)
    if as_json:
        say_json(asdict(result))
    else:
        _say_result(result)


def _say_result(result: "BenchResult") -> None:
    env = result.environment
    say(f"avt {env['versions']['avtcli']}, commit {result.commit or 'unknown'}, torch {env['versions']['torch']}")
    say(f"{env['device']}, {result.cpus} x {result.cpu}; median of {result.rounds} rounds", "")
    say_table(("", "ours", "baseline", "ratio", "lowest", "highest", ""), [_row(m) for m in result.measurements])
    say("", *(line for m in result.measurements for line in _lines(m)))
    if result.rounds < 9:
        say("", "next: avt bench --rounds 9 --only NAME, on an idle machine")


def _row(m: "Comparison") -> tuple[str, ...]:
    ratios = (f"{ratio:.3g}x" for ratio in (m.ratio, m.ratio_low, m.ratio_high))
    return (m.name, _short(m.ours), _short(m.baseline), *ratios, m.unit)


def _short(rate: float) -> str:
    return f"{rate:,.0f}".replace(",", " ") if rate >= 100 else f"{rate:.3g}"


def _lines(m: "Comparison") -> Iterator[str]:
    yield f"{m.name}: {m.what}"
    for name, value in m.figures.items():
        yield f"  {name.replace('_', ' ')}: {f'{value:.4g}' if isinstance(value, float) else value}"
