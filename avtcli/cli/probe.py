"""`avt probe`."""

from collections.abc import Sequence
from operator import attrgetter
from statistics import mean, stdev
from typing import TYPE_CHECKING, Annotated, Any

from avtcli.cli.completion import complete_recipe
from avtcli.cli.console import reporting, say, say_facts, say_json, say_table
from avtcli.cli.launch import start_processes
from avtcli.cli.options import Json, OutJson, Processes, Run, Verbose, component_options, option
from avtcli.cli.settings_options import settings_options
from avtcli.config.components import FEW_IMAGES, component_kinds
from avtcli.config.probe_config import ProbeConfig
from avtcli.config.resolution import merge, options_from_texts, resolve_probe
from avtcli.config.value_text import counted
from avtcli.probing.heads import HEADS
from avtcli.runtime.launcher import read_launch

if TYPE_CHECKING:
    from avtcli.probing.probe import ProbeResult
    from avtcli.probing.probe_setup import HeadResult

KINDS = component_kinds(ProbeConfig)
_RECIPE = "A published evaluation; see `avt recipes list`. Default: our own protocol."
_LR = "Peak learning rate. Default: the recipe's, else chosen on held-out images."

_COLUMNS = ("dataset", "layer", "pool", "head", "shots")
"""What distinguishes heads; data set and shots are shown where they differ."""


@settings_options(ProbeConfig)
def probe(
    run: Run = None,
    *,
    recipe: Annotated[
        str | None, option(_RECIPE, "NAME|FILE.toml", panel="Probe", autocompletion=complete_recipe("probe"))
    ] = None,
    overrides: Annotated[list[str] | None, component_options(*KINDS)] = None,
    lr: Annotated[float | None, option(_LR, "X", panel="Optimisation", min=1e-12)] = None,
    processes: Processes = 1,
    out: OutJson = None,
    verbose: Verbose = False,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Train a classifier on frozen features and report its test accuracy.

    The heads are HEADS.

    Without a recipe, the learning rate, k or penalty is chosen on held-out training images; the test images choose nothing.
    Without a test split they are the held-out images that no run trains on.
    Settings that are not given come from the recipe, else from the defaults below.

    Example: `avt probe --layer conv2 --pool max`

    Example: `avt probe --layer all --head knn --seeds 3`

    Example: `avt probe --recipe cifar10-conv --shots 20,100,400,1000,5000`
    """
    from avtcli.probing.probe import probe as run_probe

    given = merge({**settings, "lr": lr}, options_from_texts(overrides or [], kinds=KINDS))
    config = resolve_probe(given, recipe=recipe)
    start_processes(processes)
    with reporting() as on_event:
        result = run_probe(run, config, out=out, on_event=on_event)
    if read_launch().rank > 0:
        return
    if as_json:
        say_json(result)
        return
    say(f"run  {result.run}" if result.step is None else f"run  {result.run}, step {result.step}", "")
    header, rows = _table(result)
    say_table(header, rows, best=_best(result))
    say("")
    say_facts(result.protocol if verbose else _protocol(result))


probe.__doc__ = (probe.__doc__ or "").replace("HEADS", ", ".join(HEADS))


def _table(result: "ProbeResult") -> tuple[list[str], list[list[str]]]:
    sides = result.protocol["pool_size"] or {}
    trained, random, supervised = map(_by_row, (result.results, result.baseline, result.supervised))
    shown = [c for c in _COLUMNS if c in ("layer", "pool", "head") or len({getattr(h, c) for h in result.results}) > 1]
    rows = []
    for key, heads in trained.items():
        row = {c: "all" if getattr(heads[0], c) is None else str(getattr(heads[0], c)) for c in shown}
        row["pool"] = "not pooled" if row["pool"] == "none" else f"{row['pool']} {sides[heads[0].layer]}"
        row["top-1 %"] = _mean_top(heads, "top1")
        if max(data["classes"] for data in result.protocol["data"]) > 5:
            row["top-5 %"] = _mean_top(heads, "top5")
        if random:
            gain = mean(head.top1 for head in heads) - mean(head.top1 for head in random[key])
            row |= {"random top-1 %": _mean_top(random[key], "top1"), "gain": f"{gain:+.2f}"}
        if supervised:
            row["supervised top-1 %"] = _mean_top(supervised[key], "top1")
        rows.append(row)
    return [*rows[0]], [[*row.values()] for row in rows]


def _by_row(heads: "Sequence[HeadResult]") -> "dict[tuple[Any, ...], list[HeadResult]]":
    """The heads of each row: those that differ by their seed alone."""
    key_of, rows = attrgetter(*_COLUMNS), dict[tuple[Any, ...], list[Any]]()
    for head in heads:
        rows.setdefault(key_of(head), []).append(head)
    return rows


def _best(result: "ProbeResult") -> int | None:
    """The row of the highest accuracy; none among rows of several data sets or numbers of images, or of few test images."""
    tops = [mean(head.top1 for head in heads) for heads in _by_row(result.results).values()]
    comparable = len({(head.dataset, head.shots) for head in result.results}) == 1
    comparable = comparable and result.results[0].test_images >= FEW_IMAGES
    return tops.index(max(tops)) if comparable and len(tops) > 1 else None


def _protocol(result: "ProbeResult") -> dict[str, object]:
    """The protocol in two lines."""
    protocol = result.protocol
    chosen, baseline = protocol["chosen"], protocol["baseline"]
    how = [protocol["head"]["name"], counted(protocol["epochs"], "epoch") if "epochs" in protocol else ""]
    how += ["fine-tuned" if protocol["finetune"] else "", "augmented" if protocol["augmentation"] else "no augmentation"]
    if chosen is not None:
        names = ", ".join(name for name in chosen if name not in ("held_out", "steps"))
        how.append(f"{names} chosen on {' or '.join(map(str, chosen['held_out']))} held-out training images")
    figures = [
        *(_images(result, data) for data in protocol["data"]),
        protocol["reported"],
        f"baseline: {baseline['backbone']}" if baseline else "",
    ]
    return {
        "protocol": f"{protocol['recipe'] or 'default'}: {', '.join(filter(None, how))} (all of it: --verbose)",
        "figures": "; ".join(filter(None, figures)),
        "calibrated": protocol["calibrated"],
    }


def _images(result: "ProbeResult", data: dict[str, Any]) -> str:
    """The images of a data set; of fewer labels, those that heads were trained on too."""
    used = sorted({head.train_images for head in result.results if head.dataset == data["dataset"]})
    of = "" if used == [data["train_images"]] else f"{' or '.join(map(str, used))} of "
    return f"{data['dataset']}, {of}{data['train_images']} training and {data['test_images']} {data['split']} images"


def _mean_top(heads: "Sequence[HeadResult]", figure: str) -> str:
    values = [getattr(head, figure) for head in heads]
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")
