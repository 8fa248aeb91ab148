"""Where a timm model can be read: its own named features as maps, found by one trial batch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avtcli.contracts import Size
from avtcli.errors import AvtError
from avtcli.seeding import keyed_generator

LEAST_SIDE = 4
"""Cells: the code stands at the deepest map that is at least so high and wide."""


@dataclass(frozen=True)
class Place:
    """A module whose output can be read as a map (B, C, H, W), and written back.

    Attributes:
        name: timm's own, the module's path.
        channels: of the map.
        cells: (height, width) of the map at the trial's image size.
        layout: of the module's output: (B, C, H, W), (B, H, W, C), or tokens (B, prefix + H W, C), row by row.
        prefix: tokens that are no cells, such as the class token and registers; they pass by the map.
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
class Trial:
    """What one batch through a model shows.

    Attributes:
        places: where it can be read, in the order of the network.
        vector_dim: the length of its pooled feature.
        unused: the names of the parameters that the pooled feature does not depend on.
    """

    places: tuple[Place, ...]
    vector_dim: int
    unused: frozenset[str]


@torch.enable_grad()  # whatever the caller has switched off
def try_out(model: nn.Module, name: str, *, in_channels: int, image_size: Size) -> Trial:
    """Send one random image through a model in eval mode; its state and the global random state stay as they were.

    Args:
        model: a timm model without classifier.
        name: what it is called, for messages.
        in_channels: of the images.
        image_size: (height, width).

    Raises:
        AvtError: if the model does not take such images, gives no vector, or has no place that can be read as a map.
    """
    x = torch.randn(1, in_channels, *image_size, generator=keyed_generator("timm", "trial"))
    features = list(getattr(model, "feature_info", None) or ())
    training = model.training
    with torch.random.fork_rng(devices=[]), _outputs_kept(model, features) as kept:
        try:
            vector = model.eval()(x)
        except Exception as error:  # each family has its own way of refusing a size
            raise AvtError(
                f"timm's '{name}' does not take images of {in_channels}x{image_size[0]}x{image_size[1]}: {one_line(error)}. "
                "Try larger ones with `-o augment.resize=SIDE -o augment.crop=SIDE`."
            ) from error
    if not isinstance(vector, Tensor) or vector.ndim != 2:
        found = tuple(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
        raise AvtError(f"timm's '{name}' gives {found} for one image, expected one vector. Choose another model.")
    places, refused = _places(model, features, kept, image_size)
    if not places:
        why = "; ".join(refused[:3]) or "it names no features"
        raise AvtError(f"timm's '{name}' has no place where the code could stand: {why}. Choose another model.")
    trial = _follow_gradients(model, vector, places, kept)
    model.train(training)  # also drops what some models (LeViT) keep of their weights while in eval mode
    return trial


def default_code_tap(places: Sequence[Place]) -> Place:
    """The deepest place of at least 4x4 cells that has layers after it, else the one of the most cells.

    The layers after the code are the trunk that reads it, as blocks 3 and 4 of NIN do.

    Raises:
        ValueError: if the pooled feature depends on none of the places.
    """
    able = [place for place in places if place.reaches]
    inner = [place for place in able if place is not places[-1]] or able
    roomy = [place for place in inner if min(place.cells) >= LEAST_SIDE]
    return roomy[-1] if roomy else max(reversed(inner), key=lambda place: place.cells[0] * place.cells[1])


def one_line(error: BaseException) -> str:
    """An error's name and the first line of its message, where it has one."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]]).rstrip(".")


@contextmanager
def _outputs_kept(model: nn.Module, features: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, list[Any]]]:
    """Yield a dict that fills with what each feature's module gives, call by call."""
    modules, kept = dict(model.named_modules()), {feature["module"]: list[Any]() for feature in features}
    handles = []
    for name, outputs in kept.items():
        if name in modules:
            handles.append(modules[name].register_forward_hook(lambda m, i, output, outputs=outputs: outputs.append(output)))
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _places(
    model: nn.Module, features: Sequence[Mapping[str, Any]], kept: Mapping[str, list[Any]], image_size: Size
) -> tuple[list[Place], list[str]]:
    """The features that are maps, and one line for each that is none."""
    places, refused = [], []
    for feature in features:
        outputs = kept[feature["module"]]
        place = _place(model, feature, outputs[0], image_size) if len(outputs) == 1 else None
        if place is not None:
            places.append(place)
        elif len(outputs) != 1:
            refused.append(f"'{feature['module']}' is called {len(outputs)} times")
        else:
            found = tuple(outputs[0].shape) if isinstance(outputs[0], Tensor) else f"a {type(outputs[0]).__name__}"
            refused.append(f"'{feature['module']}' gives {found}, which is no map")
    return places, refused


def _place(model: nn.Module, feature: Mapping[str, Any], output: Any, image_size: Size) -> Place | None:
    """How a module's output for one image is read as a map, or none where it cannot be."""
    if not isinstance(output, Tensor) or hasattr(model, "reroll"):  # Hiera's tokens do not go row by row
        return None
    name, channels = feature["module"], feature["num_chs"]
    if output.ndim == 4 and output.shape[1] == channels and getattr(model, "output_fmt", "NCHW") != "NHWC":
        return Place(name, channels, (output.shape[2], output.shape[3]), "NCHW")
    if output.ndim == 4 and output.shape[3] == channels:
        return Place(name, channels, (output.shape[1], output.shape[2]), "NHWC")
    if output.ndim == 3 and output.shape[2] == channels:
        height, width = (side / feature["reduction"] for side in image_size)
        for prefix in (getattr(model, "num_prefix_tokens", 0), 0):
            for cells in ((int(height), int(width)), (ceil(height), ceil(width))):
                if cells[0] * cells[1] + prefix == output.shape[1]:
                    return Place(name, channels, cells, "tokens", prefix)
    return None


def _follow_gradients(model: nn.Module, vector: Tensor, places: Sequence[Place], kept: Mapping[str, list[Any]]) -> Trial:
    """See what the vector depends on: of the places, and of the parameters."""
    dim = vector.shape[1]
    loss = (vector * torch.linspace(-1, 1, dim)).sum()  # a plain sum after a LayerNorm would be constant
    parameters = dict(model.named_parameters())
    outputs = [kept[place.name][0] for place in places]
    slopes = torch.autograd.grad(loss, [*outputs, *parameters.values()], allow_unused=True)
    of_places, of_parameters = slopes[: len(places)], slopes[len(places) :]
    told = tuple(
        replace(place, reaches=slope is not None and bool(place.to_map(slope).any()))
        for place, slope in zip(places, of_places, strict=True)
    )
    unused = (name for name, slope in zip(parameters, of_parameters, strict=True) if slope is None)
    return Trial(told, dim, frozenset(unused))
