"""`avt bench`."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from avtcli.cli.console import reporting, say, say_json, say_table
from avtcli.cli.options import Device, Json, Precision

if TYPE_CHECKING:
    from avtcli.bench.suite import BenchResult
    from avtcli.bench.timing import Comparison


def bench(
    only: Annotated[
        str | None, typer.Option(metavar="NAME[,NAME]", help="Take these measurements alone; left out, all of them.")
    ] = None,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="How often each side is timed, in turn.")] = 5,
    device: Device = None,
    compile: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compile our training step.", rich_help_panel="Hardware")
    ] = False,
    precision: Precision = None,
    as_json: Json = False,
) -> None:
    """Measure each piece beside the plain way to do it, on this machine, in one process and in turn. Minutes on a CPU.

    A ratio above 1 says that ours is faster.

    Example: `avt bench --only pairs,step-nin --rounds 9`
    """
    from avtcli.bench.suite import bench as run_bench

    names = [name.strip() for name in only.split(",")] if only else []
    with reporting() as on_event:
        result = run_bench(
            only=names,
            rounds=rounds,
            device=device or "auto",
            compile=compile,
            precision=precision or "auto",
            on_event=on_event,
        )
    if as_json:
        say_json(asdict(result))
        return
    env = result.environment
    say(f"avt {env['versions']['avtcli']}, commit {result.commit or 'unknown'}, torch {env['versions']['torch']}")
    say(f"{env['device']}, {result.cpus} x {result.cpu}; median of {result.rounds} rounds", "")
    say_table(("", "ours", "plain", "ratio", "lowest", "highest", ""), [_row(m) for m in result.measurements])
    say("", *(line for m in result.measurements for line in _lines(m)))
    _say_next(result)


def _row(m: "Comparison") -> tuple[str, ...]:
    ratios = (f"{ratio:.3g}x" for ratio in (m.ratio, m.ratio_low, m.ratio_high))
    return (m.name, _short(m.ours), _short(m.baseline), *ratios, m.unit)


def _short(rate: float) -> str:
    return f"{rate:,.0f}".replace(",", " ") if rate >= 100 else f"{rate:.3g}"


def _lines(m: "Comparison") -> Iterator[str]:
    yield f"{m.name}: {m.what}"
    for name, value in m.figures.items():
        shown = value if isinstance(value, list) else [value]
        texts = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in shown]
        yield f"  {name.replace('_', ' ')}: {' '.join(texts[:6])}{' ...' if len(texts) > 6 else ''}"


def _say_next(result: "BenchResult") -> None:
    if result.rounds < 9:
        say("", "next: avt bench --rounds 9 --only NAME, on a quiet machine")
