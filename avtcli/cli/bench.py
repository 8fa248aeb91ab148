"""`avt bench`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from avtcli.cli.console import reporting, say, say_json, say_table
from avtcli.cli.options import Device, Json, option, parts_of

if TYPE_CHECKING:
    from avtcli.bench.timing import Comparison


_PRECISION = "Numeric precision; auto takes bf16 on a CUDA device that supports it, else fp32."


def bench(
    only: Annotated[str | None, option("Run only these benchmarks. Default: all of them.", "NAME[,NAME...]")] = None,
    rounds: Annotated[int, option("Timings of each side, in alternation.", "N", min=1)] = 5,
    device: Device = "auto",
    compile: Annotated[bool, option("Compile the training step.", flag="--compile/--no-compile", panel="Hardware")] = False,
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], option(_PRECISION, panel="Hardware")] = "auto",
    as_json: Json = False,
) -> None:
    """Benchmark each component against a baseline implementation on this machine.

    Both sides run alternately in one process; a ratio above 1 means that avt is faster. Takes minutes on a CPU.

    Example: `avt bench --only pairs,step-nin --rounds 9`
    """
    from avtcli.bench.suite import bench as run_bench

    names = list(parts_of(only) or ())
    with reporting() as on_event:
        result = run_bench(only=names, rounds=rounds, device=device, compile=compile, precision=precision, on_event=on_event)
    if as_json:
        say_json(result)
        return
    env = result.environment
    say(f"avt {env['versions']['avtcli']}, commit {result.commit or 'unknown'}, torch {env['versions']['torch']}")
    say(f"{env['device']}, {result.cpus} x {result.cpu}; median of {result.rounds} rounds", "")
    say_table(("", "avt", "baseline", "ratio", "lowest", "highest", ""), [_row(m) for m in result.measurements])
    say("", *(line for m in result.measurements for line in _details(m)))
    if result.rounds < 9:
        say("", "next: avt bench --rounds 9 --only NAME, on an idle machine")


def _row(m: "Comparison") -> tuple[str, ...]:
    ratios = (f"{ratio:.3g}x" for ratio in (m.ratio, m.ratio_low, m.ratio_high))
    return (m.name, _rate(m.ours), _rate(m.baseline), *ratios, m.unit)


def _rate(rate: float) -> str:
    return f"{rate:,.0f}".replace(",", " ") if rate >= 100 else f"{rate:.3g}"


def _details(m: "Comparison") -> Iterator[str]:
    yield f"{m.name}: {m.what}"
    for name, value in m.figures.items():
        shown = value if isinstance(value, list) else [value]
        texts = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in shown]
        yield f"  {name.replace('_', ' ')}: {' '.join(texts[:6])}{' ...' if len(texts) > 6 else ''}"
