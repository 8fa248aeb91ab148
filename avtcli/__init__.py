"""Pretrain a vision backbone without labels by autoencoding variational transformations (AVT, ICCV 2019).

Every command of `avt` is a function of the same name, with the command's options as keyword arguments:

    result = avtcli.pretrain(dataset="folder:photos", backbone="resnet18", epochs=20, out="runs/x")
    print(avtcli.probe(result.run, layer="all").results[0].top1)
    encoder = avtcli.load_encoder(result.run)

Errors that a message explains are `AvtError`. PyTorch is imported by the first call.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from avtcli.api._embed import embed
from avtcli.api._evaluate import evaluate
from avtcli.api._export import export
from avtcli.api._loading import load_encoder, load_model
from avtcli.api._pretrain import pretrain
from avtcli.api._probe import probe
from avtcli.api._report import report
from avtcli.errors import AvtError

if TYPE_CHECKING:
    from avtcli.embedding.embed import EmbedResult
    from avtcli.evaluation.evaluate import EvaluateResult
    from avtcli.exporting.export import ExportResult
    from avtcli.models.encoder import Encoder
    from avtcli.models.siamese import SiameseModel
    from avtcli.probing.probe import ProbeResult
    from avtcli.reporting.report import Report
    from avtcli.training.pretrain import PretrainResult

__all__ = [
    "AvtError",
    "EmbedResult",
    "Encoder",
    "EvaluateResult",
    "ExportResult",
    "PretrainResult",
    "ProbeResult",
    "Report",
    "SiameseModel",
    "embed",
    "evaluate",
    "export",
    "load_encoder",
    "load_model",
    "pretrain",
    "probe",
    "report",
]

_TYPES = {
    "EmbedResult": "avtcli.embedding.embed",
    "Encoder": "avtcli.models.encoder",
    "EvaluateResult": "avtcli.evaluation.evaluate",
    "ExportResult": "avtcli.exporting.export",
    "PretrainResult": "avtcli.training.pretrain",
    "ProbeResult": "avtcli.probing.probe",
    "Report": "avtcli.reporting.report",
    "SiameseModel": "avtcli.models.siamese",
}
"""What needs PyTorch, and is imported when it is asked for: the modules by name."""


def __getattr__(name: str) -> Any:
    if name in _TYPES:
        return getattr(importlib.import_module(_TYPES[name]), name)
    raise AttributeError(f"module 'avtcli' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
