"""Sections of the report, one file each: a function of the file's name from collected runs to a section, or none."""

import pkgutil
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from avtcli.reporting.collected_run import CollectedRun
    from avtcli.reporting.sections._blocks import Section

SECTIONS: Final = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))
"""The names of all sections; a file whose name begins with an underscore is not a section."""


def build_sections(runs: "Sequence[CollectedRun]") -> "tuple[dict[str, Section], dict[str, str]]":
    """Build all sections of a report.

    Returns:
        The sections by name, in the order of the page; and why others, whose data are not there, are left out, by name.
    """
    from avtcli.errors import AvtError
    from avtcli.reporting.run_summary import DAMAGES

    found, left_out = {}, {}
    for name in SECTIONS:
        try:
            section: Section | None = getattr(import_module(f"{__name__}.{name}"), name)(runs)
        except AvtError as error:
            left_out[name] = str(error)
        except DAMAGES:
            left_out[name] = "a file of the run has other fields than this version of avt writes"
        else:
            if section is not None:
                found[name] = section
    return dict(sorted(found.items(), key=lambda item: item[1].place)), left_out
