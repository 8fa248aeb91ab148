"""Taps of a timm model: its named features as maps, found by tracing one batch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avtcli.contracts import Size
from avtcli.errors import AvtError, one_line
from avtcli.seeding import keyed_generator

LEAST_SIDE = 4  # cells of the map that is the code by default


@dataclass(frozen=True)
class TapLocation:
    """A module, by timm's name, whose output can be read as a map (B, C, H, W), and written back.

    Attributes:
        cells: (height, width) of the map at the trace's image size.
        layout: of the module's output: (B, C, H, W), (B, H, W, C), or tokens (B, prefix + H W, C), row by row.
        prefix: tokens that are no cells, such as the class token and registers; the map leaves them out.
        reaches: whether the model's pooled feature depends on the map.
    """

    name: str
    channels: int
    cells: Size
    layout: Literal["NCHW", "NHWC", "tokens"]
    prefix: int = 0
    reaches: bool = True

    def to_map(self, output: Tensor) -> Tensor:
        """Read a module's output as a map (B, C, H, W)."""
        if self.layout == "NCHW":
            return output
        if self.layout == "NHWC":
            return output.permute(0, 3, 1, 2)
        tokens = output[:, self.prefix :].transpose(1, 2)
        return tokens.reshape(*tokens.shape[:2], *self.cells)

    def from_map(self, values: Tensor, output: Tensor) -> Tensor:
        """Put a map back where `to_map` took it from; prefix tokens stay as they are in `output`."""
        if self.layout == "NCHW":
            return values
        if self.layout == "NHWC":
            return values.permute(0, 2, 3, 1)
        tokens = values.flatten(2).transpose(1, 2)
        return torch.cat([output[:, : self.prefix], tokens.to(output.dtype)], dim=1) if self.prefix else tokens


@dataclass(frozen=True)
class ModelTrace:
    """Structure of a model: its features that are maps, in their order, and parameters that the vector does not depend on."""

    locations: tuple[TapLocation, ...]
    vector_dim: int
    unused: frozenset[str]


@torch.enable_grad()  # also for callers under no_grad
def trace_model(model: nn.Module, name: str, *, in_channels: int, image_size: Size) -> ModelTrace:
    """Trace a model in eval mode with one random image; its state and the global random state do not change.

    Raises:
        AvtError: if the model does not take such images, or gives no vector.
    """
    x = torch.randn(1, in_channels, *image_size, generator=keyed_generator("timm", "trace"))
    features = list(getattr(model, "feature_info", None) or ())
    training = model.training
    with torch.random.fork_rng(devices=[]), _recorded_outputs(model, features) as outputs:
        try:
            vector = model.eval()(x)
        except AvtError:
            raise
        except Exception as error:  # models refuse a size by any exception
            found, hint = "x".join(map(str, x.shape[1:])), "Try larger ones with `-o augment.resize=SIDE -o augment.crop=SIDE`"
            raise AvtError(f"timm's '{name}' does not take images of {found}: {one_line(error)}. {hint}.") from error
    if not isinstance(vector, Tensor) or vector.ndim != 2:
        raise AvtError(f"timm's '{name}' gives {_described(vector)} for one image, expected one vector. Choose another model.")
    once = [feature for feature in features if len(outputs[feature["module"]]) == 1]
    located = (_locate(model, feature, outputs[feature["module"]][0], image_size) for feature in once)
    trace = _follow_gradients(model, vector, [location for location in located if location is not None], outputs)
    model.train(training)  # also drops the copies of weights that some models (LeViT) make in eval mode
    return trace


def default_code_tap(locations: Sequence[TapLocation]) -> TapLocation | None:
    """Return the deepest location of at least 4x4 cells that has layers after it, else the one of the most cells.

    The layers after the code process it for the decoder, as blocks 3 and 4 of NIN do. None if the pooled feature depends on no
    location.
    """
    able = [location for location in locations if location.reaches]
    inner = [location for location in able if location is not locations[-1]] or able
    roomy = [location for location in inner if min(location.cells) >= LEAST_SIDE]
    largest = max(reversed(inner), key=lambda location: location.cells[0] * location.cells[1], default=None)
    return roomy[-1] if roomy else largest


@contextmanager
def _recorded_outputs(model: nn.Module, features: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, list[Any]]]:
    """Yield a dict that records the outputs of each feature's module, one per call."""
    modules, outputs = dict(model.named_modules()), {feature["module"]: list[Any]() for feature in features}
    hooks = {name: lambda m, i, output, calls=calls: calls.append(output) for name, calls in outputs.items()}
    handles = [modules[name].register_forward_hook(hook) for name, hook in hooks.items() if name in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _described(output: Any) -> str:
    return str(tuple(output.shape)) if isinstance(output, Tensor) else f"a {type(output).__name__}"


def _locate(model: nn.Module, feature: Mapping[str, Any], output: Any, image_size: Size) -> TapLocation | None:
    """How a module's output for one image is read as a map, or none where it cannot be."""
    if not isinstance(output, Tensor) or hasattr(model, "reroll"):  # Hiera's tokens are not in row order
        return None
    name, channels = feature["module"], feature["num_chs"]
    if output.ndim == 4 and output.shape[1] == channels and getattr(model, "output_fmt", "NCHW") != "NHWC":
        return TapLocation(name, channels, (output.shape[2], output.shape[3]), "NCHW")
    if output.ndim == 4 and output.shape[3] == channels:
        return TapLocation(name, channels, (output.shape[1], output.shape[2]), "NHWC")
    if output.ndim == 3 and output.shape[2] == channels:
        height, width = (side / feature["reduction"] for side in image_size)
        for prefix in (getattr(model, "num_prefix_tokens", 0), 0):
            for cells in ((int(height), int(width)), (ceil(height), ceil(width))):
                if cells[0] * cells[1] + prefix == output.shape[1]:
                    return TapLocation(name, channels, cells, "tokens", prefix)
    return None


def _follow_gradients(
    model: nn.Module, vector: Tensor, locations: Sequence[TapLocation], outputs: Mapping[str, list[Any]]
) -> ModelTrace:
    """Find the locations and parameters that the vector depends on."""
    dim = vector.shape[1]
    loss = (vector * torch.linspace(-1, 1, dim)).sum()  # a plain sum after a LayerNorm would be constant
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    maps = [outputs[location.name][0] for location in locations]
    gradients = torch.autograd.grad(loss, [*maps, *parameters.values()], allow_unused=True)
    reach = [g is not None and bool(location.to_map(g).any()) for location, g in zip(locations, gradients, strict=False)]
    used = {name for name, gradient in zip(parameters, gradients[len(locations) :], strict=True) if gradient is not None}
    unused = {name for name, _ in model.named_parameters()} - used
    located = tuple(replace(location, reaches=reaches) for location, reaches in zip(locations, reach, strict=True))
    return ModelTrace(located, dim, frozenset(unused))
