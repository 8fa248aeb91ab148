"""`avt data`: what a data set holds."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from avtcli.cli import options
from avtcli.cli.console import reporting, say, say_facts, say_json
from avtcli.cli.options import component_options, option

if TYPE_CHECKING:
    from avtcli.reporting.data_check import DataCheck

app = typer.Typer(help="Check the images of a data set.", no_args_is_help=True, rich_markup_mode="markdown")

_SPEC = "A data set as `--dataset` takes it, a folder of images, or a list of them."
_SAMPLE = "Read a random sample of N images of each split. Default: all."
KINDS = ("dataset", "augment")
SHOWN = 5
"""Bad images and groups of duplicates that are named."""


@app.callback()
def _data() -> None:
    """Check images before they are used."""


@app.command("check")
def check(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help=_SPEC)],
    sample: Annotated[int | None, option(_SAMPLE, "N", min=1)] = None,
    data_dir: options.DataDir = None,
    overrides: Annotated[list[str] | None, component_options(*KINDS)] = None,
    workers: options.Workers = None,
    as_json: options.Json = False,
) -> None:
    """Read every image once and count: sizes, modes, classes, duplicates, bad files, what is left out, images per second.

    Example: `avt data check folder:photos`
    """
    from avtcli import registry
    from avtcli.config.components import Augment
    from avtcli.config.resolution import options_from_texts, read_components, resolve_plugin
    from avtcli.reporting.data_check import check_data_set, facts_of
    from avtcli.runtime.devices import Context

    known, place = registry.split_name(spec)[0] in registry.names("dataset"), os.sep in spec or os.path.isdir(spec)
    kind = "files" if os.path.isfile(spec) else "folder" if place else None
    dataset = spec if known or kind is None else f"{kind}:{spec}"
    given = read_components(options_from_texts(overrides or [], kinds=KINDS), dataset=dataset)
    with reporting() as on_event:
        result = check_data_set(
            resolve_plugin("dataset", given["dataset"]),
            data_dir=data_dir,
            augment=given["augment"] or Augment(),
            sample=sample,
            context=Context.build(device="cpu", workers=workers, on_event=on_event),
        )
    if as_json:
        say_json(result)
        return
    say_facts({**facts_of(result), "verdict": _verdict(result)})
    bad = [reason for split in result.splits for _, reason in split.bad]
    for title, lines in (("bad", bad), ("equal", [" = ".join(names[:SHOWN]) for names in result.duplicate_groups])):
        more = [f"... and {len(lines) - SHOWN} more; `--json` has them"] if len(lines) > SHOWN else []
        say(*(f"{title}  {line}".replace("\n", r"\n") for line in [*lines[:SHOWN], *more]))  # a name may have one


def _verdict(result: "DataCheck") -> str | None:
    """Say whether pretraining goes on without the bad images; none where there are none."""
    from avtcli.config.pretrain_config import PretrainConfig
    from avtcli.data.bad_images import most_bad, option_for

    split = {split.split: split for split in result.splits}
    trained, most = split.get("unlabelled", split["train"]), PretrainConfig.model_fields["max_bad_fraction"].default
    bad = len(trained.bad)
    if not bad:
        return None
    option = option_for(bad, trained.checked)
    allowed = f"; {option} allows them" if option else ""
    outcome = f"stops, as more than {most:.0%} are{allowed}" if bad > most_bad(trained.checked, most) else "skips them"
    return f"{bad / trained.checked:.2%} of the {trained.split} images are bad: pretraining {outcome}"
