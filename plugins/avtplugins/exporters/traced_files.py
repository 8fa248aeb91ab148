"""The encoder as a graph of its computation, which needs none of our code to run: torch.export and ONNX."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch.export import Dim
from torch.fx import GraphModule

from avtcli.contracts import Exporter
from avtcli.errors import AvtError
from avtcli.models.encoder import Encoder

SHAPES: Final = ({0: Dim("batch")},)
LARGEST_ONNX: Final = 2**31 - 2**20
"""Bytes of weights in one ONNX file, a protobuf message, with room for the graph."""


class ExportedProgramFile(Exporter):
    """torch.export's graph, for any number of images of the size in training; layers after the exported one are cut off."""

    suffix = ".pt2"
    library = "pytorch"

    def write(self, encoder: Encoder, path: Path, about: Mapping[str, Any]) -> None:
        """Trace the encoder, and save the graph."""
        images = _example(about)
        with _torchs_own_warnings_ignored():
            program = torch.export.export(_trace(encoder, images), images, dynamic_shapes=SHAPES)
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # paths of this machine
            torch.export.save(program, path)

    def load_with(self, path: Path) -> tuple[str, ...]:
        """Return the lines that load the graph as a module."""
        return "import torch", f"encoder = torch.export.load({str(path)!r}).module()"


class OnnxFile(Exporter):
    """An ONNX graph, for any number of images of the size in training; layers after the exported one are cut off."""

    suffix = ".onnx"
    library = "onnx"
    tolerance = 1e-4  # onnxruntime fuses operations, and sums in another order

    def check(self, encoder: Encoder, layer: str) -> None:
        """Refuse weights that one file cannot hold, and a missing package."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in encoder.state_dict().values())
        if size > LARGEST_ONNX:
            raise AvtError(f"One ONNX file holds weights of 2 GB, found {size / 1e9:.1f} GB. Take --format pt2.")
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            need = f"The format 'onnx' needs onnx, onnxruntime and onnxscript, and importing them failed ({error})"
            raise AvtError(f"{need}: `pip install 'avtcli[onnx]'`, or take --format pt2.") from error

    def write(self, encoder: Encoder, path: Path, about: Mapping[str, Any]) -> None:
        """Trace the encoder, and save the graph with the input `images` and the output `features`."""
        images = _example(about)
        with _torchs_own_warnings_ignored():
            program = torch.onnx.export(
                _trace(encoder, images),
                images,
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes=SHAPES,
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        for node in program.model.graph:
            node.metadata_props.clear()  # stack traces, with paths of this machine
        program.save(path)

    def load_with(self, path: Path) -> tuple[str, ...]:
        """Return the lines that run the graph, on NumPy arrays, without PyTorch."""
        return (
            "import numpy, onnxruntime",
            f"session = onnxruntime.InferenceSession({str(path)!r})",
            "encoder = lambda images: session.run(None, {'images': numpy.asarray(images)})[0]",
        )


@contextlib.contextmanager
def _torchs_own_warnings_ignored() -> Iterator[None]:
    """Ignore what the exporters of torch 2.11 warn of in their own code."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*treespec, LeafSpec", category=FutureWarning)
        yield


def _example(about: Mapping[str, Any]) -> tuple[torch.Tensor]:
    """The input to trace with: two images, since a batch of 1 would become a constant."""
    return (torch.zeros(2, about["model"]["channels"], *about["model"]["size"]),)


def _trace(encoder: Encoder, images: tuple[torch.Tensor]) -> GraphModule:
    """Trace the encoder, and drop what its output does not depend on."""
    # without operations in place, which count as effects and keep dead code alive
    program = torch.export.export(encoder, images, dynamic_shapes=SHAPES).run_decompositions({})
    graph: GraphModule = program.module(check_guards=False)
    graph.training = False  # it has no eval(); the mode is part of the graph
    graph.graph.eliminate_dead_code()
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name, _ in [*graph.named_parameters(), *graph.named_buffers()]:
        if name not in used:
            owner, _, leaf = name.rpartition(".")
            delattr(graph.get_submodule(owner), leaf)
    graph.recompile()
    return graph


def pt2_file() -> Exporter:
    """A graph of torch.export in one file: it runs in PyTorch without avt, and is compiled ahead of time from there."""
    return ExportedProgramFile()


def onnx_file() -> Exporter:
    """An ONNX graph in one file: it runs in onnxruntime, without PyTorch (`pip install 'avtcli[onnx]'`)."""
    return OnnxFile()
