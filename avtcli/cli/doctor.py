"""`avt doctor`."""

from avtcli.cli.console import reporting, say_facts, say_json
from avtcli.cli.options import DataDir, Json
from avtcli.errors import RunFailedError


def doctor(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Check the installation and this machine.

    Each line is ok, a note, or a problem with the way out; the exit code is 1 if there is a problem. Nothing is written.

    Example: `avt doctor`
    """
    from dataclasses import asdict

    from avtcli.inspection.installation import check_installation

    with reporting():
        findings = list(check_installation(data_dir))
    problems = [finding for finding in findings if finding.status == "problem"]
    if as_json:
        say_json({"ok": not problems, "findings": [asdict(finding) for finding in findings]})
    else:
        say_facts({f"{f.status:<7}  {f.subject}": "; ".join(filter(None, (f.found, f.way_out))) for f in findings})
    if problems:
        raise RunFailedError(f"{len(problems)} problem{'s' * (len(problems) > 1)}, the first: {problems[0].subject}.")
