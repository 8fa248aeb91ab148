"""`avt bench`."""

from typing import Annotated, Literal

from avtcli.cli.completion import complete_plugin
from avtcli.cli.console import reporting, say, say_json, say_next, say_table
from avtcli.cli.options import Device, Json, component_options, option
from avtcli.config.components import Plugin
from avtcli.config.resolution import options_from_texts, validate
from avtcli.plugin_options import parts_of

_ONLY = "Benchmarks to run: homographies, warp-224, pairs, jpeg, step, loop, processes, probe. Default: all."
_PRECISION = "Numeric precision; auto takes bf16 on a CUDA device that supports it, else fp32."
_BACKBONE = "Backbone of step, loop and probe. Default: nin."
_SIZE = "Image side of pairs, step, loop and probe. Default: 32."
_BATCH = "Batch size of step and loop. Default: 32; 512 on a GPU."
_COMPILE = "Compile avt's training step. Default: as `avt pretrain` chooses."
_CAPTURE = "Capture avt's training step as a CUDA graph. Default: as `avt pretrain` chooses."
_COMPLETE = complete_plugin("backbone")


def bench(
    only: Annotated[str | None, option(_ONLY, "NAME[,NAME...]")] = None,
    rounds: Annotated[int, option("Timings of each side, in alternation.", "N", min=1)] = 5,
    backbone: Annotated[str | None, option(_BACKBONE, "NAME[:VARIANT]", panel="Model", autocompletion=_COMPLETE)] = None,
    overrides: Annotated[list[str] | None, component_options("backbone")] = None,
    size: Annotated[int | None, option(_SIZE, "PX", panel="Model", min=8)] = None,
    batch_size: Annotated[int | None, option(_BATCH, "N", panel="Model", min=2)] = None,
    device: Device = "auto",
    compile: Annotated[bool | None, option(_COMPILE, flag="--compile/--no-compile", panel="Hardware")] = None,
    capture: Annotated[bool | None, option(_CAPTURE, flag="--capture/--no-capture", panel="Hardware")] = None,
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], option(_PRECISION, panel="Hardware")] = "auto",
    as_json: Json = False,
) -> None:
    """Benchmark each component against a baseline implementation on this machine.

    Both sides run alternately in one process; a ratio above 1 means that avt is faster. Takes minutes on a CPU.

    Example: `avt bench --only step --backbone timm:resnet18 --size 64 --rounds 9`

    Example: `avt bench --only step --backbone timm:vit_tiny_patch16_224 -o backbone.args.patch_size=4`
    """
    from avtcli.bench.benchmark_suite import bench as run_bench
    from avtcli.bench.benchmark_timing import BenchConfig
    from avtcli.runtime.devices import Context

    with reporting() as on_event:
        options = options_from_texts(overrides or [], kinds=("backbone",)).get("backbone", {})
        config = BenchConfig.build(
            Context.build(device=device).device,
            backbone=validate(Plugin, {"name": backbone or "nin", **options}, where="-o backbone.KEY"),
            size_px=size,
            batch_size=batch_size,
            compile=compile,
            capture=capture,
            precision=precision,
        )
        result = run_bench(config, only=parts_of(only), rounds=rounds, on_event=on_event)
    if as_json:
        say_json(result)
        return
    env = result.environment
    say(f"avt {env['versions']['avtcli']}, commit {result.commit or 'unknown'}, torch {env['versions']['torch']}")
    say(f"{env['device']}, {result.cpus} x {result.cpu}; median of {result.rounds} rounds", "")
    rows = []
    for m in result.measurements:
        ratios = (f"{ratio:.3g}x" for ratio in (m.ratio, m.ratio_low, m.ratio_high))
        rows.append((m.name, _short(m.ours), _short(m.baseline), *ratios, m.unit))
    say_table(("", "avt", "baseline", "ratio", "lowest", "highest", ""), rows)
    say("")
    for m in result.measurements:
        say(f"{m.name}: {m.what}")
        for name, value in m.figures.items():
            say(f"  {name.replace('_', ' ')}: {f'{value:.4g}' if isinstance(value, float) else value}")
    if result.rounds < 9:
        say("", "For figures to report, on an idle machine:")
        say_next(("avt", "bench", "--rounds", "9", *(("--only", only) if only else ())))


def _short(rate: float) -> str:
    return f"{rate:,.0f}".replace(",", " ") if rate >= 100 else f"{rate:.3g}"
