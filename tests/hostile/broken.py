"""Ten kinds of broken distributions, written into a folder as pip would leave them there."""

from dataclasses import dataclass
from pathlib import Path

VERSION = "6.6"
SECONDS = 60

WORKS = """
from avtcli.contracts import Loss, Objective, TransformFamily
from avtcli.models.decoder import Decoder


class Plain(Objective):
    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def predict(self, codes):
        return self.decoder(codes)

    def forward(self, codes, targets):
        return Loss((self.predict(codes).mean - targets[0].values).square().mean(1))


def plugin(*, vector_dim: int, family: TransformFamily) -> Objective:
    "The squared error."
    return Plain(Decoder(2 * vector_dim, family.dof))
"""


@dataclass(frozen=True)
class Broken:
    """One kind of broken plugin.

    Attributes:
        text: of its module.
        cause: what a message says of it, as a regular expression.
        attribute: what its entry point names.
        distributions: that bring it.
        loads: whether it does its work in the end.
    """

    text: str
    cause: str
    attribute: str = "plugin"
    distributions: int = 1
    loads: bool = False


KINDS = {
    "importerror": Broken(
        "from math import no_such_function", "ImportError: cannot import name 'no_such_function' from 'math'"
    ),
    "syntaxerror": Broken("def plugin(:", "SyntaxError: invalid syntax"),
    "systemexit": Broken("raise SystemExit(0)", "SystemExit: 0"),
    "attribute": Broken(WORKS, "AttributeError: module 'hostile_attribute' has no attribute 'absent'", attribute="absent"),
    "type": Broken("plugin = 42", "is int hostile_type:plugin, expected a function"),
    "twice": Broken(WORKS, r"Two distributions install .*hostile_twice 6\.6 .* and hostile_twice_0 6\.6", distributions=2),
    "version": Broken(f"CONTRACT_VERSION = 99\n{WORKS}", "version 99 of the plugin contracts; this avt implements version 1"),
    "prints": Broken(f"print('buy now')\n{WORKS}", r"importing hostile_prints prints 'buy now\\n'", loads=True),
    "sleeps": Broken(f"import time\ntime.sleep({SECONDS})\n{WORKS}", "importing hostile_sleeps takes more than", loads=True),
    "dependency": Broken("import package_of_tomorrow", "ModuleNotFoundError: No module named 'package_of_tomorrow'"),
}


def name_of(kind: str) -> str:
    return f"hostile-{kind}"


def install(folder: Path) -> Path:
    """Write all of them; each module leaves a file beside itself when it is imported."""
    for kind, broken in KINDS.items():
        module = f"hostile_{kind}"
        mark = "" if "syntax" in kind else "from pathlib import Path\nPath(__file__).with_suffix('.imported').touch()\n"
        (folder / f"{module}.py").write_text(mark + broken.text)
        for i in range(broken.distributions):
            distribution = module + (f"_{i - 1}" if i else "")
            info = folder / f"{distribution}-{VERSION}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {VERSION}\n")
            (info / "entry_points.txt").write_text(f"[avtcli.objectives]\n{name_of(kind)} = {module}:{broken.attribute}\n")
    return folder


def imported(folder: Path) -> set[str]:
    """The modules that were imported."""
    return {path.stem for path in folder.glob("*.imported")}
